"""Images in tar shards, the WebDataset layout: the members of a sample share their name up to the first dot.

An image member has an image's ending; the label is the member ``cls``, or the ``label`` of a member
``json``. Labels are text: ``007`` and ``7`` are two classes. Only next to a ``classes.txt``, and if all labels
of all shards are whole numbers, they are numbers of its lines, from 0 (names, if only that is possible).
A hard link, which tar writes for a second name of one file, is read as the member before it that it names. A label
without an image is left out with a note, as are members that are no files, such as symbolic links.
Shards must be uncompressed, so that an image can be read by offset and size.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache, partial
from pathlib import PurePosixPath
from typing import IO, TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rayddl import json_text, limits
from rayddl.data.config import SourceConfig
from rayddl.data.sources import holdout, parquet_labels
from rayddl.data.sources.ahead import ahead
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
from rayddl.data.sources.trees import EXTENSIONS
from rayddl.errors import SourceError
from rayddl.storage import Folder

if TYPE_CHECKING:
    from rayddl.data.dataset import Source
    from rayddl.data.sources.listing import Listing

NAMES = "classes.txt"
_LABELS = ("cls", "json")
_LONGEST_LABEL = 2**20
"""Largest member, in bytes, that is read as a label."""
SCAN_BYTES = 4 * 2**20
"""Bytes of a remote shard that one request reads to find its members. Larger members are skipped."""
_EXPECTED = f"samples of an image ({', '.join(EXTENSIONS[:3])} …) and its label (.cls, or .json with a label)"


@dataclass(frozen=True)
class _Shard:
    """One tar file: its samples in order, without images."""

    name: str
    keys: tuple[str, ...]
    at: NDArray[np.int64]
    """Byte offset of each image."""
    size: NDArray[np.int64]
    labels: tuple[str, ...]
    """As written in the shard."""
    without_image: tuple[str, ...]
    """Samples that are left out: the name of each, with the reason if it is known."""

    @property
    def digest(self) -> str:
        """Hash of the shard's names, sizes and labels."""
        content = json.dumps([self.keys, self.size.tolist(), self.labels])
        return hashlib.sha256(content.encode()).hexdigest()


@dataclass(frozen=True)
class _Survey:
    """Samples, labels and classes of all shards, without images."""

    folder: Folder
    classes: tuple[str, ...]
    splits: dict[str, tuple[tuple[_Shard, Labels], ...]]
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
    scans = [(split, partial(_current, folder, name)) for split, names in found.items() for name in names]
    scanned = ahead(((scan, SCAN_BYTES) for _, scan in scans), far=folder.far)
    shards: dict[str, list[_Shard]] = {split: [] for split in found}
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


def _column(shard: _Shard, named: dict[bytes, bytes], where: str, numbered: bool) -> parquet_labels.Column:
    values: list[Any] = [int(label) for label in shard.labels] if numbered else list(shard.labels)
    kind = pa.int64() if numbered else pa.string()
    return parquet_labels.read(pa.chunked_array([pa.array(values, kind)]), named, where, "cls")


def _current(folder: Folder, name: str) -> _Shard:
    return _scanned(folder, name, folder.size(name), folder.modified(name))


@lru_cache(maxsize=4096)
def _scanned(folder: Folder, name: str, bytes_: int, modified: datetime | None) -> _Shard:
    """The shard ``name``. It is cached; ``bytes_`` and ``modified`` are part of the key to detect a replaced file."""
    del modified
    where, samples = folder.path(name), _Samples()
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


_UNUSUAL = re.compile(r"(?:^|/)\.?(?:/|$)")
"""Matches paths with components that are empty or a dot."""


