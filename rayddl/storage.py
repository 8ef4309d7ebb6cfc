"""Folders on any filesystem that pyarrow opens: a local path, ``s3://``, ``gs://``, ``file://``.

A file written through :class:`Folder` is either complete or absent: local files are written under a
temporary name and renamed, and object stores show an upload only when it is complete.
"""

from __future__ import annotations

import json
import os
import uuid
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from pyarrow import NativeFile, fs
from pydantic import BaseModel

from rayddl import documents, hosts, limits
from rayddl.credentials import scrub
from rayddl.errors import ArtifactError, PathError


@dataclass(frozen=True)
class Folder:
    """A folder given by a path or URI. Cheap to create, to pickle and to send to a worker."""

    uri: str

    @cached_property
    def _opened(self) -> tuple[fs.FileSystem, str]:
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

    def __str__(self) -> str:
        return self.uri

    def child(self, name: str) -> Folder:
        """Return the folder ``name`` inside this one; ``name`` may contain ``/``. Raises :class:`PathError`."""
        return Folder(self.path(name))

    def path(self, name: str) -> str:
        """Return the path or URI of the file ``name``. Raises :class:`PathError` for a name outside the folder."""
        # The query of a URI holds connection options and stays at its end.
        place, mark, options = self.uri.partition("?") if "://" in self.uri else (self.uri, "", "")
        return f"{place.rstrip('/')}/{_inside(name)}{mark}{options}"

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self._opened[1].rstrip("/").rpartition("/")[2]

    def names(self) -> list[str]:
        """Return the sorted names of the files directly in this folder, without unfinished ones."""
        filesystem, path = self._opened
        found = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
        return sorted(f.base_name for f in found if f.type == fs.FileType.File and ".tmp-" not in f.base_name)

    def folders(self) -> list[str]:
        """Return the sorted names of the folders directly in this folder."""
        filesystem, path = self._opened
        found = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
        return sorted(f.base_name for f in found if f.type == fs.FileType.Directory)

    def files(self) -> dict[str, int]:
        """Return the size in bytes of every file in this folder and below, by its name relative to the folder.

        Sorted by name, without unfinished files; makes one listing request on any filesystem.
        """
        filesystem, path = self._opened
        found = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True, recursive=True))
        sizes = {
            f.path[len(path) :].lstrip("/"): int(f.size or 0)
            for f in found
            if f.type == fs.FileType.File and ".tmp-" not in f.base_name
        }
        return dict(sorted(sizes.items()))

    def modified(self, name: str) -> datetime | None:
        """Return when the file ``name`` was last written, in UTC; ``None`` if the filesystem does not know."""
        filesystem, path = self._opened
        moment = filesystem.get_file_info(f"{path}/{_inside(name)}").mtime
        return moment.astimezone(timezone.utc) if isinstance(moment, datetime) else None

    def exists(self) -> bool:
        """True if the folder exists (on object stores: if any file below it exists)."""
        filesystem, path = self._opened
        return bool(filesystem.get_file_info(path).type == fs.FileType.Directory)

    def has(self, name: str) -> bool:
        """True if the file ``name`` exists."""
        filesystem, path = self._opened
        info = filesystem.get_file_info(f"{path}/{_inside(name)}")
        return bool(info.type == fs.FileType.File)

    def size(self, name: str) -> int:
        """Return the size of the file ``name`` in bytes; 0 if it does not exist."""
        filesystem, path = self._opened
        return int(filesystem.get_file_info(f"{path}/{_inside(name)}").size or 0)

    def read(self, name: str, most: int | None = None) -> bytes:
        """Return the content of the file ``name``, at most its first ``most`` bytes. Raises ``FileNotFoundError``."""
        filesystem, path = self._opened
        with filesystem.open_input_stream(f"{path}/{_inside(name)}") as stream:
            if most is None:
                return bytes(stream.read())
            # A stream allocates what it is asked for, and may not know its length.
            parts: list[bytes] = []
            while most > 0 and (part := stream.read(min(most, _PART))):
                parts.append(part)
                most -= len(part)
            return b"".join(parts)

    def open(self, name: str) -> NativeFile:
        """Open the file ``name`` for random access, so that a footer is read without the rest."""
        filesystem, path = self._opened
        return filesystem.open_input_file(f"{path}/{_inside(name)}")

    def write(self, name: str, data: bytes) -> None:
        """Write the file ``name``; other processes never see it half-written."""
        filesystem, path = self._opened
        target = f"{path}/{_inside(name)}"
        if isinstance(filesystem, fs.LocalFileSystem):
            os.makedirs(os.path.dirname(target), exist_ok=True)
            scratch = f"{target}.tmp-{uuid.uuid4().hex[:8]}"
            try:
                with open(scratch, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(scratch, target)
            finally:
                if os.path.exists(scratch):
                    os.unlink(scratch)
        else:
            with filesystem.open_output_stream(target) as stream:
                stream.write(data)

    def delete(self, name: str) -> None:
        """Remove the file ``name`` if it exists."""
        filesystem, path = self._opened
        if self.has(name):
            filesystem.delete_file(f"{path}/{_inside(name)}")

    def clear(self, name: str) -> None:
        """Remove the folder ``name`` inside this one with its content, if it exists."""
        filesystem, path = self._opened
        if self.child(name).exists():
            filesystem.delete_dir(f"{path}/{_inside(name)}")

    def read_json(self, name: str) -> Any:
        """Return the content of the JSON file ``name``, read by :func:`rayddl.documents.parse`.

        Raises ``FileNotFoundError`` and ``ValueError``.
        """
        return documents.parse(self.read(name, limits.DOCUMENT_BYTES.value + 1))

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


def split(where: str) -> tuple[Folder, str]:
    """Return the folder and the file name of a path or URI."""
    place, mark, options = where.partition("?") if "://" in where else (where, "", "")
    parent, _, name = place.rstrip("/").rpartition("/")
    return Folder((parent or ("/" if place.startswith("/") else ".")) + mark + options), name


def _inside(name: str) -> str:
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts:
        raise PathError(
            f"{name!r} does not stay inside its folder; expected a name below it, without a leading '/' and '..'",
            code="path-leaves-folder",
        )
    return name
