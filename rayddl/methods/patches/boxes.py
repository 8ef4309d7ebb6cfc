"""The pre-selected images and their random crops (RDED, section 4.1).

Both depend only on the seed and the image's name, so they are the same on every worker and in
every order.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

SCALE = (0.08, 1.0)
"""Smallest and largest share of the image's area in a crop."""
_TRIES = 10


def ranks(seed: int, names: Iterable[str]) -> NDArray[np.uint64]:
    """uint64 [N]: a pseudo-random rank per name. The lowest of a class are its pre-selected subset."""
    key = seed.to_bytes(8, "little", signed=True)
    digests = (hashlib.blake2b(n.encode(), digest_size=8, key=key).digest() for n in names)
    return np.fromiter((int.from_bytes(digest, sys.byteorder) for digest in digests), np.uint64)


def preselected(seed: int, names: Iterable[str], labels: NDArray[np.int32], mipc: int) -> NDArray[np.int64]:
    """Positions of ``mipc`` images of every class (all, if it has fewer), int64, ascending.

    ``labels`` is int32 ``[N]``. Reads names only, no images.
    """
    order = np.lexsort((ranks(seed, names), labels))
    sorted_labels = labels[order]
    starts = np.searchsorted(sorted_labels, sorted_labels, side="left")
    within = np.arange(len(order)) - starts
    return np.sort(order[within < mipc])


def crops(seed: int, name: str, height: int, width: int, count: int) -> NDArray[np.int32]:
    """``count`` random square crops of one image, int32 ``[count, 3]``: top, left, side.

    The distribution is torchvision's ``RandomResizedCrop(scale=(0.08, 1), ratio=(1, 1))``: a share of the
    area is drawn up to ten times until its square fits; otherwise the largest centred square is returned.
    """
    key = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=16).digest()
    draws = np.random.Generator(np.random.Philox(key=np.frombuffer(key, dtype=np.uint64)))
    uniform = draws.random((count, _TRIES, 3))
    areas = height * width * (SCALE[0] + (SCALE[1] - SCALE[0]) * uniform[..., 0])
    sides = np.rint(np.sqrt(areas)).astype(np.int32)
    fits = (sides > 0) & (sides <= min(height, width))
    first = np.argmax(fits, axis=1)
    rows = np.arange(count)
    side = sides[rows, first]
    top = (uniform[rows, first, 1] * (height - side + 1)).astype(np.int32)
    left = (uniform[rows, first, 2] * (width - side + 1)).astype(np.int32)
    found = np.stack([top, left, side], axis=1).astype(np.int32)
    found[~fits.any(axis=1)] = whole(height, width)
    return found


def whole(height: int, width: int) -> NDArray[np.int32]:
    """The largest centred square of an image, int32 ``[1, 3]``: top, left, side."""
    side = min(height, width)
    return np.array([[(height - side) // 2, (width - side) // 2, side]], dtype=np.int32)
