"""The functions of one SGD step, on flat parameter vectors.

``theta_P`` holds all parameters, ``x`` is images ``[B, C, H, W]``, ``y`` is class probabilities
``[B, K]``: a hard label is a one-hot row. The loss is the mean cross-entropy over the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.func import grad_and_value, jvp, vmap
from torch.nn import functional as F

from rayddl import plugins
from rayddl.data.pixels.encoded import Encoded
from rayddl.methods.training.sweeps import Ahead, Back, Store, Sweeps, Together
from rayddl.nets.build import flat
from rayddl.nets.compiling import compiled
from rayddl.nets.config import NetConfig
from rayddl.nets.flat import FlatNet
from rayddl.nets.recording import recorded

TINY = 1e-12
"""Keeps the directions of gradients of length 0 finite."""


@dataclass(frozen=True)
class Steps:
    """A network's step functions, compiled if wanted, at the first call."""

    net: FlatNet
    gradient: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    """``(theta, x, y) -> (gradient [P], loss [])``."""
    tangent: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor, Tensor]]
    """``(theta, x, y, v [P])`` -> derivatives along v of (loss, gradient, d loss/dx, d loss/dy):
    ``(g.v [], H v [P], d(g.v)/dx [B, C, H, W], d(g.v)/dy [B, K])`` by symmetry."""
    logits: Callable[[Tensor, Tensor], Tensor]
    """``(theta, x) -> [B, K]``; a theta of ``[P + S]`` includes the running statistics for testing."""
    eager: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    """``gradient`` uncompiled, for the smaller last batch of an epoch, whose shape is not worth compiling."""
    tracked: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
    """``(theta, statistics [S], x, y) -> (gradient [P], loss [], statistics [S] after the batch)``, for
    networks with batch norm."""
    tracked_eager: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
    """``tracked`` uncompiled."""
    ahead: Ahead
    """``(theta, lr [], x of each step, y of each step, most)`` -> theta before each step of SGD, and after the last;
    and for each step what :attr:`back` need not compute again. Compiled steps on a CPU keep up to ``most`` bytes each,
    or nothing; others nothing."""
    back: Back
    """From the last step of :attr:`ahead` to the first: ``(lambda [P], total [], lr [], theta before each step, x of
    each, y of each, what each kept)`` -> lambda before the first step, where each step subtracts ``lr H lambda``;
    ``total`` less every ``g . lambda``; and for each step, the derivatives of ``g . lambda`` by x and by y."""
    back_truncated: Back
    """:attr:`back` with the same lambda at every step."""
    bytes_kept: Callable[[Tensor, Tensor, Tensor], int]
    """``(theta, x, y)`` -> the bytes that :attr:`ahead` keeps for a step of such a batch, if it may keep so many."""
    side_by_side: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    """``gradient`` for S students with separate data: ``(theta [S, P], x [S, B, C, H, W], y [S, B, K]) ->
    (gradients [S, P], losses [S])``, uncompiled; for networks without batch norm."""

    def training(
        self, theta_P: Tensor, statistics_S: Tensor | None, x: Tensor, y: Tensor, *, usual: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Gradient ``[P]``, loss ``[]`` and running statistics after a training batch.

        ``statistics_S`` comes from :func:`fresh_statistics`; ``None`` without batch norm. ``usual``: the
        batch has the size for which functions are compiled.
        """
        if statistics_S is None:
            gradient, value = (self.gradient if usual else self.eager)(theta_P, x, y)
            return gradient, value, None
        return (self.tracked if usual else self.tracked_eager)(theta_P, statistics_S, x, y)

    def flat_training(
        self,
        theta_P: Tensor,
        statistics_S: Tensor | None,
        x: Tensor,
        y: Tensor,
        rho: float,
        alpha: float,
        *,
        usual: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """As :meth:`training`, with GSAM's gradient (Zhuang et al. 2022), by which FTD trains experts.

        With g at theta and g' at ``theta + rho theta² g / |theta g|``, products by element, both gradients of the
        batch, it is g' minus ``alpha`` times the part of g that is perpendicular to g'. The step is the adaptive one
        (Kwon et al. 2021), longer for larger parameters, which the codes of FTD, DATM and PAD take by default. Running
        statistics are those of the first pass.
        """
        g, value, after = self.training(theta_P, statistics_S, x, y, usual=usual)
        size = g.norm()
        scaled = theta_P * g
        climbed = theta_P + theta_P * scaled * (rho / (scaled.norm() + TINY))
        uphill, _, _ = self.training(climbed, statistics_S, x, y, usual=usual)
        length = uphill.norm()
        cosine = (g @ uphill) / (length * size + TINY)
        aside = g - uphill * (cosine * size / (length + TINY))
        return uphill - alpha * aside, value, after

    def needs_two(self, theta_P: Tensor, x: Tensor | Encoded) -> bool:
        """True if one image cannot be trained on alone: batch norm of features of one pixel has no variance.

        ``x`` ``[B, C, H, W]`` are any images.
        """
        statistics_S = self.fresh_statistics(x.device)
        if statistics_S is None:
            return False
        try:
            with torch.no_grad():
                self.net.track(theta_P, statistics_S, x[:1])
        except ValueError:
            return True
        return False

    def fresh_statistics(self, device: torch.device) -> Tensor | None:
        """The running statistics ``[S]`` of an untrained network; ``None`` without batch norm."""
        known = self.net.statistics
        return None if known is None else known.start_S.to(device, copy=True)


def loss(net: FlatNet, theta_P: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropy of the network's logits and probabilities ``y``, a scalar."""
    return F.cross_entropy(net(theta_P, x), y)


def make_steps(net: FlatNet, *, compile_: bool = True, graphs: bool = False) -> Steps:
    """The step functions of ``net``; with ``graphs``, compiled ones run as CUDA graphs on a GPU."""

    def objective(theta_P: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return loss(net, theta_P, x, y)

    def gradient(theta_P: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        out: tuple[Tensor, Tensor] = grad_and_value(objective)(theta_P, x, y)
        return out

    def tangent(theta_P: Tensor, x: Tensor, y: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        # The primal gradient is not returned, so that the compiler removes its products.
        derivative: Any = jvp(
            lambda theta: grad_and_value(objective, argnums=(0, 1, 2))(theta, x, y), (theta_P,), (v,)
        )
        (Hv, mixed_x, mixed_y), gv = derivative[1]
        return gv, Hv, mixed_x, mixed_y

    def tracked(theta_P: Tensor, statistics_S: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        def observed(theta: Tensor) -> tuple[Tensor, Tensor]:
            out, after = net.track(theta, statistics_S, x)
            return F.cross_entropy(out, y), after

        gradient_P, (value, after) = grad_and_value(observed, has_aux=True)(theta_P)
        return gradient_P, value, after

    def logits(theta_P: Tensor, x: Tensor) -> Tensor:
        return net(theta_P, x)

    # autograd.grad gives the same bits as torch.func, which would load torch's compiler, for seconds.
    def eager(theta_P: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            theta = theta_P.detach().requires_grad_()
            value = objective(theta, x, y)
            (gradient_P,) = torch.autograd.grad(value, theta)
        return gradient_P, value.detach()

    def tracked_eager(
        theta_P: Tensor, statistics_S: Tensor, x: Tensor, y: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        with torch.enable_grad():
            theta = theta_P.detach().requires_grad_()
            out, after = net.track(theta, statistics_S, x)
            value = F.cross_entropy(out, y)
            (gradient_P,) = torch.autograd.grad(value, theta)
        return gradient_P, value.detach(), after.detach()

    # A graph of a whole part has no use for graphs of its steps.
    one_gradient = compiled(gradient) if compile_ else eager
    one_tangent = compiled(tangent, wanted=compile_)
    sweeps = Sweeps(one_gradient, one_tangent, Together(gradient, tangent, wanted=compile_), Store())
    replayed = compile_ and graphs
    return Steps(
        net,
        compiled(gradient, graphs=True) if replayed else one_gradient,
        one_tangent,
        compiled(logits, wanted=compile_, graphs=graphs),
        eager,
        compiled(tracked, graphs=graphs) if compile_ else tracked_eager,
        tracked_eager,
        _replayed(sweeps) if replayed else sweeps.ahead,
        recorded(partial(sweeps.back, through_theta=True), wanted=replayed),
        recorded(partial(sweeps.back, through_theta=False), wanted=replayed),
        sweeps.bytes_kept,
        vmap(gradient),
    )


def _replayed(sweeps: Sweeps) -> Ahead:
    # What is recorded takes tensors alone.
    forwards = recorded(sweeps.ahead)

    def ahead(
        theta_P: Tensor, lr: Tensor, x: Sequence[Tensor], y: Sequence[Tensor], most: int
    ) -> tuple[list[Tensor], list[list[Tensor]]]:
        return forwards(theta_P, lr, x, y) if theta_P.is_cuda else sweeps.ahead(theta_P, lr, x, y, most)

    return ahead


def steps_for(
    config: NetConfig,
    shape: tuple[int, int, int],
    classes: int,
    precision: str,
    compile_: bool,
    graphs: bool = False,
) -> Steps:
    """The step functions of a configured network; cached, so that a process compiles each once."""
    # Explicit arguments, because a cache distinguishes an omitted argument from its default.
    return _made(config, shape, classes, precision, compile_, graphs)


@plugins.forgotten
@lru_cache(maxsize=8)
def _made(
    config: NetConfig, shape: tuple[int, int, int], classes: int, precision: str, compile_: bool, graphs: bool
) -> Steps:
    return make_steps(flat(config, shape, classes, precision=precision), compile_=compile_, graphs=graphs)


def gradient_only(net: FlatNet, theta_P: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The gradient ``[P]`` at a ``theta_P`` that requires one, with its graph, to be differentiated again."""
    (gradient_P,) = torch.autograd.grad(loss(net, theta_P, x, y), theta_P, create_graph=True)
    return gradient_P


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """int64 labels ``[N]`` as float32 probabilities ``[N, K]``; probabilities are returned unchanged."""
    return labels if labels.is_floating_point() else F.one_hot(labels, classes).to(torch.float32)


def batches(order: Tensor, size: int, *, never_one: bool) -> tuple[Tensor, ...]:
    """``order`` ``[N]`` in batches of ``size`` and a smaller last one. With ``never_one``, a last one of a single image
    joins the one before it.
    """
    parts: tuple[Tensor, ...] = order.split(size)
    if never_one and len(parts) > 1 and len(parts[-1]) == 1:
        return (*parts[:-2], torch.cat(parts[-2:]))
    return parts


def sgd(
    theta_P: Tensor,
    gradient_P: Tensor,
    velocity_P: Tensor | None,
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
) -> None:
    """Take one SGD step in place, as in ``torch.optim.SGD`` (no dampening, no Nesterov)."""
    if weight_decay:
        gradient_P = gradient_P.add(theta_P, alpha=weight_decay)
    if velocity_P is not None:
        velocity_P.mul_(momentum).add_(gradient_P)
        gradient_P = velocity_P
    theta_P.sub_(gradient_P, alpha=lr)
