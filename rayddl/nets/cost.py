"""Estimates the run time of a network's steps, and decides whether compiling saves time."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import nn

from rayddl import plugins
from rayddl.nets import work
from rayddl.nets.build import build, has_batch_norm
from rayddl.nets.config import NetConfig


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
    flops = forward_flops(config, shape, classes)
    return work.pays(config.name, flops, steps=steps, batch=batch, passes=passes)


def eager_seconds(
    config: NetConfig, shape: tuple[int, int, int], classes: int, *, steps: int, batch: int, passes: int = 3
) -> float:
    """Estimated seconds of ``steps`` uncompiled steps on a CPU; see :func:`rayddl.nets.work.seconds_of_flops`."""
    flops = forward_flops(config, shape, classes)
    return work.seconds_of_flops(flops, steps=steps, batch=batch, passes=passes)


def faster_together(
    config: NetConfig, shape: tuple[int, int, int], classes: int, *, batch: int, compile_: bool
) -> bool:
    """True if students of this network train faster together (by vmap) than one after the other.

    Depends on the settings alone, as the two ways differ in the last bits. False for compiled steps: they
    have little dispatch overhead to share, and a group would have to be compiled again.
    """
    if compile_ or has_batch_norm(config, shape, classes):
        return False
    return forward_flops(config, shape, classes) * batch <= work.TOGETHER_FLOPS
