"""Folders on any filesystem that pyarrow opens: a local path, ``s3://``, ``gs://``, ``file://``.

A file written through :class:`Folder` is either complete or absent: local files are written under a
temporary name and renamed, and object stores show an upload only when it is complete.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

from pyarrow import NativeFile, OSFile, fs
from pydantic import BaseModel

from rayddl import documents, hosts, interrupts, json_text, limits, localfiles, s3
from rayddl.credentials import scrub
from rayddl.errors import ArtifactError, PathError
from rayddl.filenames import FileList

UnreachableError = s3.UnreachableError
_T = TypeVar("_T")
_PASSING = re.compile(
    r"HTTP status (?:5\d\d|429)|SLOW_?DOWN|SERVICE_UNAVAILABLE|INTERNAL_FAILURE|THROTTLING|REQUEST_TIMEOUT|"
    r"TooManyRequests",
    re.IGNORECASE,
)
"""In the message of an error that a remote filesystem raises after its own attempts: it may answer later."""


@dataclass(frozen=True)
class Folder:
    """A folder given by a path or URI. Cheap to create, to pickle and to send to a worker.

    Raises :class:`PathError` for an empty one.
    """

    uri: str

    def __post_init__(self) -> None:
        if not self.uri:
            # It would be the working folder, and files in it would be in the root of the disk.
            raise PathError(
                "the path of a folder is empty, so it names none; give its path or URI, or '.' for the folder that "
                "rayddl is started in",
                code="path-empty",
            )

    @cached_property
    def _opened(self) -> tuple[fs.FileSystem, str]:
        localfiles.refuse_unwritten(self.uri)
        if "://" not in self.uri:
            return fs.LocalFileSystem(), os.path.abspath(os.path.expanduser(self.uri))
        hosts.check(self.uri)
        filesystem, path = fs.FileSystem.from_uri(self.uri)
        return filesystem, path

    def __getstate__(self) -> dict[str, Any]:
        # An open filesystem holds connections and credentials, which must not be pickled. A relative path would mean
        # another folder in a process with another working directory.
        place = self.local
        return {"uri": self.uri if place is None or "://" in self.uri else str(place)}

    @property
    def local(self) -> Path | None:
        """The folder as a local path; ``None`` on a remote filesystem."""
        filesystem, path = self._opened
        return Path(path) if isinstance(filesystem, fs.LocalFileSystem) else None

    @property
    def far(self) -> bool:
        """True on a remote filesystem, where each read waits for an answer and many can wait at the same time."""
        return not isinstance(self._opened[0], fs.LocalFileSystem)

    def __str__(self) -> str:
        return self.uri

    def child(self, name: str) -> Folder:
        """Return the folder ``name`` inside this one; ``name`` may contain ``/``. Raises :class:`PathError`."""
        return Folder(self.path(name))

    def path(self, name: str) -> str:
        """Return the path or URI of the file ``name``. Raises :class:`PathError` for a name outside the folder."""
        # The query of a URI holds connection options and stays at its end.
        far = "://" in self.uri
        place, mark, options = self.uri.partition("?") if far else (os.path.expanduser(self.uri), "", "")
        return f"{place.rstrip('/')}/{_inside(name)}{mark}{options}"

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self._opened[1].rstrip("/").rpartition("/")[2]

    def names(self) -> list[str]:
        """Return the sorted names of the files directly in this folder, without unfinished ones."""
        return sorted(
            n for n, kind in self._entries() if kind == fs.FileType.File and not localfiles.unfinished(n)
        )

    def folders(self) -> list[str]:
        """Return the sorted names of the folders directly in this folder."""
        found = (name for name, kind in self._entries() if kind == fs.FileType.Directory)
        return sorted(name for name in found if not localfiles.unfinished(name))

    def _entries(self) -> list[tuple[str, fs.FileType]]:
        """The names and types in the folder; links count as what they lead to."""
        filesystem, path = self._opened
        if not isinstance(filesystem, fs.LocalFileSystem):
            found = self.asked(lambda: filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True)))
            return [(info.base_name, info.type) for info in found]
        if not os.path.exists(localfiles.real(path)):
            return []
        with os.scandir(localfiles.real(path)) as entries:
            return [(localfiles.shown(entry.name), _type(entry)) for entry in entries]

    def files(self, within: Folder | None = None) -> dict[str, int]:
        """Return the size in bytes of every file in this folder and below, by its name relative to the folder.

        Sorted by name, without unfinished files; makes one listing request on any filesystem. Raises
        :class:`PathError` for links that run in a circle, or lead out of the local folder ``within``.
        """
        return dict(self.listed(within))

    def listed(self, within: Folder | None = None) -> FileList:
        """What :meth:`files` returns, in columns: for folders of millions of files."""
        filesystem, path = self._opened
        if isinstance(filesystem, fs.LocalFileSystem):
            if not self.exists():
                return FileList.of([])
            root = None if within is None else within._opened[1]
            return FileList.of((n, s) for n, s in localfiles.walk(path, root) if not localfiles.unfinished(n))
        selector = fs.FileSelector(path, allow_not_found=True, recursive=True)
        found = self.asked(lambda: filesystem.get_file_info(selector))
        return FileList.of(
            (f.path[len(path) :].lstrip("/"), int(f.size or 0))
            for f in found
            if f.type == fs.FileType.File and not localfiles.unfinished(f.base_name)
        )

    def leaves(self, name: str, root: Folder) -> bool:
        """True if links lead the local file ``name`` out of ``root``; remote filesystems have no links."""
        filesystem, path = self._opened
        local = isinstance(filesystem, fs.LocalFileSystem)
        return local and localfiles.leaves(f"{path}/{_inside(name)}", root._opened[1])

    def modified(self, name: str) -> datetime | None:
        """Return when the file ``name`` was last written, in UTC; ``None`` if the filesystem does not know."""
        moment = self._info(name).mtime
        return moment.astimezone(timezone.utc) if isinstance(moment, datetime) else None

    def exists(self) -> bool:
        """True if the folder exists (on object stores: if any file below it exists)."""
        return bool(self._info(None).type == fs.FileType.Directory)

    def has(self, name: str) -> bool:
        """True if the file ``name`` exists."""
        return bool(self._info(name).type == fs.FileType.File)

    def size(self, name: str) -> int:
        """Return the size of the file ``name`` in bytes; 0 if it does not exist."""
        return int(self._info(name).size or 0)

    def _info(self, name: str | None) -> fs.FileInfo:
        """Type, size and time of the file ``name``, or of the folder itself."""
        filesystem, path = self._opened
        target = path if name is None else f"{path}/{_inside(name)}"
        odd = _odd(filesystem, target)
        if odd is None:
            return self.asked(lambda: filesystem.get_file_info(target))
        found = os.stat(odd)
        if stat.S_ISDIR(found.st_mode):
            return fs.FileInfo(target, type=fs.FileType.Directory)
        return fs.FileInfo(target, type=fs.FileType.File, mtime_ns=found.st_mtime_ns, size=found.st_size)

    def read(self, name: str, most: int | None = None, at: int = 0) -> bytes:
        """Return the content of the file ``name`` from byte ``at``, at most ``most`` bytes.

        On S3 this is one request. What fails for a passing reason on a remote filesystem is repeated. Raises
        ``FileNotFoundError``, and :class:`UnreachableError` for remote storage that does not answer.
        """
        filesystem, path = self._opened
        target = f"{path}/{_inside(name)}"
        if isinstance(filesystem, fs.S3FileSystem):
            return s3.read(filesystem, target, at, most)
        if not self.far:
            return self._read(target, most, at)
        try:
            return s3.patiently(lambda: self._read(target, most, at), (OSError,), _ATTEMPTS)
        except (FileNotFoundError, PermissionError):
            raise
        except OSError as error:
            raise UnreachableError(str(error)) from error

    def _read(self, target: str, most: int | None, at: int) -> bytes:
        filesystem, _ = self._opened
        odd = _regular(filesystem, target)
        opened = filesystem.open_input_file if at else partial(filesystem.open_input_stream, compression=None)
        with OSFile(odd) if odd is not None else opened(target) as stream:
            if at:
                stream.seek(at)
            if most is None:
                return bytes(stream.read())
            # A stream allocates what it is asked for, and may not know its length.
            parts: list[bytes] = []
            while most > 0 and (part := stream.read(min(most, _PART))):
                parts.append(part)
                most -= len(part)
            return b"".join(parts)

    def local_file(self, name: str) -> Path | None:
        """The path of the regular file ``name``, as ``os`` takes it; ``None`` on a remote filesystem.

        Raises ``FileNotFoundError``.
        """
        filesystem, target = self.on(name)
        if not isinstance(filesystem, fs.LocalFileSystem):
            return None
        _regular(filesystem, target)
        return Path(localfiles.real(target))

    def on(self, name: str) -> tuple[fs.FileSystem, str]:
        """Return pyarrow's filesystem, and the path on it of the file ``name``."""
        filesystem, path = self._opened
        return filesystem, f"{path}/{_inside(name)}"

    def open(self, name: str) -> NativeFile:
        """Open the file ``name`` for random access, so that a footer is read without the rest."""
        filesystem, path = self._opened
        target = f"{path}/{_inside(name)}"
        odd = _regular(filesystem, target)
        return OSFile(odd) if odd is not None else self.asked(lambda: filesystem.open_input_file(target))

    def asked(self, request: Callable[[], _T]) -> _T:
        """Return ``request()``; on a remote filesystem, again after growing pauses while it is overloaded or fails.

        Raises :class:`UnreachableError` if it still does. Other errors, such as that of a bucket that is not there, are
        raised at once.
        """
        if not self.far:
            return request()

        def tried() -> _T:
            try:
                return request()
            except OSError as error:
                if _PASSING.search(str(error)):
                    raise UnreachableError(str(error)) from error
                raise

        return s3.patiently(tried, (UnreachableError,), _ATTEMPTS)

    def write(self, name: str, data: bytes) -> None:
        """Write the file ``name``; other processes never see it half-written."""
        if self.far:
            self._upload(name, data)
            return
        localfiles.write(self._made_for(name), data)

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """A local path for the content of the file ``name``, which appears as a whole when the block is left.

        If an error is raised in the block, it does not appear. For a remote filesystem the path is in the folder of
        temporary files.
        """
        if self.far:
            with tempfile.TemporaryDirectory() as folder:
                scratch = Path(folder, "file")
                yield scratch
                self._upload(name, scratch)
            return
        with localfiles.writing(self._made_for(name)) as path:
            yield path

    def _made_for(self, name: str) -> str:
        """The local path of the file ``name``, whose folder is made."""
        _, path = self._opened
        target = f"{path}/{_inside(name)}"
        os.makedirs(os.path.dirname(target), exist_ok=True)
        return target

    def _upload(self, name: str, content: bytes | Path) -> None:
        filesystem, target = self.on(name)
        if isinstance(filesystem, fs.S3FileSystem):
            s3.write(filesystem, target, content)
            return

        def upload() -> None:
            # A stream that an interrupt closes stores what it has.
            with interrupts.held(), filesystem.open_output_stream(target) as stream:
                if isinstance(content, Path):
                    with open(content, "rb") as file:
                        shutil.copyfileobj(file, stream)
                else:
                    stream.write(content)

        self.asked(upload)

    def delete(self, name: str) -> None:
        """Remove the file ``name`` if it exists."""
        filesystem, path = self._opened
        if self.has(name):
            # The answer to an earlier request may have been lost.
            with suppress(FileNotFoundError):
                self.asked(lambda: filesystem.delete_file(f"{path}/{_inside(name)}"))

    def sweep(self) -> None:
        """Remove what writers that were killed have left, here and below; on remote filesystems they leave nothing."""
        if self.local is not None:
            localfiles.sweep(str(self.local))

    def clear(self, name: str) -> None:
        """Remove the folder ``name`` inside this one with its content, if it exists."""
        filesystem, path = self._opened
        if self.child(name).exists():
            with suppress(FileNotFoundError):
                self.asked(lambda: filesystem.delete_dir(f"{path}/{_inside(name)}"))

    def read_json(self, name: str) -> Any:
        """Return the content of the JSON file ``name``, read by :func:`rayddl.json_text.parse`.

        Raises ``FileNotFoundError`` and ``ValueError``.
        """
        return json_text.parse(self.read(name, limits.DOCUMENT_BYTES.value + 1))

    def read_document(self, name: str, model: type[BaseModel], again: str) -> Any:
        """Return the content of the JSON file ``name``, which has the types of ``model``.

        Raises ``FileNotFoundError``, and :class:`ArtifactError` that names the file and the key; ``again`` says
        what to do.
        """
        where = scrub(self.path(name))
        try:
            value = self.read_json(name)
        except ValueError as error:
            raise ArtifactError(f"{where} is not JSON: {error}; {again}", code="document-not-json") from error
        return documents.checked(value, model, where, again)

    def write_json(self, name: str, value: Any) -> None:
        """Write ``value`` as the JSON file ``name``, without credentials in URIs. Raises ``ValueError`` for NaN."""
        text = json.dumps(scrub(value), indent=1, sort_keys=True, allow_nan=False)
        self.write(name, text.encode() + b"\n")


