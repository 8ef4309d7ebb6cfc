"""The samples of one tar shard, collected from its members: the rules of :mod:`rayddl.data.sources.webdataset`."""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rayddl import json_text, limits
from rayddl.data.sources import parquet_labels
from rayddl.data.sources.refusals import shown
from rayddl.data.sources.trees import EXTENSIONS
from rayddl.errors import SourceError

_LABELS = ("cls", "json")
_LONGEST_LABEL = 2**20
"""Largest member, in bytes, that is read as a label."""
_EXPECTED = f"samples of an image ({', '.join(EXTENSIONS[:3])} …) and its label (.cls, or .json with a label)"


@dataclass(frozen=True)
class Shard:
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

    def dump(self) -> bytes:
        """All but the name as bytes, for :meth:`load`."""
        columns = {"key": list(self.keys), "at": self.at, "size": self.size, "label": list(self.labels)}
        table = pa.table(columns, _TABLE.with_metadata({"without_image": json.dumps(self.without_image)}))
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(
            sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")
        ) as writer:
            writer.write_table(table)
        return bytes(sink.getvalue())

    @classmethod
    def load(cls, name: str, data: bytes) -> Shard:
        """The shard ``name`` of which :meth:`dump` returned ``data``."""
        with pa.ipc.open_stream(data) as reader:
            table = reader.read_all()
        keys, at, size, labels = (table.column(column) for column in ("key", "at", "size", "label"))
        without = json.loads(table.schema.metadata[b"without_image"])
        return cls(
            name,
            tuple(keys.to_pylist()),
            at.to_numpy(),
            size.to_numpy(),
            tuple(labels.to_pylist()),
            tuple(without),
        )


_TABLE = pa.schema([("key", pa.string()), ("at", pa.int64()), ("size", pa.int64()), ("label", pa.string())])
_UNUSUAL = re.compile(r"(?:^|/)\.?(?:/|$)")
"""Matches paths with components that are empty or a dot."""


class Samples:
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
        """Use the next member of the shard; ``where`` is the shard's address, for messages.

        Raises :class:`SourceError` for a second image of a sample, an image above ``limits.CELL_BYTES`` and labels
        above ``limits.LABEL_BYTES``.
        """
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
        key, _, ending = base.partition(".")
        if not key or any(part.startswith("._") for part in path.split("/")):
            return
        key, ending = f"{folder}{slash}{key}", ending.lower()
        image = f".{ending}".endswith(EXTENSIONS)
        if file is None:
            if image or ending in _LABELS:
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
        elif ending in _LABELS and (ending == "cls" or key not in self.labels):
            if file.size > _LONGEST_LABEL:
                self._lost[key, False] = (
                    f"{member.name} has {file.size:,} bytes, a label has up to {_LONGEST_LABEL:,}"
                )
            elif (label := self._label(tar, file, ending)) is not None:
                self._keep(key, label, where)

    def _label(self, tar: tarfile.TarFile, file: tarfile.TarInfo, ending: str) -> str | None:
        found = file.offset_data, ending
        if found not in self._read:
            self._read[found] = _label(tar, file, ending)
        return self._read[found]

    def _keep(self, key: str, label: str, where: str) -> None:
        self._label_bytes += len(label)
        if self._label_bytes > limits.LABEL_BYTES.value:
            raise SourceError(
                f"{where}: its labels have {limits.LABEL_BYTES.exceeded(self._label_bytes, 'bytes')}.",
                code="labels-too-large",
            )
        self.labels[key] = label

    def shard(self, name: str, where: str) -> Shard:
        """The shard of all members added. Raises :class:`SourceError` for images without a label."""
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
        return Shard(name, tuple(self.images), places[:, 0], places[:, 1], labels, lost)

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


def _label(tar: tarfile.TarFile, file: tarfile.TarInfo, ending: str) -> str | None:
    opened = tar.extractfile(file)
    assert opened is not None  # only links and what is no file give none
    text = parquet_labels.decoded(opened.read())
    if ending == "cls":
        return text.strip() or None
    try:
        found = json_text.parse(text.encode())
    except ValueError:
        return None
    label = found.get("label") if isinstance(found, dict) else None
    return str(label) if isinstance(label, (int, str)) and not isinstance(label, bool) else None
