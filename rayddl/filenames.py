"""Names of files by the million, in Arrow columns: a Python string for each would take several times the memory."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from typing import overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

AT_ONCE = 16_384
"""Names that are Python strings at the same time while all are looked at."""


@dataclass(frozen=True, eq=False)
class Names(Sequence[str]):
    """Names in a column; those that are asked for become Python strings."""

    column: pa.Array

    @classmethod
    def of(cls, names: Iterable[str]) -> Names:
        """The given names, in their order."""
        return cls(_column(list(names)))

    def __len__(self) -> int:
        return len(self.column)

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> Names: ...
    def __getitem__(self, at: int | slice) -> str | Names:
        return Names(self.column[at]) if isinstance(at, slice) else str(self.column[at].as_py())

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), AT_ONCE):
            yield from self.column.slice(start, AT_ONCE).to_pylist()

    def take(self, positions: NDArray[np.int64]) -> Names:
        """The names at ``positions``, in their order."""
        whole = np.ascontiguousarray(positions, np.int64)
        indices = pa.Array.from_buffers(pa.int64(), len(whole), [None, pa.py_buffer(whole)])
        return Names(self.column.take(indices))


@dataclass(frozen=True, eq=False)
class FileList:
    """Files, sorted by name."""

    names: Names
    """Names relative to the folder that was listed."""
    bytes: NDArray[np.int64]
    """[N], the size of each."""

    @classmethod
    def of(cls, files: Iterable[tuple[str, int]]) -> FileList:
        """The given names and sizes, which may come in any order."""
        # Columns that grow: pieces to be joined would leave holes of their size in the process's memory.
        data, ends, sizes, left = pa.BufferOutputStream(), array("q", (0,)), array("q"), iter(files)
        while some := list(islice(left, AT_ONCE)):
            encoded = [name.encode() for name, _ in some]
            ends.extend(islice(accumulate(map(len, encoded), initial=ends[-1]), 1, None))
            sizes.extend(size for _, size in some)
            data.write(b"".join(encoded))
        column = pa.LargeStringArray.from_buffers(len(sizes), pa.py_buffer(ends), data.getvalue())
        # The order of UTF-8's bytes is that of the characters.
        order = np.frombuffer(pc.sort_indices(column).buffers()[1], np.uint64).astype(np.int64)
        found = cls(Names(column).take(order), np.frombuffer(sizes, np.int64)[order])
        del column, data
        pa.default_memory_pool().release_unused()
        return found

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[tuple[str, int]]:
        for some in self.batches():
            yield from some

    def batches(self) -> Iterator[list[tuple[str, int]]]:
        """The files in order, at most ``AT_ONCE`` together."""
        for start in range(0, len(self), AT_ONCE):
            some = slice(start, start + AT_ONCE)
            yield list(zip(self.names[some], self.bytes[some].tolist(), strict=True))

    def take(self, positions: NDArray[np.int64]) -> FileList:
        """The files at ``positions``, which must be ascending to keep the order of names."""
        if len(positions) == len(self):
            return self
        return FileList(self.names.take(positions), self.bytes[positions])


def _column(names: Sequence[str]) -> pa.Array:
    # From a list, Arrow would import pandas if that is installed: a third of a second of every plan.
    data = [name.encode() for name in names]
    ends = np.cumsum([0, *map(len, data)], dtype=np.int64)
    return pa.LargeStringArray.from_buffers(len(data), pa.py_buffer(ends), pa.py_buffer(b"".join(data)))
