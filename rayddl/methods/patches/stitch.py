"""Stitches several patches to one image (RDED, section 4.2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def tiles(size: int, factor: int) -> tuple[tuple[int, int], ...]:
    """Start and length, in pixels, of ``factor`` tiles along one side; the first ones get the remainder."""
    least, more = divmod(size, factor)
    lengths = [least + (k < more) for k in range(factor)]
    starts = [sum(lengths[:k]) for k in range(factor)]
    return tuple(zip(starts, lengths, strict=True))


def places(ipc: int, factor: int) -> list[list[int]]:
    """For each of ``ipc`` images, the ranks of its factor² patches, row by row from the top left.

    The best ``ipc`` patches are in the first place of the images, the next ``ipc`` in the second, and so
    on, as published: every image has patches of all ranks.
    """
    return [[place * ipc + image for place in range(factor**2)] for image in range(ipc)]


def stitched(patches: Sequence[Tensor], size: int, factor: int) -> Tensor:
    """factor² patches uint8 ``[C, h, w]``, each of its tile's size, as one uint8 image ``[C, size, size]``."""
    spans = tiles(size, factor)
    image = torch.empty((patches[0].shape[0], size, size), dtype=torch.uint8)
    for place, patch in enumerate(patches):
        (top, height), (left, width) = spans[place // factor], spans[place % factor]
        image[:, top : top + height, left : left + width] = patch
    return image
