"""A stage's folder and its ``manifest.json``, which is written last: a folder without it is no artifact."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import socket
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias

from rayddl import documents, locks
from rayddl.credentials import scrub
from rayddl.data.ahead import ahead
from rayddl.errors import ArtifactError, RayddlError, StageError
from rayddl.stages.context import Input
from rayddl.storage import Folder
from rayddl.version import __version__, installed

FORMAT = 1
"""The version of the manifest's layout."""

MANIFEST = "manifest.json"
ERROR = "error.txt"
LOCK = ".lock"
EVALUATIONS = "evaluations"
"""The folder of the results of `rayddl evaluate`, under ``--out``."""

State: TypeAlias = Literal["done", "partial", "new"]

RECORD = ".run.json"
"""The end of the name of a run's record."""
_NOT_LISTED = {MANIFEST, ERROR, LOCK}
_HASHED_BELOW = 64 << 20


@dataclass(frozen=True)
class Artifact:
    """A finished stage's folder with its manifest."""

    folder: Folder
    manifest: Mapping[str, Any]

    @property
    def stage(self) -> str:
        """The stage's name in the definition."""
        return str(self.manifest["stage"])

    @property
    def kind(self) -> str:
        """The stage's kind."""
        return str(self.manifest["kind"])

    @property
    def fingerprint(self) -> str:
        """64 hexadecimal digits; the folder's name ends in the first 12."""
        return str(self.manifest["fingerprint"])

    @property
    def summary(self) -> Mapping[str, Any]:
        """The summary that the stage returned."""
        summary: Mapping[str, Any] = self.manifest["summary"]
        return summary

    @property
    def table(self) -> tuple[Mapping[str, str], ...]:
        """The rows of the table that is shown at the end of the run."""
        return tuple(self.manifest["table"])

    def tables(self, name: str) -> dict[str, tuple[Mapping[str, str], ...]]:
        """The tables that have rows: :attr:`table` as ``name``, and others as ``name: heading``."""
        more = self.manifest.get("more") or {}
        every = {name: self.table, **{f"{name}: {heading}": tuple(rows) for heading, rows in more.items()}}
        return {heading: rows for heading, rows in every.items() if rows}

    @property
    def files(self) -> Mapping[str, Mapping[str, Any]]:
        """For each file, its ``bytes`` and, below 64 MiB, its ``sha256``."""
        files: Mapping[str, Mapping[str, Any]] = self.manifest["files"]
        return files

    @property
    def seconds(self) -> float:
        """Duration of the attempt that finished the stage, in seconds; 0 if the manifest has none."""
        return float(self.manifest.get("seconds", 0.0))

    @property
    def bytes(self) -> int:
        """Total size of the files in bytes."""
        return sum(int(entry["bytes"]) for entry in self.files.values())

    def as_input(self, spent: Mapping[str, float]) -> Input:
        """Return the artifact as input of another stage; ``spent`` as in :class:`Input`."""
        return Input(self.stage, self.kind, self.folder, self.manifest["config"], self.summary, spent)


def seal(folder: Folder, description: Mapping[str, Any], leftovers: Collection[str] = ()) -> Artifact:
    """Write the manifest of ``folder``, which makes it an artifact, and return the artifact.

    The manifest holds ``description`` without credentials, the files with sizes and hashes, and versions. Then
    ``leftovers`` are deleted, files and folders that are no part of the artifact. What killed writers left is deleted
    before.
    """
    folder.sweep()
    contents = {name: size for name, size in _contents(folder).items() if not _in(name, leftovers)}
    files = _entries(folder, contents)
    manifest = scrub({"format": FORMAT, **description, "versions": _versions()}) | {"files": files}
    folder.delete(ERROR)
    folder.write(MANIFEST, ordered_json(manifest))
    tidy(folder, leftovers)
    # Read back what was written, so that a first run and a resumed one pass on the same values.
    return Artifact(folder, folder.read_json(MANIFEST))


def tidy(folder: Folder, leftovers: Collection[str]) -> None:
    """Delete the files and folders ``leftovers`` of an artifact, which is complete also if the storage fails now."""

    def drop(name: str) -> None:
        folder.delete(name)
        folder.clear(name)

    with suppress(OSError, RayddlError):
        deque(ahead(((partial(drop, name), 0) for name in leftovers), threaded=folder.far), maxlen=0)


def state(folder: Folder) -> State:
    """Return ``done`` if there is a manifest, ``partial`` if there are only other files, else ``new``."""
    files = folder.files()
    if MANIFEST in files:
        return "done"
    return "partial" if any(name not in _NOT_LISTED for name in files) else "new"


