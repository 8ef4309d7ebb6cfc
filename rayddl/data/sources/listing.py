"""Listings: names, labels and locations of a split's images, made without reading an image.

Streams are planned from them. A listing of a million images is a few Arrow and NumPy columns, cheap to share.
It is sorted by name, in whatever order files were found, so a position in it identifies an image.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, Protocol, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rayddl.storage import Folder

Blob: TypeAlias = "bytes | NDArray[np.uint8] | Exception"
"""An image's encoded bytes, its pixels uint8 ``[C, H, W]`` if already decoded, or the error of reading it."""

CHUNK = 64
"""Largest number of images that are read together."""


class Store(Protocol):
    """Reads the images of a listing from its files. Cheap to send to a worker."""

    def read(self, listing: Listing) -> Iterator[Blob]:
        """The images of a short listing, in its order."""

    def unit(self, listing: Listing) -> NDArray[np.int64]:
        """int64 [N]: a number per image, equal for images that are best read together."""


@dataclass(frozen=True, eq=False)
class Listing:
    """The images of one split, sorted by name."""

    names: pa.Array
    """Unique name of each image: its path inside the source, or file and row."""
    labels: NDArray[np.int32]
    """[N], indices into ``classes``."""
    file: NDArray[np.int32]
    """[N], indices into the store's list of files, if it has one."""
    at: NDArray[np.int64]
    """[N], row or byte offset in that file."""
    size: NDArray[np.int64]
    """[N], bytes of each image, if the store needs them."""
    classes: tuple[str, ...]
    store: Store
    notes: tuple[str, ...] = ()
    """Sentences on what the source's files have and the splits leave out. A part of a listing has none."""

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, positions: NDArray[np.int64]) -> Listing:
        """The listing of the images at ``positions``, which must be ascending to keep the order of names."""
        return Listing(
            self.names.take(pa.array(positions)),
            self.labels[positions],
            self.file[positions],
            self.at[positions],
            self.size[positions],
            self.classes,
            self.store,
        )

    def counts(self) -> NDArray[np.int64]:
        """int64: images per class."""
        return np.bincount(self.labels, minlength=len(self.classes))

    def bounds(self) -> NDArray[np.int64]:
        """First positions of portions of up to ``CHUNK`` neighbours in one unit of the store, and the length."""
        unit = self.store.unit(self)
        breaks = np.flatnonzero(np.diff(unit)) + 1 if len(unit) else np.zeros(0, np.int64)
        edges = np.concatenate([[0], breaks, [len(self)]])
        return np.array([*_starts(edges), len(self)], dtype=np.int64)

    def read(self, positions: NDArray[np.int64]) -> Iterator[Blob]:
        """The images at ``positions``, in their order."""
        return self.store.read(self.take(positions))


def sorted_listing(
    names: Sequence[str] | pa.Array,
    labels: NDArray[np.int32],
    classes: tuple[str, ...],
    store: Store,
    *,
    notes: tuple[str, ...] = (),
    file: NDArray[np.int32] | None = None,
    at: NDArray[np.int64] | None = None,
    size: NDArray[np.int64] | None = None,
) -> Listing:
    """The listing of images that were found in any order, without the unlabelled ones (label -1)."""
    column = names if isinstance(names, pa.Array) else pa.array(names, pa.large_string())
    nothing = np.zeros(len(column), np.int64)
    found = Listing(
        column,
        np.asarray(labels, np.int32),
        nothing.astype(np.int32) if file is None else file,
        nothing if at is None else at,
        nothing if size is None else size,
        classes,
        store,
    )
    order = pc.sort_indices(column).to_numpy().astype(np.int64)
    order = order[found.labels[order] >= 0]
    return replace(found if np.array_equal(order, np.arange(len(column))) else found.take(order), notes=notes)


def _starts(edges: NDArray[np.int64]) -> Iterator[int]:
    for start, end in itertools.pairwise(edges.tolist()):
        yield from range(start, end, CHUNK)


def _tried(read: Callable[[], bytes]) -> Blob:
    try:
        return read()
    except (OSError, ValueError) as error:
        return error


