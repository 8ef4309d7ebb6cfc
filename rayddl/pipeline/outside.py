"""What identifies the files that a stage reads and no stage has made: their path does not say that they have changed.

Imports neither torch nor Ray.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import partial

from rayddl.config import places
from rayddl.credentials import scrub
from rayddl.data.sources import known, trees
from rayddl.errors import ArtifactError, PathError, RayddlError
from rayddl.stages.settings import FileRead, StageConfig

END = 2**20
"""Bytes at the beginning and at the end of a larger file that are read. Files of torch end with the checksums of their
tensors, Parquet's with statistics of its columns; of others a change in the middle alone is not noticed."""
MANY = 10_000
"""Images of a set of which more count by name and size alone, as they do on remote storage."""
REFUSED = "refused"
"""The identity of what is no set, or no place that is read: the stage reports it."""


def identities(configs: Iterable[StageConfig], *, again: bool = False) -> dict[str, str | ArtifactError]:
    """By place, a path or URI in settings of ``configs``: a hash of the names, sizes and contents of the files that are
    read there; empty if there are none; or the error for a place that cannot be read now. A command reads each file
    once, unless ``again``.

    Raises the errors of :mod:`rayddl.hosts`.
    """
    found: dict[str, str | ArtifactError] = {}
    for config in configs:
        for _, where in places(config):
            if where not in found:
                found[where] = _identity(config, where, again=again)
    return {scrub(where): identity for where, identity in found.items()}


def _identity(config: StageConfig, where: str, *, again: bool) -> str | ArtifactError:
    hashed = hashlib.sha256()
    try:
        found = list(config.files_at(where))
        images = sum(trees.is_image(each.name) for each in found)
        for each in found:
            hashed.update(f"{each.name}\n{each.bytes}\n".encode())
            if trees.is_image(each.name) and (each.folder.far or images > MANY):
                continue
            key, digest = ("file", str(each.folder), each.name), partial(_digest, each)
            hashed.update((digest() if again else known.once(key, digest)).encode())
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except (ArtifactError, PathError, ValueError):
        return REFUSED
    except RayddlError:
        raise
    except Exception as error:  # each kind of storage has errors of its own
        return ArtifactError(
            f"{scrub(where)} cannot be read: {scrub(str(error))}. Whether its files have changed is not known; run the "
            "same command again when they can be read.",
            code="files-unreadable",
        )
    return hashed.hexdigest() if found else ""


def _digest(file: FileRead) -> str:
    hashed = hashlib.sha256(file.folder.read(file.name, END))
    if file.bytes > END:
        hashed.update(file.folder.read(file.name, at=max(END, file.bytes - END)))
    return hashed.hexdigest()