class _Samples:
    """Collects the samples of a shard from its members."""

    def __init__(self) -> None:
        self.images: dict[str, tuple[int, int]] = {}
        self.labels: dict[str, str] = {}
        self._files: dict[str, tarfile.TarInfo] = {}
        self._lost: dict[tuple[str, bool], str] = {}
        """Why the image (true) or the label (false) of a sample is not read."""
        self._read: dict[tuple[int, str], str | None] = {}
        """Labels by their place, because many links may lead to one."""
        self._label_bytes = 0
        self._most = limits.CELL_BYTES.value

    def add(self, tar: tarfile.TarFile, member: tarfile.TarInfo, where: str) -> None:
        path = _usual(member.name)
        file = (
            member
            if member.isfile()
            else self._files.get(_usual(member.linkname))
            if member.islnk()
            else None
        )
        if file is not None:
            self._files[path] = file
        folder, slash, base = path.rpartition("/")
        key, _, kind = base.partition(".")
        if not key or any(part.startswith("._") for part in path.split("/")):
            return
        key, kind = f"{folder}{slash}{key}", kind.lower()
        image = f".{kind}".endswith(EXTENSIONS)
        if file is None:
            if image or kind in _LABELS:
                self._lost[key, image] = f"{member.name} is {_what(member)}"
        elif image:
            if key in self.images:
                raise SourceError(
                    f"{where}: the sample {key} has two images, the second is {member.name}. Expected one: "
                    "give every image a name of its own up to the first dot.",
                    code="sample-with-two-images",
                )
            if file.size > self._most:
                raise SourceError(
                    f"{where}: {member.name} has {limits.CELL_BYTES.exceeded(file.size, 'bytes')}.",
                    code="image-too-large",
                )
            self.images[key] = (file.offset_data, file.size)
        elif kind in _LABELS and (kind == "cls" or key not in self.labels):
            if file.size > _LONGEST_LABEL:
                self._lost[key, False] = (
                    f"{member.name} has {file.size:,} bytes, a label has up to {_LONGEST_LABEL:,}"
                )
            elif (label := self._label(tar, file, kind)) is not None:
                self._keep(key, label, where)

    def _label(self, tar: tarfile.TarFile, file: tarfile.TarInfo, kind: str) -> str | None:
        found = file.offset_data, kind
        if found not in self._read:
            self._read[found] = _label(tar, file, kind)
        return self._read[found]

    def _keep(self, key: str, label: str, where: str) -> None:
        self._label_bytes += len(label)
        if self._label_bytes > limits.LABEL_BYTES.value:
            raise SourceError(
                f"{where}: its labels have {limits.LABEL_BYTES.exceeded(self._label_bytes, 'bytes')}.",
                code="labels-too-large",
            )
        self.labels[key] = label

    def shard(self, name: str, where: str) -> _Shard:
        unlabelled = [self._named(key, image=False) for key in self.images if key not in self.labels]
        if unlabelled:
            raise SourceError(
                f"{where}: {len(unlabelled):,} of {len(self.images):,} images have no label: {shown(unlabelled)}. "
                f"Expected {_EXPECTED}.",
                code="images-without-label",
            )
        places = np.array(list(self.images.values()), dtype=np.int64).reshape(-1, 2)
        labels = tuple(self.labels[key] for key in self.images)
        samples = dict.fromkeys([*self.labels, *(key for key, image in self._lost if image)])
        lost = tuple(self._named(key, image=True) for key in samples if key not in self.images)
        return _Shard(name, tuple(self.images), places[:, 0], places[:, 1], labels, lost)

    def _named(self, key: str, *, image: bool) -> str:
        why = self._lost.get((key, image))
        return key if why is None else f"{key} ({why})"


def _usual(path: str) -> str:
    # PurePosixPath takes longer than all else here, and alters few names.
    return str(PurePosixPath(path)) if _UNUSUAL.search(path) else path


def _what(member: tarfile.TarInfo) -> str:
    if member.issym():
        return "a symbolic link"
    return f"a link to {member.linkname}, which is not before it" if member.islnk() else "no file"


def _label(tar: tarfile.TarFile, file: tarfile.TarInfo, kind: str) -> str | None:
    opened = tar.extractfile(file)
    assert opened is not None  # only links and what is no file give none
    text = parquet_labels.decoded(opened.read())
    if kind == "cls":
        return text.strip() or None
    try:
        found = json_text.parse(text.encode())
    except ValueError:
        return None
    label = found.get("label") if isinstance(found, dict) else None
    return str(label) if isinstance(label, (int, str)) and not isinstance(label, bool) else None
