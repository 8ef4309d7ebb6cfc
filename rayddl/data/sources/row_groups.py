"""Row groups of Parquet files, decoded a portion at a time: a small file can hold large ones."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any

import pyarrow as pa

from rayddl.data.sources import parquet_bounds
from rayddl.storage import Folder


class RowGroup:
    """A column of one row group. The portions decoded last are kept, up to ``parquet_bounds.PORTION_BYTES``.

    Rows are decoded in order. A row before those that are kept is reached by decoding again from the first.
    """

    def __init__(self, folder: Folder, name: str, size: int, group: int, column: str) -> None:
        self._place, self._lock = (folder, name, size, group, column), threading.Lock()
        self._restart()

    def cells(self, rows: Iterable[int]) -> Iterator[Any]:
        """The cells of ``rows``, counted from the group's first. Raises Arrow's errors and ``OSError``."""
        for row in rows:
            with self._lock:
                cell = self._cell(row)
            yield cell

    def _restart(self) -> None:
        self._portions: Iterator[pa.ChunkedArray] | None = None
        self._kept: deque[pa.ChunkedArray] = deque()
        self._first = self._after = 0

    def _cell(self, row: int) -> Any:
        if row < self._first:
            self._restart()
        while row >= self._after:
            self._advance()
        start = self._first
        for portion in self._kept:
            if row < start + len(portion):
                # One cell, because an Arrow array of bytes holds at most 2 GiB and a portion may have several.
                return portion[row - start].as_py()
            start += len(portion)
        raise AssertionError("rows are kept without gaps")

    def _advance(self) -> None:
        try:
            self._portions = self._portions or _portions(*self._place)
            new = next(self._portions, None)
        except BaseException:
            self._restart()  # so that reading can be tried again
            raise
        if new is None:
            self._restart()
            raise pa.ArrowInvalid("the row group has fewer rows than the file says")
        self._kept.append(new)
        self._after += len(new)
        while len(self._kept) > 1 and sum(each.nbytes for each in self._kept) > parquet_bounds.PORTION_BYTES:
            self._first += len(self._kept.popleft())


row_group = lru_cache(maxsize=2)(RowGroup)
"""The last ones are cached, because the chunks of one group are read in sequence."""


def _portions(folder: Folder, name: str, size: int, group: int, column: str) -> Iterator[pa.ChunkedArray]:
    if folder.far:
        fragment = _fragment(folder, name, size)
        rows = parquet_bounds.rows_at_once(fragment.metadata, column, group)
        part = fragment.subset(row_group_ids=[group])
        found = part.to_batches(columns=[column], batch_size=rows, batch_readahead=1, use_threads=False)
    else:
        file = parquet_bounds.reader(folder.open(name))
        rows = parquet_bounds.rows_at_once(file.metadata, column, group)
        found = file.iter_batches(rows, row_groups=[group], columns=[column])
    return parquet_bounds.portions(found, rows)


@lru_cache(maxsize=64)
def _fragment(folder: Folder, name: str, size: int) -> Any:
    """A remote file of known size, with its footer. A row group of it is then one request."""
    import pyarrow.dataset as ds

    filesystem, path = folder.on(name)
    fragment = ds.ParquetFileFormat().make_fragment(path, filesystem, file_size=size)
    fragment.ensure_complete_metadata()
    return fragment
