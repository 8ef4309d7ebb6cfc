"""What a network's work costs, and whether compiling it pays."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from rayddl import plugins
from rayddl.nets.build import build, has_batch_norm
from rayddl.nets.config import NetConfig

COMPILE_SECONDS = 30.0
"""What a cold compilation of a step costs, roughly."""
EAGER_FLOPS = 2e11
"""Operations per second of a plain CPU."""
EAGER_OVERHEAD = 4e-3
"""Seconds of Python and dispatch in one uncompiled step."""
GAINS = ("convnet",)
"""Networks that run faster compiled. ResNet-18 was seen to compile for minutes on a CPU and to run slower
than before."""


TOGETHER_FLOPS = 1.5e7
"""Operations of a batch's forward pass up to which several students of a network train faster side by side on
a CPU: below it a step is mostly dispatch, which they share; above it the grouped convolutions that vmap makes
of theirs run slower than plain ones (``tests/bench/evaluate.py``)."""


@plugins.forgotten
@lru_cache(maxsize=64)
def forward_flops(config: NetConfig, shape: tuple[int, int, int], classes: int) -> int:
    """Floating-point operations of one image's forward pass."""
    net = build(config, shape, classes, seed=0)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net.eval()(torch.zeros(1, *shape))
    return int(counter.get_total_flops())


def worth_compiling(
    config: NetConfig, shape: tuple[int, int, int], classes: int, *, steps: int, batch: int, passes: int = 3
) -> bool:
    """Whether ``steps`` steps take so long uncompiled that compiling first is quicker.

    A rule on the settings alone, so that a resumed run decides as the interrupted one did.
    """
    if config.name not in GAINS:
        return False
    return eager_seconds(config, shape, classes, steps=steps, batch=batch, passes=passes) > COMPILE_SECONDS


def eager_seconds(
    config: NetConfig, shape: tuple[int, int, int], classes: int, *, steps: int, batch: int, passes: int = 3
) -> float:
    """About how long ``steps`` steps take on a plain CPU, uncompiled.

    ``passes`` is a step's cost in forward passes: 3 for a gradient, 12 for a matched student step.
    """
    flops = forward_flops(config, shape, classes) * passes * batch * steps
    return flops / EAGER_FLOPS + steps * EAGER_OVERHEAD * passes / 3


def faster_together(
    config: NetConfig, shape: tuple[int, int, int], classes: int, *, batch: int, compile_: bool
) -> bool:
    """Whether students of this network train faster side by side than one after the other.

    A rule on the settings alone, as :func:`worth_compiling`: the two ways differ in the last bits. Compiled
    steps are left alone: they have little dispatch to share, and would be compiled anew for a group.
    """
    if compile_ or has_batch_norm(config, shape, classes):
        return False
    return forward_flops(config, shape, classes) * batch <= TOGETHER_FLOPS
