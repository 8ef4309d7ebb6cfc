"""Rows that may exceed memory: from a certain size on, they are in a file."""

from __future__ import annotations

import tempfile
from typing import IO

import numpy as np
import torch
from torch import Tensor

HELD = 2**28
"""Most bytes of rows that are held in memory."""
PORTION = 2**27
"""Most bytes of the float64 numbers computed from rows at a time, unless a single row has more."""


class FeatureRows:
    """Collects rows. More than ``held`` bytes of them go into a temporary file, whose space is free again when the
    rows are no longer used.
    """

    def __init__(self, held: int = HELD) -> None:
        self._held = held
        self._parts: list[Tensor] = []
        self._bytes = 0
        self._count = 0
        self._file: IO[bytes] | None = None

    def add(self, part: Tensor) -> None:
        """Append ``part`` ``[n, …]``, on the CPU."""
        self._parts.append(part)
        self._bytes += part.nbytes
        self._count += len(part)
        if self._bytes <= self._held:
            return
        if self._file is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed in joined
        shape, dtype = part.shape[1:], part.dtype
        for waiting in self._parts:
            self._file.write(waiting.contiguous().numpy().data)
        # One row of none keeps shape and type.
        self._parts = [torch.empty(0, *shape, dtype=dtype)]

    def joined(self) -> Tensor:
        """All rows ``[N, …]``, in memory or mapped from the file. Nothing can be added afterwards."""
        if self._file is None:
            return torch.cat(self._parts)
        like = self._parts[0]
        with self._file as file:
            # The mapping remains when the file is closed; written pages go back to the file, not to memory.
            mapped = np.memmap(file, like.numpy().dtype, "r+", shape=(self._count, *like.shape[1:]))
        return torch.from_numpy(mapped)


def portion(width: int, most: int) -> int:
    """How many of ``most`` rows of ``width`` numbers are converted to float64 at a time."""
    return max(1, min(most, PORTION // (8 * width)))
