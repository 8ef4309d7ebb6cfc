"""The functions of one SGD step, on flat parameter vectors.

``theta_P`` holds all parameters, ``x`` is images ``[B, C, H, W]``, ``y`` is class probabilities
``[B, K]``: a hard label is a one-hot row. The loss is the mean cross-entropy over the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, grad_and_value, jvp
from torch.nn import functional as F

from rayddl.nets.build import FlatNet, flat
from rayddl.nets.compiling import compiled
from rayddl.nets.config import NetConfig


@dataclass(frozen=True)
class Steps:
    """A network's step functions, compiled where wanted. Compilation happens at the first call."""

    net: FlatNet
    gradient: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    """``(theta, x, y) -> (gradient [P], loss [])``."""
    tangent: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor, Tensor]]
    """``(theta, x, y, v [P])`` -> derivatives along v of (loss, gradient, d loss/dx, d loss/dy):
    ``(g.v [], H v [P], d(g.v)/dx [B, C, H, W], d(g.v)/dy [B, K])`` by symmetry."""
    logits: Callable[[Tensor, Tensor], Tensor]
    """``(theta, x) -> [B, K]``."""
    eager: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    """``gradient`` uncompiled, for the odd last batch of an epoch: not worth a compilation."""


def loss(net: FlatNet, theta_P: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropy of the network's logits against probabilities ``y``."""
    return F.cross_entropy(net(theta_P, x), y)


def make_steps(net: FlatNet, *, compile_: bool = True) -> Steps:
    """The step functions of ``net``."""

    def objective(theta_P: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return loss(net, theta_P, x, y)

    def gradient(theta_P: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        out: tuple[Tensor, Tensor] = grad_and_value(objective)(theta_P, x, y)
        return out

    def tangent(theta_P: Tensor, x: Tensor, y: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        # The primal gradient is not returned, so that a compiler drops the products it needs.
        derivative: Any = jvp(
            lambda theta: grad_and_value(objective, argnums=(0, 1, 2))(theta, x, y), (theta_P,), (v,)
        )
        (Hv, mixed_x, mixed_y), gv = derivative[1]
        return gv, Hv, mixed_x, mixed_y

    def logits(theta_P: Tensor, x: Tensor) -> Tensor:
        return net(theta_P, x)

    return Steps(
        net,
        compiled(gradient, wanted=compile_),
        compiled(tangent, wanted=compile_),
        compiled(logits, wanted=compile_),
        gradient,
    )


@lru_cache(maxsize=8)
def steps_for(
    config: NetConfig, shape: tuple[int, int, int], classes: int, precision: str, compile_: bool
) -> Steps:
    """The step functions of a network by name; a process compiles each of them once."""
    return make_steps(flat(config, shape, classes, precision=precision), compile_=compile_)


def gradient_only(net: FlatNet, theta_P: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The gradient by autograd with its graph kept, for differentiating through it again."""
    g: Tensor = grad(lambda theta: loss(net, theta, x, y))(theta_P)
    return g


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """Int64 labels ``[N]`` as float32 probabilities ``[N, K]``; probabilities pass unchanged."""
    return labels if labels.is_floating_point() else F.one_hot(labels, classes).to(torch.float32)


def sgd(
    theta_P: Tensor,
    gradient_P: Tensor,
    velocity_P: Tensor | None,
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
) -> None:
    """One SGD step in place, as ``torch.optim.SGD`` takes it (no dampening, no Nesterov)."""
    if weight_decay:
        gradient_P = gradient_P.add(theta_P, alpha=weight_decay)
    if velocity_P is not None:
        velocity_P.mul_(momentum).add_(gradient_P)
        gradient_P = velocity_P
    theta_P.sub_(gradient_P, alpha=lr)
