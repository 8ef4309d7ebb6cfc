"""The meta-gradient: derivatives of the matching loss by images, labels and the student's learning rate.

The student takes N steps ``theta_{k+1} = theta_k - alpha * grad_theta loss(theta_k; A_k(x_k), y_k)``
from the window's start. The matching loss is the squared distance from its end to the target, divided by
that from the start to the target (MTT, section 3.2, equation 3). Three functions differentiate it:

- :func:`exact`: explicit reverse accumulation. Needs the memory of one step for any N, and some that is bounded; every
derivative is a forward program, which can be compiled.
- :func:`truncated`: TESLA's constant-memory variant (Cui et al. 2023), also used by MCT's code:
ignores how an early step changes the gradients of later steps.
- :func:`unrolled`: autograd through all N steps, as in MTT's code; memory grows with N. The
reference for tests of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rayddl.data.pixels import augment
from rayddl.methods.matching import augmented
from rayddl.methods.matching.settings import KEPT
from rayddl.methods.training.steps import Steps, gradient_only


@dataclass(frozen=True)
class StudentRun:
    """The input of an N-step student: the synthetic set, and for each step its batch and augmentation."""

    images: Tensor
    """The synthetic images ``[N, C, H, W]`` in model space."""
    labels: Tensor
    """Class probabilities ``[N, K]``."""
    lr: Tensor
    """The student's learning rate alpha, a scalar."""
    picks: Sequence[Tensor]
    """For each step, int64 indices of the batch's images, ``[B]``."""
    draws: Sequence[augment.Draw | None]
    """For each step, the augmentation of the batch."""
    skip: int = 0
    """Parameters at the start of the vector that the loss leaves out."""


@dataclass(frozen=True)
class MetaGradient:
    """The matching loss, a scalar, and its derivatives."""

    loss: Tensor
    images: Tensor
    """``[N, C, H, W]``."""
    labels: Tensor
    """With respect to the class probabilities, ``[N, K]``."""
    lr: Tensor
    """A scalar."""


Mode = Callable[[Steps, StudentRun, Tensor, Tensor], MetaGradient]


def matching_loss(end_P: Tensor, start_P: Tensor, target_P: Tensor, skip: int = 0) -> Tensor:
    """``|end - target|^2 / |start - target|^2`` without the first ``skip`` parameters, a scalar (MTT, section 3.2,
    equation 3; PAD leaves parameters of shallow layers out of both distances).
    """
    return (end_P - target_P)[skip:].square().sum() / (start_P - target_P)[skip:].square().sum()


def exact(steps: Steps, run: StudentRun, start_P: Tensor, target_P: Tensor) -> MetaGradient:
    """The full derivative in the memory of one step, N + 1 parameter vectors and at most :data:`KEPT` bytes.

    With lambda_N = dL/dtheta_N, step k adds ``-alpha * d(g_k . lambda)/dx`` to the images,
    ``-lambda . g_k`` to the learning rate, and passes ``lambda - alpha * H_k lambda`` to step k - 1. By
    symmetry, all three come from one Jacobian-vector product of the gradient function along lambda.
    """
    return _reverse(steps, run, start_P, target_P, through_theta=True)


def truncated(steps: Steps, run: StudentRun, start_P: Tensor, target_P: Tensor) -> MetaGradient:
    """The derivative with theta_k constant inside every gradient: lambda is dL/dtheta_N in all steps.

    TESLA, section 3.2. A step takes as long as in :func:`exact`, and the result is biased; it serves to
    reproduce TESLA and the published MCT code. Both write ``2 * autograd.grad(...)``, and in Python a tuple
    times two is the tuple repeated: their images get half of this derivative, the learning rate the whole of
    it. So a published ``lr_img`` of theirs is twice the ``lr_image`` of the same step here.
    """
    return _reverse(steps, run, start_P, target_P, through_theta=False)


def _reverse(
    steps: Steps, run: StudentRun, start_P: Tensor, target_P: Tensor, *, through_theta: bool
) -> MetaGradient:
    lengths, most = [len(picked) for picked in run.picks], augmented.limit(run.images)
    parts = augmented.parts(lengths, run.images[0].numel(), len(start_P), most)
    theta, paths, each = start_P, [], KEPT // len(run.picks)
    for part in parts:
        picks = run.picks[part]
        seen = augmented.batches_of(run.images, picks, run.draws[part])
        y = [run.labels[picked] for picked in picks]
        (*path, theta), kept = steps.ahead(theta, run.lr, seen.batches, y, each)
        paths.append((path, kept))
    end_P = theta
    scale = (start_P - target_P)[run.skip :].square().sum()
    lam = 2 * (end_P - target_P) / scale
    lam[: run.skip] = 0
    images, labels, lr = torch.zeros_like(run.images), torch.zeros_like(run.labels), torch.zeros_like(run.lr)
    back = steps.back if through_theta else steps.back_truncated
    for part in reversed(parts):
        picks = run.picks[part]
        seen = augmented.batches_of(run.images, picks, run.draws[part], differentiable=True)
        y = [run.labels[picked] for picked in picks]
        path, kept = paths.pop()
        lam, lr, mixed_x, mixed_y = back(lam, lr, run.lr, path, seen.batches, y, kept)
        # An index may occur more than once in a batch; index_add_ sums its gradients.
        for picked, pulled in seen.pulled(mixed_x):
            images.index_add_(0, picked, pulled * -run.lr)
        labels.index_add_(0, augmented.joined(picks), augmented.joined(mixed_y) * -run.lr)
    return MetaGradient(matching_loss(end_P, start_P, target_P, run.skip), images, labels, lr)


def unrolled(steps: Steps, run: StudentRun, start_P: Tensor, target_P: Tensor) -> MetaGradient:
    """The full derivative by autograd through all N steps, as in the published MTT code."""
    leaves = [t.detach().requires_grad_() for t in (run.images, run.labels, run.lr)]
    images, labels, lr = leaves
    with torch.enable_grad():
        theta = start_P.detach().requires_grad_()
        for picked, drawn in zip(run.picks, run.draws, strict=True):
            x = augment.apply(images[picked], drawn)
            theta = theta - lr * gradient_only(steps.net, theta, x, labels[picked])
        value = matching_loss(theta, start_P, target_P, run.skip)
        got = torch.autograd.grad(value, leaves)
    return MetaGradient(value.detach(), *got)


MODES: dict[str, Mode] = {"exact": exact, "truncated": truncated, "unrolled": unrolled}
