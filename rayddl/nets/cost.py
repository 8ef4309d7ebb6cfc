"""Estimates the run time of a network's steps, and decides whether compiling saves time."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import nn

from rayddl import plugins
from rayddl.nets.build import build, has_batch_norm
from rayddl.nets.config import NetConfig

COMPILE_SECONDS = 30.0
"""Approximate duration of compiling a step without a cache."""
EAGER_FLOPS = 2e11
"""Floating-point operations per second assumed for a CPU."""
EAGER_OVERHEAD = 4e-3
"""Seconds of Python and dispatch in one uncompiled step."""
GAINS = ("convnet",)
"""Networks that run faster compiled. In measurements on a CPU, ResNet-18 took minutes to compile and then ran
slower than uncompiled."""


TOGETHER_FLOPS = 1.5e7
"""Operations of a batch's forward pass up to which several students of one network train faster together on
a CPU: below, most of a step is dispatch overhead, which they share; above, the grouped convolutions that
vmap generates are slower than plain ones (``tests/bench/evaluate.py``)."""


@plugins.forgotten
@lru_cache(maxsize=64)
def forward_flops(config: NetConfig, shape: tuple[int, int, int], classes: int) -> int:
    """Floating-point operations of one image's forward pass: two per weight and position of convolutions and
    linear layers, other products left out.
    """
    # torch.utils.flop_counter gives the same, and loads torch's compiler for it, for seconds.
    found = []

    def count(layer: nn.Module, _: object, out: torch.Tensor) -> None:
        weight = layer.get_parameter("weight")
        found.append(2 * weight.numel() * (out.numel() // weight.shape[0]))

    net = build(config, shape, classes, seed=0).eval()
    for layer in net.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layer.register_forward_hook(count)
    with torch.no_grad():
        net(torch.zeros(1, *shape))
    return sum(found)


def worth_compiling(
    config: NetConfig, shape: tuple[int, int, int], classes: int, *, steps: int, batch: int, passes: int = 3
) -> bool:
    """True if ``steps`` uncompiled steps are expected to take longer than compilation and compiled steps.

    Depends on the settings alone, so that a resumed run makes the same choice as the interrupted one.
    """
    if config.name not in GAINS:
        return False
    return eager_seconds(config, shape, classes, steps=steps, batch=batch, passes=passes) > COMPILE_SECONDS


def eager_seconds(
    config: NetConfig, shape: tuple[int, int, int], classes: int, *, steps: int, batch: int, passes: int = 3
) -> float:
    """Estimated seconds of ``steps`` uncompiled steps on a CPU.

    ``passes``: the cost of a step in forward passes; 3 for a gradient, 12 for a matched student step.
    """
    flops = forward_flops(config, shape, classes) * passes * batch * steps
    return flops / EAGER_FLOPS + steps * EAGER_OVERHEAD * passes / 3


def faster_together(
    config: NetConfig, shape: tuple[int, int, int], classes: int, *, batch: int, compile_: bool
) -> bool:
    """True if students of this network train faster together (by vmap) than one after the other.

    Depends on the settings alone, as the two ways differ in the last bits. False for compiled steps: they
    have little dispatch overhead to share, and a group would have to be compiled again.
    """
    if compile_ or has_batch_norm(config, shape, classes):
        return False
    return forward_flops(config, shape, classes) * batch <= TOGETHER_FLOPS
