"""The arithmetic of ZCA: exact sums over bytes, symmetric square roots of a matrix, packed triangles."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

SHIFT = 128
"""Subtracted from each byte, so that products are small enough to be summed exactly."""
_EXACT_ROWS = 1024


def moments(parts: Iterable[Tensor], size: int) -> tuple[int, Tensor, Tensor]:
    """Count, sums [D] and sums of products [D, D] of the bytes minus 128 of the images in ``parts``, which have
    ``size`` = D bytes: exact, in float64.

    A product of two such bytes is at most 2^14, so the sum of 1,024 of them is at most 2^24 and
    exact in float32 in any order: as fast as any float32 product, without rounding.
    """
    count = 0
    sums = torch.zeros(size, dtype=torch.float64)
    products = torch.zeros(size, size, dtype=torch.float64)
    for images in parts:
        flat = images.flatten(1).cpu()
        count += len(flat)
        for part in slices(len(flat), _EXACT_ROWS):
            values = flat[part].float().sub_(SHIFT)
            sums += values.sum(0)
            products += values.T @ values
        del images, flat  # before the next part is read
    return count, sums, products


def covariance(count: int, sums: Tensor, products: Tensor) -> Tensor:
    """Unbiased covariance [D, D] of pixels in [0, 1]. Exact up to one division: integers stay below 2^53."""
    scaled = products * count - torch.outer(sums, sums)
    return scaled.div_(float(count) * (count - 1) * 255 * 255)


def spectral(vectors: Tensor, values: Tensor) -> Tensor:
    """U diag(values) Uᵀ, computed in float64, made exactly symmetric, returned as float32."""
    half = (vectors * values) @ vectors.T
    return half.add(half.T).div_(2).float()


def triangle(matrix: Tensor) -> Tensor:
    """The upper triangle of a symmetric matrix [D, D], row by row: [D (D + 1) / 2]."""
    return torch.cat([row[i:] for i, row in enumerate(matrix)])


def from_triangle(packed: Tensor, size: int) -> Tensor:
    """The symmetric matrix [size, size] packed by :func:`triangle`, bit for bit."""
    matrix = torch.empty(size, size, dtype=packed.dtype)
    start = 0
    for i in range(size):
        matrix[i, i:] = packed[start : start + size - i]
        start += size - i
    return matrix.triu_().add_(matrix.triu(1).T)


def slices(total: int, step: int) -> Iterator[slice]:
    """Slices that split ``total`` rows into parts of at most ``step``."""
    return (slice(start, start + step) for start in range(0, total, step))
