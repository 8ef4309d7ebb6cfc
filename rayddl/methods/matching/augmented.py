"""The augmented batches of a student's steps, and the way back from their derivatives to the synthetic images.

Augmentation does not depend on the student, so that a GPU, for which most of it is the launching of small kernels,
computes the batches of many steps at once: one call for each strategy that was drawn.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rayddl.data.pixels import augment
from rayddl.methods.matching.settings import GPU_PART

FLOAT = 4


def limit(images: Tensor) -> int:
    """Bytes of batches and parameter vectors up to which steps are computed together: 0 on a CPU, where the batch of a
    single step stays in the cache.
    """
    return GPU_PART if images.is_cuda else 0


def parts(lengths: Sequence[int], pixels: int, parameters: int, most: int) -> list[slice]:
    """The steps in consecutive parts of about equal length, each of batches of one size.

    ``lengths``: the images of each step's batch, of ``pixels`` numbers each. A part has at most ``most`` bytes, with a
    vector of ``parameters`` numbers for each step, or a single step.
    """
    found: list[slice] = []
    first = 0
    for k in range(1, len(lengths) + 1):
        if k == len(lengths) or lengths[k] != lengths[first]:
            found += _equal(first, k, most // (FLOAT * (lengths[first] * pixels + parameters)))
            first = k
    return found


def _equal(first: int, end: int, most: int) -> list[slice]:
    count = end - first
    size = math.ceil(count / math.ceil(count / max(1, most)))
    return [slice(k, min(k + size, end)) for k in range(first, end, size)]


@dataclass(frozen=True)
class _Group:
    """The steps of a part that drew the same strategy."""

    steps: list[int]
    """Their places in the part."""
    picked: Tensor
    """The indices of all their images, int64."""
    leaf: Tensor
    x: Tensor


@dataclass(frozen=True)
class AugmentedBatches:
    """The augmented batches of a part, in the order of its steps."""

    batches: list[Tensor]
    groups: list[_Group]

    def pulled(self, gradients: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Indices ``[M]`` of synthetic images, and derivatives ``[M, C, H, W]`` by the images at these indices.

        ``gradients``: derivatives by the batches of :func:`batches_of` with ``differentiable``.
        """
        for group in self.groups:
            along = joined([gradients[k] for k in group.steps])
            same = group.x is group.leaf
            yield group.picked, along if same else torch.autograd.grad(group.x, group.leaf, along)[0]


def batches_of(
    images: Tensor,
    picks: Sequence[Tensor],
    draws: Sequence[augment.Draw | None],
    *,
    differentiable: bool = False,
) -> AugmentedBatches:
    """The augmented batches of ``images`` ``[N, C, H, W]``, at indices ``picks``, int64 ``[B]`` for each step.

    All batches have one length. With ``differentiable``, :meth:`AugmentedBatches.pulled` may be called, once.
    """
    strategies: dict[str | None, list[int]] = {}
    for k, drawn in enumerate(draws):
        strategies.setdefault(None if drawn is None else drawn.name, []).append(k)
    batches: dict[int, Tensor] = {}
    groups = []
    for steps in strategies.values():
        picked = joined([picks[k] for k in steps])
        leaf = images[picked].detach().requires_grad_(differentiable)
        with torch.set_grad_enabled(differentiable):
            x = augment.apply(leaf, augment.joined([draws[k] for k in steps]))
        groups.append(_Group(steps, picked, leaf, x))
        batches.update(zip(steps, x.detach().chunk(len(steps)), strict=True))
    return AugmentedBatches([batches[k] for k in range(len(picks))], groups)


def joined(tensors: Sequence[Tensor]) -> Tensor:
    """The tensors one after the other along the first dimension; a single one is returned as it is."""
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))