@dataclass(frozen=True)
class FileStore:
    """One file per image; names are paths inside ``folder``."""

    folder: Folder

    def read(self, listing: Listing) -> Iterator[Blob]:
        yield from (_tried(partial(self.folder.read, name)) for name in listing.names.to_pylist())

    def unit(self, listing: Listing) -> NDArray[np.int64]:
        return np.zeros(len(listing), np.int64)


def read_inside(folder: Folder, name: str, follow_links: bool) -> bytes:
    """The file ``name`` inside ``folder``. Raises ``ValueError`` if links lead out of it, unless ``follow_links``."""
    if not follow_links and folder.leaves(name, folder):
        raise ValueError(f"a link leads out of {folder}; see source.follow_links")
    return folder.read(name)


@lru_cache(maxsize=2)
def _row_group(folder: Folder, name: str, group: int, column: str) -> pa.ChunkedArray:
    """A column of a row group. The last ones are cached, because the chunks of one group are read in sequence."""
    with folder.open(name) as stream:
        return pq.ParquetFile(stream).read_row_group(group, columns=[column]).column(0)


@dataclass(frozen=True)
class ParquetStore:
    """Rows of Parquet files, read a row group at a time."""

    folder: Folder
    files: tuple[str, ...]
    column: str
    group_rows: tuple[tuple[int, ...], ...]
    """For each file, the first row of each row group, followed by the number of rows."""
    follow_links: bool = False

    def read(self, listing: Listing) -> Iterator[Blob]:
        groups = self.unit(listing)
        edges = [0, *(np.flatnonzero(np.diff(groups)) + 1).tolist(), len(listing)]
        for start, end in itertools.pairwise(edges):
            yield from self._group(listing.file[start], listing.at[start:end])

    def _group(self, file: int, rows: NDArray[np.int64]) -> Iterator[Blob]:
        name, firsts = self.files[file], self.group_rows[file]
        group = int(np.searchsorted(firsts, rows[0], side="right")) - 1
        try:
            column = _row_group(self.folder, name, group, self.column)
            # Row by row, because an Arrow array of bytes holds at most 2 GiB and a row group may hold more.
            cells = [column[row].as_py() for row in (rows - firsts[group]).tolist()]
        except (OSError, pa.ArrowException) as error:
            yield from (error for _ in rows)
            return
        yield from self._blobs(cells)

    def _blobs(self, cells: Sequence[Any]) -> Iterator[Blob]:
        for cell in cells:
            found = cell if isinstance(cell, dict) else {"bytes": cell}
            if found.get("bytes") is None and found.get("path"):
                yield _tried(partial(read_inside, self.folder, found["path"], self.follow_links))
            else:
                yield ValueError("no bytes") if found.get("bytes") is None else found["bytes"]

    def unit(self, listing: Listing) -> NDArray[np.int64]:
        numbers = np.zeros(len(listing), np.int64)
        for index, firsts in enumerate(self.group_rows):
            here = listing.file == index
            numbers[here] = index * 2**32 + np.searchsorted(firsts, listing.at[here], side="right")
        return numbers


@dataclass(frozen=True)
class RangedStore:
    """The images of another store; those of 16 bits per pixel as PNG files of 8, of which ``white`` is 255."""

    inner: Store
    white: int

    def read(self, listing: Listing) -> Iterator[Blob]:
        for blob in self.inner.read(listing):
            yield blob if not isinstance(blob, bytes) else self._narrowed(blob)

    def _narrowed(self, blob: bytes) -> Blob:
        from rayddl.data.pixels.decode import narrowed

        try:
            return narrowed(blob, self.white)
        except Exception as error:  # the parsers raise many types for broken files
            return error

    def unit(self, listing: Listing) -> NDArray[np.int64]:
        return self.inner.unit(listing)


@dataclass(frozen=True)
class TarStore:
    """Members of tar files, read by offset and size."""

    folder: Folder
    files: tuple[str, ...]

    def read(self, listing: Listing) -> Iterator[Blob]:
        for file, at, size in zip(listing.file, listing.at, listing.size, strict=True):
            yield _tried(partial(self._member, self.files[file], int(at), int(size)))

    def _member(self, file: str, at: int, size: int) -> bytes:
        with self.folder.open(file) as stream:
            stream.seek(at)
            return bytes(stream.read(size))

    def unit(self, listing: Listing) -> NDArray[np.int64]:
        return listing.file.astype(np.int64)
