"""Images in tar shards, the WebDataset layout: the members of a sample share their name up to the first dot.

An image member has an image's ending; the label is the member ``cls``, or the ``label`` of a member
``json``. Labels are text: ``007`` and ``7`` are two classes. Only next to a ``classes.txt``, and if all labels
of all shards are whole numbers, they are numbers of its lines, from 0 (names, if only that is possible).
A hard link, which tar writes for a second name of one file, is read as the member before it that it names. A label
without an image is left out with a note, as are members that are no files, such as symbolic links.
Shards must be uncompressed, so that an image can be read by offset and size.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache, partial
from typing import IO, TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa

from rayddl.data.ahead import ahead
from rayddl.data.config import SourceConfig
from rayddl.data.sources import holdout, known, parquet_labels
from rayddl.data.sources.contents import Contents
from rayddl.data.sources.parquet_labels import Labels
from rayddl.data.sources.refusals import (
    open_root,
    place,
    read_names,
    refuse_absent_classes,
    refuse_all_unlabelled,
    refuse_links,
    refuse_one_class,
    shown,
    unlabelled,
)
from rayddl.data.sources.split_files import find
from rayddl.data.sources.tar_samples import Samples, Shard
from rayddl.errors import SourceError
from rayddl.storage import Folder

if TYPE_CHECKING:
    from rayddl.data.dataset import Source
    from rayddl.data.sources.listing import Listing

NAMES = "classes.txt"
SCAN_BYTES = 4 * 2**20
"""Bytes of a remote shard that one request reads to find its members. Larger members are skipped."""


@dataclass(frozen=True)
class _Survey:
    """Samples, labels and classes of all shards, without images."""

    folder: Folder
    classes: tuple[str, ...]
    splits: dict[str, tuple[tuple[Shard, Labels], ...]]
    """``train`` and ``test``: each shard with its labels as indices into ``classes``. ``test`` has no shard where
    ``holdout`` makes that split."""


def identity(config: SourceConfig) -> dict[str, Any]:
    """Names of shards and samples, sizes of images, and labels. Raises the errors of :func:`listing`."""
    survey = _survey(config)
    return {
        "classes": survey.classes,
        "splits": {s: [[t.name, t.digest] for t, _ in parts] for s, parts in survey.splits.items()},
        **({} if survey.splits["test"] else {"holdout": [config.holdout, config.holdout_seed]}),
    }


def load(config: SourceConfig, fingerprint: str) -> Source:
    """Both splits in memory, decoded a few images at a time."""
    from rayddl.data.sources.splits import batches, build

    survey = _survey(config)
    train, test = (batches(_part(survey, split, config)) for split in ("train", "test"))
    return build(config, fingerprint, survey.classes, train, test, notes=_notes(survey))


def listing(config: SourceConfig, split: str) -> Listing:
    """The listing of a split; reads members' headers and labels, no image.

    Raises :class:`SourceError` for missing or damaged shards, samples without a label or with several
    images, labels without a class name, and fewer than two classes.
    """
    return _part(_survey(config), split, config)


def contents(config: SourceConfig, first: int) -> Contents:
    """Counts of both splits and the first few images; reads headers, labels and these images only."""
    survey = _survey(config)
    train, test = (sum(int((labels >= 0).sum()) for _, labels in survey.splits[s]) for s in ("train", "test"))
    present = np.concatenate([labels[labels >= 0] for _, labels in survey.splits["train"]])
    fewest = int(np.bincount(present, minlength=len(survey.classes)).min())
    if not test:
        train, test, fewest = holdout.totals(present, survey.classes, config)
    listed = _part(survey, "train", config).take(np.arange(min(first, train)))
    images = [blob for blob in listed.store.read(listed) if isinstance(blob, bytes)]
    return Contents(len(survey.classes), train, test, tuple(images), fewest)


def _part(survey: _Survey, split: str, config: SourceConfig) -> Listing:
    if not survey.splits["test"]:
        return holdout.part(_listing(survey, "train"), split, config)
    return _listing(survey, split)


def _listing(survey: _Survey, split: str) -> Listing:
    from rayddl.data.sources.listing import TarStore, sorted_listing

    parts = survey.splits[split]
    return sorted_listing(
        [f"{shard.name}#{key}" for shard, _ in parts for key in shard.keys],
        np.concatenate([labels for _, labels in parts]).astype(np.int32),
        survey.classes,
        TarStore(survey.folder, tuple(shard.name for shard, _ in parts)),
        notes=_notes(survey),
        file=np.repeat(np.arange(len(parts), dtype=np.int32), [len(shard.keys) for shard, _ in parts]),
        at=np.concatenate([shard.at for shard, _ in parts]),
        size=np.concatenate([shard.size for shard, _ in parts]),
    )


def _notes(survey: _Survey) -> tuple[str, ...]:
    without = {
        split: [f"{shard.name}#{each}" for shard, _ in parts for each in shard.without_image]
        for split, parts in survey.splits.items()
    }
    return (
        *unlabelled({split: [part for _, part in parts] for split, parts in survey.splits.items()}),
        *(
            f"left out of the {split} split: {len(names):,} without an image: {shown(names)}"
            for split, names in without.items()
            if names
        ),
    )


def _survey(config: SourceConfig) -> _Survey:
    folder = open_root(config, "tar shards")
    found = find(config, folder, ".tar")
    refuse_links(config, folder, [NAMES])
    named = {b"classes": read_names(folder, NAMES)} if folder.has(NAMES) else {}
    # Threads have no context of their own.
    before = known.contents() if folder.far else {}
    scans = [
        (split, partial(_current, folder, name, before)) for split, names in found.items() for name in names
    ]
    scanned = ahead(((scan, SCAN_BYTES) for _, scan in scans), threaded=folder.far)
    shards: dict[str, list[Shard]] = {split: [] for split in found}
    for (split, _), shard in zip(scans, scanned, strict=True):
        shards[split].append(shard)
    written = {label for parts in shards.values() for shard in parts for label in shard.labels}
    names = parquet_labels.names_in(named, "cls", folder.path(NAMES)) or ()
    numbered = bool(named) and _are_numbers(written, names)
    columns = {
        split: [_column(shard, named, folder.path(shard.name), numbered) for shard in parts]
        for split, parts in shards.items()
    }
    classes = parquet_labels.classes(columns["train"])
    where = f"source webdataset in {place(folder)}"
    refuse_one_class(classes, where, f"the labels in {shown(found['train'])}")
    splits = {
        split: tuple(
            (shard, parquet_labels.by_name(column, classes, folder.path(shard.name)))
            for shard, column in zip(parts, columns[split], strict=True)
        )
        for split, parts in shards.items()
    }
    for split, members in splits.items():
        if (members or config.holdout is None) and not sum(len(labels) for _, labels in members):
            raise SourceError(
                f"{where}: the {split} split has no images ({shown(found[split])}).",
                code="split-without-images",
            )
    refuse_all_unlabelled({split: [part for _, part in parts] for split, parts in splits.items()}, where)
    present = np.unique(np.concatenate([labels for _, labels in splits["train"]]))
    refuse_absent_classes(present.tolist(), classes, config)
    return _Survey(folder, classes, splits)


def _are_numbers(labels: set[str], names: Sequence[str]) -> bool:
    """True if the labels of all shards are numbers of lines of ``classes.txt``, not names. Decided once, because one
    shard may hold only such names as look like numbers.
    """
    if not all(parquet_labels.whole(label) for label in labels):
        return False
    beyond = any(int(label) >= len(names) for label in labels)
    return not (beyond and labels <= {*names, parquet_labels.UNLABELLED})


def _column(shard: Shard, named: dict[bytes, bytes], where: str, numbered: bool) -> parquet_labels.Column:
    values: list[Any] = [int(label) for label in shard.labels] if numbered else list(shard.labels)
    kind = pa.int64() if numbered else pa.string()
    return parquet_labels.read(pa.chunked_array([pa.array(values, kind)]), named, where, "cls")


def _current(folder: Folder, name: str, before: dict[str, bytes]) -> Shard:
    """The shard ``name``, from ``before`` if an earlier command has scanned it; else a remote one is added there."""
    size = folder.size(name)
    key = f"{name} of {size} bytes"
    if key in before:
        return Shard.load(name, before[key])
    shard = _scanned(folder, name, size, folder.modified(name))
    if folder.far:
        before[key] = shard.dump()
    return shard


@lru_cache(maxsize=4096)
def _scanned(folder: Folder, name: str, bytes_: int, modified: datetime | None) -> Shard:
    """The shard ``name``. It is cached; ``bytes_`` and ``modified`` are part of the key to detect a replaced file."""
    del modified
    where, samples = folder.path(name), Samples()
    with _Distant.buffered(folder, name, bytes_) if folder.far else folder.open(name) as stream:
        try:
            bounded = cast("IO[bytes]", stream if folder.far else _Bounded(stream))
            with tarfile.open(fileobj=bounded, mode="r:", errors="backslashreplace") as tar:
                for member in tar:
                    if member.issparse():
                        raise tarfile.ReadError(f"{member.name} is a sparse file")
                    if not member.isdir():
                        samples.add(tar, member, where)
                # A complete tar file ends with blocks of zeros; a truncated one is detected by their absence.
                if bytes_ < tar.offset + tarfile.BLOCKSIZE:
                    raise tarfile.ReadError("it breaks off")
        # Headers that say nonsense make Python's reader raise these as well.
        except (tarfile.TarError, ValueError, ArithmeticError, RecursionError, LookupError) as error:
            raise SourceError(
                f"{where} cannot be read as a plain tar file: {error} (after {len(samples.images):,} images). "
                "Compressed shards are to be unpacked; a damaged one is to be copied again.",
                code="shard-unreadable",
            ) from error
    return samples.shard(name, where)


class _Bounded:
    """A stream that reads at most to its end: Arrow allocates all bytes asked for, and a header may ask for any."""

    def __init__(self, stream: pa.NativeFile) -> None:
        self._stream, self._size = stream, int(stream.size())

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._size - int(self._stream.tell()))
        return bytes(self._stream.read(left if size < 0 else min(size, left)))

    def seek(self, position: int) -> int:
        return int(self._stream.seek(min(max(0, position), self._size)))

    def tell(self) -> int:
        return int(self._stream.tell())


class _Distant(io.RawIOBase):
    """A remote file of known size. Buffered, it is read in large parts: a header costs as much time as megabytes."""

    def __init__(self, folder: Folder, name: str, size: int) -> None:
        self._read, self._size, self._at = partial(folder.read, name), size, 0

    @classmethod
    def buffered(cls, folder: Folder, name: str, size: int) -> io.BufferedReader:
        return io.BufferedReader(cls(folder, name, size), min(SCAN_BYTES, max(1, size)))

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, into: Any) -> int:
        data = self._read(max(0, min(len(into), self._size - self._at)), self._at)
        into[: len(data)] = data
        self._at += len(data)
        return len(data)
