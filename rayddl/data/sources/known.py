"""What a command knows about a source's files, so that it lists them once; kept with its results for a run that goes
on.
"""

from __future__ import annotations

import hashlib
import io
import threading
from bisect import bisect_left
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow import fs

from rayddl.credentials import scrub
from rayddl.data.config import SourceConfig
from rayddl.filenames import FileList, Names
from rayddl.localfiles import unfinished
from rayddl.storage import Folder

_T = TypeVar("_T")
KEPT = "listings"
"""The folder of kept listings inside ``--out``."""
_CONTENTS = "contents"
"""In the column ``listing``, where places end with a star: the row holds what was found in a file."""
_HASH = 32
"""Bytes of the SHA-256 before it: readers of damaged content can end the process."""
_FOLDER = -1
"""In place of the bytes of a file."""


class _Entries(NamedTuple):
    """Files and folders below a place, sorted by name."""

    names: pa.Array
    bytes: NDArray[np.int64]

    def start(self, name: str) -> int:
        """The position of the first name that is not before ``name``."""
        return bisect_left(range(len(self.names)), name, key=lambda at: self.names[at].as_py())


@dataclass(frozen=True, eq=False)
class Listed(Folder):
    """A remote folder that is listed once: later questions about its files are answered from the first answer.

    It is equal to itself alone, since the files of another may have changed. Sent to another process, it is a plain
    folder.
    """

    known: dict[str, _Entries] = field(default_factory=dict, repr=False)
    """What was listed, by place inside the root: ``a/*`` directly in the folder ``a``, ``a/**`` also below it."""
    inside: str = ""
    """The place inside the root, empty or with a slash at the end."""

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __reduce__(self) -> tuple[Any, ...]:
        return Folder, (self.uri,)

    def child(self, name: str) -> Listed:
        return Listed(self.path(name), self.known, f"{self.inside}{name.rstrip('/')}/")

    def listed(self, within: Folder | None = None) -> FileList:
        del within  # there are no links
        entries = self._below(self.inside) or self._request("**")
        return FileList(Names(entries.names), entries.bytes).take(np.flatnonzero(entries.bytes != _FOLDER))

    def _entries(self) -> list[tuple[str, fs.FileType]]:
        return [
            (name, fs.FileType.Directory if size == _FOLDER else fs.FileType.File)
            for name, size in self._directly().items()
        ]

    def _info(self, name: str | None) -> fs.FileInfo:
        if name is None:
            kind = fs.FileType.Directory if self._there() else fs.FileType.NotFound
            return fs.FileInfo("", type=kind)
        parent, _, own = name.rpartition("/")
        size = (self.child(parent) if parent else self)._directly().get(own)
        if size is None:
            return fs.FileInfo(name, type=fs.FileType.NotFound)
        kind = fs.FileType.Directory if size == _FOLDER else fs.FileType.File
        return fs.FileInfo(name, type=kind, size=None if size == _FOLDER else size)

    def _there(self) -> bool:
        """True if there is such a folder."""
        parent, _, own = self.inside[:-1].rpartition("/")
        beside = self._known_directly(f"{parent}/" if parent else "") if self.inside else None
        return bool(self._directly()) if beside is None else beside.get(own) == _FOLDER

    def _directly(self) -> dict[str, int]:
        """The bytes of what is directly in the folder, by name."""
        found = self._known_directly(self.inside)
        return _as_dict(self._request("*")) if found is None else found

    def _known_directly(self, inside: str) -> dict[str, int] | None:
        below = self._below(inside)
        if below is None:
            entries = self.known.get(f"{inside}*")
            return None if entries is None else _as_dict(entries)
        found, at = {}, 0
        while at < len(below.names):
            name, slash, _ = below.names[at].as_py().partition("/")
            found[name] = _FOLDER if slash else int(below.bytes[at])
            # Past everything inside a folder: 0 follows the slash.
            at = below.start(f"{name}0") if slash else at + 1
        return found

    def _below(self, inside: str) -> _Entries | None:
        """All that is in the folder ``inside`` and below, from its own listing or that of a folder that has it."""
        parts = inside.split("/")[:-1]
        for depth in range(len(parts), -1, -1):
            above = "".join(f"{part}/" for part in parts[:depth])
            entries = self.known.get(f"{above}**")
            if entries is not None:
                rest = inside[len(above) :]
                first, last = (entries.start(rest), entries.start(f"{rest[:-1]}0")) if rest else (0, None)
                names = entries.names[first:last]
                own = pa.array((name[len(rest) :] for name in names.to_pylist()), pa.large_string())
                return _Entries(own if rest else names, entries.bytes[first:last])
        return None

    def _request(self, depth: str) -> _Entries:
        """List the folder (``*``), or all that is in it and below (``**``)."""
        filesystem, path = self._opened
        selector = fs.FileSelector(path, allow_not_found=True, recursive=depth == "**")
        infos = self.asked(lambda: filesystem.get_file_info(selector))
        # An object may have the name of a folder: the folder is what sources use.
        infos.sort(key=lambda info: info.type == fs.FileType.Directory)
        found = {
            info.path[len(path) :].lstrip("/"): _bytes(info)
            for info in infos
            if not unfinished(info.base_name)
        }
        names = pa.array(sorted(found), pa.large_string())
        entries = _Entries(names, np.array([found[name] for name in sorted(found)], np.int64))
        self.known[f"{self.inside}{depth}"] = entries
        return entries


