"""Artifacts of tensors with a JSON document that is written last and holds the hashes of the tensor files.

A folder without the document holds no artifact. With it, the artifact is complete, unaltered and of a known
format, or reading it raises an error that says what to do.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors import torch as safetensors
from torch import Tensor

from rayddl import documents, localfiles
from rayddl.credentials import scrub
from rayddl.errors import ArtifactError
from rayddl.storage import Folder

MAPPED_BYTES = 64 * 2**20
"""The size from which a local file of tensors is mapped into memory: the kernel reads and drops parts as needed."""
_PART = 2**20


@dataclass(frozen=True)
class Kind:
    """A kind of artifact, and the words for it in messages."""

    format: str
    """The format name in the document."""
    version: int
    """The newest format version that this rayddl reads."""
    document: str
    """The document's file name."""
    name: str
    """A noun, e.g. ``observer``."""
    article: str
    """The article of the noun, e.g. ``an``; empty for a plural."""
    again: str
    """How to make it again: ``run the teacher stage again``."""
    model: type[documents.Document] = documents.Sealed
    """The types of the document."""

    @property
    def _verbs(self) -> tuple[str, str]:
        return ("is", "has") if self.article else ("are", "have")

    def head(self) -> dict[str, Any]:
        """Return the first keys of every document of the kind."""
        return {"format": self.format, "version": self.version}

    def read(self, folder: Folder) -> dict[str, Any]:
        """Return the document in ``folder``. Raises :class:`ArtifactError` if missing, damaged or not readable here."""
        path, again = folder.path(self.document), self.again
        try:
            found: dict[str, Any] = folder.read_document(self.document, documents.Document, again)
        except FileNotFoundError as error:
            raise ArtifactError(
                f"{folder} holds no whole {self.name}: {self.document} is missing, which is written last. Name "
                f"the folder that holds {'it' if self.article else 'them'}, or {again}.",
                code="document-missing",
            ) from error
        if found.get("format") != self.format:
            called = f"{self.article} {self.name}".strip()
            raise ArtifactError(
                f"{path} does not describe {called} ({self.format!r}).", code="document-of-another-kind"
            )
        version = found.get("version")
        if not isinstance(version, int) or version > self.version:
            raise ArtifactError(
                f"the {self.name} in {folder} {self._verbs[1]} format version {version}, this rayddl reads up to "
                f"{self.version}. Use a newer rayddl.",
                code="document-too-new",
            )
        documents.checked(found, documents.Sealed, path, again)
        documents.checked(found, self.model, path, again)
        return found

    def file(self, folder: Folder, document: Mapping[str, Any], name: str) -> dict[str, Tensor]:
        """Return the tensors in the file ``name``, checked against the hash in the document.

        Raises :class:`ArtifactError` if the file is missing, altered or unreadable.
        """
        try:
            found, content = _read(folder, name)
        except FileNotFoundError as error:
            raise ArtifactError(
                f"the {self.name} in {folder} {self._verbs[0]} incomplete: {name} is missing. Copy the whole folder.",
                code="sealed-file-missing",
            ) from error
        stored = document.get("files", {}).get(name, {}).get("sha256")
        if found != stored:
            raise ArtifactError(
                f"{folder.path(name)} was altered: its SHA-256 is {found}, {self.document} says {stored}. "
                f"Restore it, or {self.again}.",
                code="sealed-file-altered",
            )
        try:
            return content()
        except SafetensorError as error:
            raise ArtifactError(
                f"{folder.path(name)} cannot be read: {error}. {_sentence(self.again)}",
                code="sealed-file-unreadable",
            ) from error


def entry(data: bytes) -> dict[str, Any]:
    """Return the entry in a document's ``files`` for a file with the content ``data``."""
    return {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


def write(folder: Folder, name: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Write ``tensors``, contiguous and on the CPU, as the file ``name``; return its :func:`entry`.

    Takes no memory for a copy of them.
    """
    with folder.writing(name) as path:
        safetensors.save_file(dict(tensors), path)
        return {"sha256": _hash(path), "bytes": path.stat().st_size}


def _hash(path: Path) -> str:
    made = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(_PART):
            made.update(part)
    return made.hexdigest()


def _read(folder: Folder, name: str) -> tuple[str, Callable[[], dict[str, Tensor]]]:
    """The SHA-256 of a file of tensors, and a function that returns these."""
    path = folder.local_file(name)
    # A name that is not UTF-8 cannot be given to what maps the file.
    if path is None or localfiles.shown(str(path)) != str(path) or path.stat().st_size < MAPPED_BYTES:
        data = folder.read(name)
        return hashlib.sha256(data).hexdigest(), lambda: dict(safetensors.load(data))
    return _hash(path), lambda: dict(safetensors.load_file(path))


def document(value: Mapping[str, Any]) -> bytes:
    """Return the content of a JSON document, without credentials in URIs. Raises ``ValueError`` for NaN.

    Keys are in their order, which matters for the stages of definitions.
    """
    return json.dumps(scrub(value), indent=1, allow_nan=False).encode() + b"\n"


def _sentence(clause: str) -> str:
    return f"{clause[0].upper()}{clause[1:]}."
