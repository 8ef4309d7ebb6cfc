"""Tensors in a temporary file without a name, for sets of images that may exceed memory."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

LEAST_BYTES = 64 * 2**20
"""Tensors with fewer bytes are in memory."""


def empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A tensor of ``shape`` to be filled. A large one maps a file, whose pages the kernel writes out where memory is
    short; it is in memory if the disk has too little space.
    """
    size = math.prod(shape) * dtype.itemsize
    if size < LEAST_BYTES or not hasattr(os, "posix_fallocate"):
        return torch.empty(tuple(shape), dtype=dtype)
    try:
        with tempfile.TemporaryFile() as file:
            # A page that the disk has no space for would end the process when it is written.
            os.posix_fallocate(file.fileno(), 0, size)
            array = np.memmap(file, np.uint8, "r+", shape=(size,))
    except OSError:
        return torch.empty(tuple(shape), dtype=dtype)
    return torch.from_numpy(array).view(dtype).view(tuple(shape))


def stacked(parts: Iterable[Tensor], shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """The rows of ``parts`` one after the other, at most ``shape[0]``, as :func:`empty` holds them."""
    whole, count = empty(shape, dtype), 0
    for part in parts:
        whole[count : count + len(part)] = part
        count += len(part)
    return whole[:count]