def open_artifact(folder: Folder, *, fingerprint: str | None = None, verify: bool = False) -> Artifact:
    """Return the finished stage in ``folder``.

    Checks that every file exists with its size, with ``verify`` also the hashes, and with ``fingerprint``
    that the artifact has this fingerprint. Raises :class:`ArtifactError` with the expected and the found value.
    """
    manifest = _manifest(folder)
    artifact = Artifact(folder, manifest)
    if fingerprint is not None and artifact.fingerprint != fingerprint:
        raise ArtifactError(
            f"{scrub(str(folder))} holds the artifact {artifact.fingerprint}, expected {fingerprint}; "
            "choose another --out",
            code="artifact-of-another-fingerprint",
        )
    found = folder.files()
    for name, entry in artifact.files.items():
        _check_file(folder, name, entry, found, verify)
    return artifact


def _manifest(folder: Folder) -> dict[str, Any]:
    where, again = scrub(folder.path(MANIFEST)), "delete the folder; rayddl run with --stage makes it again"
    try:
        manifest: dict[str, Any] = folder.read_document(MANIFEST, documents.Format, again)
    except FileNotFoundError:
        raise ArtifactError(
            f"{scrub(str(folder))} has no {MANIFEST}: the stage has not finished there; "
            "run its definition again",
            code="stage-not-finished",
        ) from None
    if manifest["format"] > FORMAT:
        versions = manifest.get("versions")
        made_by = versions.get("rayddl") if isinstance(versions, dict) else None
        raise ArtifactError(
            f"{where} has format {manifest['format']}, written by rayddl {made_by or 'a newer one'}; this rayddl "
            f"({__version__}) reads formats up to {FORMAT}: upgrade rayddl, or choose another --out",
            code="manifest-too-new",
        )
    documents.checked(manifest, documents.Manifest, where, again)
    return manifest


def _check_file(
    folder: Folder, name: str, entry: Mapping[str, Any], found: Mapping[str, int], verify: bool
) -> None:
    again = "delete the folder; rayddl run with --stage makes it again"
    # A name in a manifest may lead out of the folder; a name that was found there cannot.
    where = scrub(folder.path(name) if name in found else f"{folder}/{name}")
    if name not in found:
        raise ArtifactError(
            f"{where} is missing, the manifest lists it with {entry['bytes']} bytes; {again}",
            code="artifact-file-missing",
        )
    if found[name] != entry["bytes"]:
        raise ArtifactError(
            f"{where} was altered: it has {found[name]} bytes, the manifest says {entry['bytes']}; {again}",
            code="artifact-file-of-another-length",
        )
    if verify and "sha256" in entry:
        actual = hashlib.sha256(folder.read(name)).hexdigest()
        if actual != entry["sha256"]:
            raise ArtifactError(
                f"{where} was altered: its sha256 is {actual}, the manifest says {entry['sha256']}; {again}",
                code="artifact-file-altered",
            )


def _in(name: str, places: Collection[str]) -> bool:
    return any(name == place or name.startswith(f"{place}/") for place in places)


def _contents(folder: Folder) -> dict[str, int]:
    return {name: size for name, size in folder.files().items() if name not in _NOT_LISTED}


def _entries(folder: Folder, sizes: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {name: {"bytes": size} for name, size in sizes.items()}
    hashed = [(name, size) for name, size in sizes.items() if size < _HASHED_BELOW]
    # A set has a file for each image, and remote storage takes as long for a small file as for a large one.
    contents = ahead(((partial(folder.read, name), size) for name, size in hashed), threaded=folder.far)
    for (name, _), content in zip(hashed, contents, strict=True):
        found[name]["sha256"] = hashlib.sha256(content).hexdigest()
    return found


def _versions() -> dict[str, str | None]:
    return {
        "rayddl": __version__,
        "python": platform.python_version(),
        **{name: installed(name) for name in ("torch", "ray")},
    }


def ordered_json(value: Any) -> bytes:
    """Return JSON with the keys in their order, which matters for columns of tables and stages of definitions."""
    return json.dumps(value, indent=1, allow_nan=False).encode() + b"\n"


@contextmanager
def locked(folder: Folder) -> Iterator[None]:
    """Lock ``folder`` for this process. Raises :class:`StageError` with the process that has locked it.

    For filesystems without locks see :func:`rayddl.locks.exclusive`.
    """
    me = json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode()
    with ExitStack() as stack:
        try:
            stack.enter_context(locks.exclusive(folder, LOCK, me))
        except locks.Busy as busy:
            raise StageError(
                f"{folder} is being written by {_holder(busy.note)}; wait until it is done, or stop it, "
                "and run the same command again",
                code="folder-locked",
            ) from None
        yield


def abandoned(folder: Folder) -> bool:
    """True if a process of this machine locked ``folder`` and was killed before it released it."""
    note = locks.left(folder, LOCK)
    try:
        return note is not None and json.loads(note)["host"] == socket.gethostname()
    except (ValueError, KeyError, TypeError):
        return False


def _holder(note: bytes) -> str:
    try:
        holder = json.loads(note)
        return f"process {holder['pid']} on {holder['host']}"
    except (ValueError, KeyError, TypeError):
        return "another process"