_PART = 1 << 20
_ATTEMPTS = 4


def split(where: str) -> tuple[Folder, str]:
    """Return the folder and the file name of a path or URI."""
    place, mark, options = where.partition("?") if "://" in where else (where, "", "")
    parent, _, name = place.rstrip("/").rpartition("/")
    return Folder((parent or ("/" if place.startswith("/") else ".")) + mark + options), name


def _odd(filesystem: fs.FileSystem, path: str) -> bytes | None:
    """The bytes of a local path that is not UTF-8, which pyarrow's filesystem cannot open; ``None`` for others."""
    return localfiles.odd(path) if isinstance(filesystem, fs.LocalFileSystem) else None


def _regular(filesystem: fs.FileSystem, path: str) -> bytes | None:
    """:func:`_odd` of a file that is read. Raises ``FileNotFoundError`` for a device or pipe."""
    return localfiles.regular(path) if isinstance(filesystem, fs.LocalFileSystem) else None


def _type(entry: os.DirEntry[str]) -> fs.FileType:
    if entry.is_dir():
        return fs.FileType.Directory
    return fs.FileType.File if entry.is_file() else fs.FileType.Unknown


def _inside(name: str) -> str:
    parts = {*name.split("/")} - {"", "."}
    if not parts or name.startswith("/") or ".." in parts or "\0" in name:
        raise PathError(
            f"{name!r} does not stay inside its folder; expected a name below it, without a leading '/' and '..'",
            code="path-leaves-folder",
        )
    return name
