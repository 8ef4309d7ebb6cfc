"""Listings: names, labels and locations of a split's images, made without reading an image.

Streams are planned from them. A listing of a million images is a few Arrow and NumPy columns, cheap to share.
It is sorted by name, in whatever order files were found, so a position in it identifies an image.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rayddl import limits, s3
from rayddl.data.ahead import ahead
from rayddl.data.sources.refusals import unreachable
from rayddl.data.sources.row_groups import row_group
from rayddl.filenames import Names
from rayddl.storage import Folder, UnreachableError

Blob: TypeAlias = "bytes | NDArray[np.uint8] | Exception"
"""An image's encoded bytes, its pixels uint8 ``[C, H, W]`` if already decoded, or the error of reading it."""

CHUNK = 64
"""Largest number of images that are read together."""
GAP = 128 * 1024
"""Bytes between two members of a tar file that are read and dropped, because another request takes longer."""
SPAN = 8 * 2**20
"""Most bytes of members that one request reads, unless a single one has more."""


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
    """[N], encoded bytes of each image, where its files' listing gives them; else 0."""
    classes: tuple[str, ...]
    store: Store
    notes: tuple[str, ...] = ()
    """Sentences on what the source's files have and the splits leave out. A part of a listing has none."""

    def __len__(self) -> int:
        return len(self.labels)

    def each_name(self) -> Iterator[str]:
        """The names in order; those of a million images as Python strings would be 100 MiB at once."""
        return iter(Names(self.names))

    def take(self, positions: NDArray[np.int64]) -> Listing:
        """The listing of the images at ``positions``, which must be ascending to keep the order of names."""
        if len(positions) == len(self) and np.array_equal(positions, np.arange(len(self))):
            return replace(self, notes=())
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
    found = Listing(
        column,
        np.asarray(labels, np.int32),
        _zeros(len(column), np.int32) if file is None else file,
        _zeros(len(column), np.int64) if at is None else at,
        _zeros(len(column), np.int64) if size is None else size,
        classes,
        store,
    )
    order = pc.sort_indices(column).to_numpy().astype(np.int64)
    return replace(found.take(order[found.labels[order] >= 0]), notes=notes)


def _zeros(count: int, dtype: type[np.integer[Any]]) -> NDArray[Any]:
    """Zeros that need the memory of one."""
    return np.broadcast_to(dtype(0), count)


def _starts(edges: NDArray[np.int64]) -> Iterator[int]:
    for start, end in itertools.pairwise(edges.tolist()):
        yield from range(start, end, CHUNK)


def _tried(read: Callable[[], bytes]) -> Blob:
    try:
        return read()
    except UnreachableError as error:
        raise unreachable(error) from error
    except (OSError, ValueError) as error:
        return error


@dataclass(frozen=True)
class FileStore:
    """One file per image; names are paths inside ``folder``."""

    folder: Folder

    def read(self, listing: Listing) -> Iterator[Blob]:
        reads = (partial(_tried, partial(self.folder.read, name)) for name in listing.names.to_pylist())
        return ahead(zip(reads, listing.size.tolist(), strict=True), threaded=self.folder.far)

    def unit(self, listing: Listing) -> NDArray[np.int64]:
        return np.zeros(len(listing), np.int64)


def read_inside(folder: Folder, name: str, follow_links: bool) -> bytes:
    """The file ``name`` inside ``folder``. Raises ``ValueError`` if links lead out of it, unless ``follow_links``."""
    if not follow_links and folder.leaves(name, folder):
        raise ValueError(f"a link leads out of {folder}; see source.follow_links")
    return folder.read(name)


