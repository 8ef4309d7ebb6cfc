"""The exact sums over images that a pixel space is fitted on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rayddl.data.pixels.whitening import moments, slices
from rayddl.errors import SourceError

ZCA_LARGEST = 3 * 64 * 64
"""Largest number of values per image for whitening: the size of its matrices is the square of it."""
SUMMED = 2**23
"""About the most numbers that are summed at a time, unless a single image has more."""

Shape = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class Sums:
    """Exact sums over images, of which a space is fitted; those of parts of a split add up to its own."""

    images: int
    sums: Tensor
    """``normalise``: int64 ``[C]``, of bytes; ``zca``: float64 ``[D]``, of bytes minus 128."""
    products: Tensor
    """``normalise``: int64 ``[C]``, of squares; ``zca``: float64 ``[D, D]``, of products."""

    def plus(self, more: Sums) -> Sums:
        """The sums over the images of both."""
        return Sums(self.images + more.images, self.sums + more.sums, self.products + more.products)


def summed(name: str, parts: Iterable[Tensor], shape: Shape) -> Sums:
    """The sums over uint8 images ``[n, C, H, W]`` that the pixel space ``name`` is fitted on.

    The images are given in parts, of which one is held at a time. ``shape``: theirs. Raises :class:`SourceError` for
    images that are too large for whitening, and ``ValueError`` for an unknown space.
    """
    if name not in _SUMMED:
        raise ValueError(f"unknown pixel space {name!r}; known: {', '.join(_SUMMED)}")
    return _SUMMED[name](parts, shape)


def sums_bytes(name: str, shape: Shape) -> int:
    """The bytes of these sums for images of ``shape``."""
    return 8 * _NUMBERS[name](shape)


def _sums_by_channel(parts: Iterable[Tensor], shape: Shape) -> Sums:
    channels, height, width = shape
    count = 0
    sums = torch.zeros(channels, dtype=torch.int64)
    squares = torch.zeros(channels, dtype=torch.int64)
    for images in parts:
        count += len(images)
        for part in slices(len(images), max(1, SUMMED // (channels * height * width))):
            values = images[part].cpu().to(torch.int64)
            sums += values.sum((0, 2, 3))
            squares += values.square_().sum((0, 2, 3))
        del images  # before the next part is read
    return Sums(count, sums, squares)


def _products(parts: Iterable[Tensor], shape: Shape) -> Sums:
    channels, height, width = shape
    size = channels * height * width
    if size > ZCA_LARGEST:
        raise SourceError(
            f"space: zca needs a {size:,} x {size:,} matrix for images of {channels} x {height} x {width} "
            f"pixels; it is offered up to 64 x 64 RGB ({ZCA_LARGEST:,} numbers per image). "
            "Set source.space=normalise, or a smaller source.size.",
            code="images-too-large-for-zca",
        )
    return Sums(*moments(parts, size))


_SUMMED: Mapping[str, Callable[[Iterable[Tensor], Shape], Sums]] = {
    "normalise": _sums_by_channel,
    "zca": _products,
}
_NUMBERS: Mapping[str, Callable[[Shape], int]] = {
    "normalise": lambda shape: 2 * shape[0],
    "zca": lambda shape: math.prod(shape) ** 2,
}