def _as_dict(entries: _Entries) -> dict[str, int]:
    return dict(zip(entries.names.to_pylist(), entries.bytes.tolist(), strict=True))


def _bytes(info: fs.FileInfo) -> int:
    return _FOLDER if info.type == fs.FileType.Directory else int(info.size or 0)


@dataclass(eq=False)
class Known:
    """What a command has found out about its source."""

    listed: dict[str, _Entries] = field(default_factory=dict)
    contents: dict[str, bytes] = field(default_factory=dict)
    """What was found in remote files, by a text that has their name and size: it is kept with the listing."""
    kept: str = ""
    """Where the listing was kept by an earlier command; empty: this one lists the files itself."""
    _read: int = 0
    """The number of :attr:`contents` that are from there."""
    _roots: dict[str, Listed] = field(default_factory=dict)
    _found: dict[Hashable, Any] = field(default_factory=dict)
    _finding: threading.RLock = field(default_factory=threading.RLock)

    @contextmanager
    def used(self) -> Iterator[None]:
        """In the block, :func:`folder` and :func:`once` use what is known."""
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)

    def keep(self, out: Folder, config: SourceConfig) -> None:
        """Write the listing of remote files, and what was found in them, into ``out``, unless it is all from there."""
        if not self.listed or (self.kept and self._read == len(self.contents)):
            return
        tables = [
            pa.table({
                "listing": pa.array([place] * len(entries.names), pa.string()),
                "name": entries.names,
                "bytes": entries.bytes,
                "content": pa.nulls(len(entries.names), pa.binary()),
            })
            for place, entries in self.listed.items()
        ]  # fmt: skip
        # A table for each, because an array holds 2 GiB at most.
        tables += [
            pa.table(
                {"listing": [_CONTENTS], "name": [key], "bytes": [len(data)], "content": [_hash(data) + data]}
            ).cast(tables[0].schema)
            for key, data in self.contents.items()
        ]
        sink = io.BytesIO()
        pq.write_table(pa.concat_tables(tables), sink, compression="zstd")
        out.write(_file(config), sink.getvalue())


_current: ContextVar[Known | None] = ContextVar("known", default=None)
_received: dict[Hashable, Any] = {}
"""What the process that sent the work of this one has found."""


def read(out: Folder, config: SourceConfig) -> Known | None:
    """What an earlier command has kept in ``out`` about the source's remote files; ``None`` for none."""
    if config.root is None or "://" not in config.root:
        return None
    listed, contents = {}, {}
    try:
        table = pq.read_table(pa.BufferReader(out.read(_file(config))))
        places, names, sizes = (table.column(name) for name in ("listing", "name", "bytes"))
        for place in places.unique().to_pylist():
            mask = pc.equal(places, place)
            if place == _CONTENTS:
                found = zip(names.filter(mask), table.column("content").filter(mask), strict=True)
                contents = {
                    key.as_py(): content.as_py()[_HASH:] for key, content in found if _whole(content.as_py())
                }
                continue
            named = names.filter(mask).combine_chunks().cast(pa.large_string())
            listed[place] = _Entries(named, sizes.filter(mask).cast(pa.int64()).to_numpy())
    except (OSError, pa.ArrowException, KeyError):
        return None  # the files are listed again
    return Known(listed, contents, kept=scrub(out.path(_file(config))), _read=len(contents))


def _hash(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _whole(content: bytes) -> bool:
    return content[:_HASH] == _hash(content[_HASH:])


def _file(config: SourceConfig) -> str:
    return f"{KEPT}/{hashlib.sha256(scrub(str(config.root)).encode()).hexdigest()[:12]}.parquet"


def folder(root: str) -> Folder:
    """The folder ``root``; one on a remote filesystem is listed at most once by a command."""
    known, plain = _current.get(), Folder(root)
    if known is None or not plain.far:
        return plain
    return known._roots.setdefault(root, Listed(root, known.listed))


def contents() -> dict[str, bytes]:
    """:attr:`Known.contents` of the command that runs; what is added is known from then on."""
    known = _current.get()
    return {} if known is None else known.contents


def receive(found: Mapping[Hashable, Any]) -> None:
    """Make :func:`once` return the values of ``found`` by their keys, in this process outside of a command."""
    _received.clear()
    _received.update(found)


def once(key: Hashable, find: Callable[[], _T]) -> _T:
    """``find()``, called once for each ``key`` by a command; its errors are not kept."""
    known = _current.get()
    if known is None:
        received: _T = _received[key] if key in _received else find()
        return received
    with known._finding:
        if key not in known._found:
            known._found[key] = find()
        found: _T = known._found[key]
        return found