@dataclass(frozen=True)
class ParquetStore:
    """Rows of Parquet files, read a row group at a time."""

    folder: Folder
    files: tuple[str, ...]
    column: str
    group_rows: tuple[tuple[int, ...], ...]
    """For each file, the first row of each row group, followed by the number of rows."""
    follow_links: bool = False
    sizes: tuple[int, ...] = ()
    """The bytes of each file, needed on remote storage."""

    def read(self, listing: Listing) -> Iterator[Blob]:
        groups = self.unit(listing)
        edges = [0, *(np.flatnonzero(np.diff(groups)) + 1).tolist(), len(listing)]
        spans = [(listing.file[start], listing.at[start:end]) for start, end in itertools.pairwise(edges)]
        far = self.folder.far
        found = ahead(((partial(self._cells, *span), 0) for span in spans), threaded=far, window=2)
        for cells in found:
            reads = ((partial(self._blob, cell), 0) for cell in cells)
            yield from ahead(reads, threaded=far and any(map(_by_path, cells)))

    def _group(self, file: int, rows: NDArray[np.int64]) -> int:
        return int(np.searchsorted(self.group_rows[file], rows[0], side="right")) - 1

    def _cells(self, file: int, rows: NDArray[np.int64]) -> Iterable[Any]:
        """The images of ``rows``, which are of one row group, or the error of reading each."""
        name, size = self.files[file], self.sizes[file] if self.sizes else 0
        number = self._group(file, rows)
        group = row_group(self.folder, name, size, number, self.column)
        inside = (rows - self.group_rows[file][number]).tolist()
        if not self.folder.far:
            return _each(group.cells(inside), len(inside))
        try:
            return s3.patiently(lambda: list(group.cells(inside)), (OSError,), 3)
        except (OSError, pa.ArrowException) as error:
            # The reader has the same error for a damaged file and for storage that does not answer.
            _tried(partial(self.folder.read, name, 4))
            return [error] * len(inside)

    def _blob(self, cell: Any) -> Blob:
        if isinstance(cell, Exception):
            return cell
        if _by_path(cell) and cell.get("path"):
            return _tried(partial(read_inside, self.folder, cell["path"], self.follow_links))
        data: bytes | None = cell.get("bytes") if isinstance(cell, dict) else cell
        if data is None:
            return ValueError("no bytes")
        fault = too_large(data)
        return ValueError(fault) if fault else data

    def unit(self, listing: Listing) -> NDArray[np.int64]:
        numbers = np.zeros(len(listing), np.int64)
        for index, firsts in enumerate(self.group_rows):
            here = listing.file == index
            numbers[here] = index * 2**32 + np.searchsorted(firsts, listing.at[here], side="right")
        return numbers


def too_large(data: bytes) -> str:
    """The sentence for an image of more bytes than :data:`rayddl.limits.CELL_BYTES`; empty for others."""
    return limits.CELL_BYTES.exceeded(len(data), "bytes") if len(data) > limits.CELL_BYTES.value else ""


def _each(cells: Iterator[Any], count: int) -> Iterator[Any]:
    """``cells``, and the error that ends them in place of those of ``count`` that are missing."""
    done = 0
    try:
        for cell in cells:
            yield cell
            done += 1
    except (OSError, pa.ArrowException) as error:
        yield from itertools.repeat(error, count - done)


def _by_path(cell: Any) -> bool:
    """True if the cell of an image column names a file that has the image."""
    return isinstance(cell, dict) and cell.get("bytes") is None


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
        spans = _spans(listing)
        reads = ((partial(self._span, listing, *span), _extent(listing, *span)) for span in spans)
        for blobs in ahead(reads, threaded=self.folder.far):
            yield from blobs

    def _span(self, listing: Listing, start: int, end: int) -> list[Blob]:
        """The members from ``start`` to ``end`` of the listing, which are neighbours in one file."""
        file, first = self.files[listing.file[start]], int(listing.at[start])
        whole = _tried(partial(self.folder.read, file, _extent(listing, start, end), first))
        if isinstance(whole, Exception):
            return [whole] * (end - start)
        places = zip((listing.at[start:end] - first).tolist(), listing.size[start:end].tolist(), strict=True)
        return [whole[at : at + size] for at, size in places]

    def unit(self, listing: Listing) -> NDArray[np.int64]:
        return listing.file.astype(np.int64)


def _extent(listing: Listing, start: int, end: int) -> int:
    """Bytes from the first of some members of a file to the end of the last."""
    return int(listing.at[end - 1] + listing.size[end - 1] - listing.at[start])


def _spans(listing: Listing) -> Iterator[tuple[int, int]]:
    """The parts of a listing of tar members that are read by one request each."""
    start = 0
    for here in range(1, len(listing) + 1):
        if here < len(listing):
            gap = listing.at[here] - listing.at[here - 1] - listing.size[here - 1]
            near = listing.file[here] == listing.file[here - 1] and 0 <= gap <= GAP
            if near and _extent(listing, start, here + 1) <= SPAN:
                continue
        yield start, here
        start = here
