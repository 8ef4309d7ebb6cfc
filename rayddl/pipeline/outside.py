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
from rayddl.errors import ArtifactError
from rayddl.stages.settings import FileRead, StageConfig

END = 2**20
"""Bytes at the beginning and at the end of a larger file that are read. Files of torch end with the checksums of their
tensors, Parquet's with statistics of its columns; of others a change in the middle alone is not noticed."""
MANY = 10_000
"""Images of a set of which more count by name and size alone, as they do on remote storage."""


def names_files(configs: Iterable[StageConfig]) -> bool:
    """True if a setting of ``configs`` is a path."""
    return any(True for config in configs for _ in places(config))


def identity(configs: Iterable[StageConfig], *, again: bool = False) -> str:
    """A hash of the names, sizes and contents of the files that stages with these settings read; empty if there are
    none, which the stage reports. A command reads each file once, unless ``again``.

    Raises :class:`ArtifactError` for places that cannot be read.
    """
    hashed, some = hashlib.sha256(), False
    for config in configs:
        try:
            found = list(config.files())
            images = sum(trees.is_image(each.name) for each in found)
            for each in found:
                some = True
                hashed.update(f"{each.name}\n{each.bytes}\n".encode())
                if trees.is_image(each.name) and (each.folder.far or images > MANY):
                    continue
                key, digest = ("file", str(each.folder), each.name), partial(_digest, each)
                hashed.update((digest() if again else known.once(key, digest)).encode())
        except (FileNotFoundError, NotADirectoryError, ValueError):
            continue
        except ArtifactError:
            continue  # there is no set
        except OSError as error:
            where = ", ".join(scrub(where) for _, where in places(config))
            raise ArtifactError(
                f"{where} cannot be read: {error}. Whether its files have changed is not known; run the same command "
                "again when they can be read.",
                code="files-unreadable",
            ) from error
    return hashed.hexdigest() if some else ""


def _digest(file: FileRead) -> str:
    hashed = hashlib.sha256(file.folder.read(file.name, END))
    if file.bytes > END:
        hashed.update(file.folder.read(file.name, at=max(END, file.bytes - END)))
    return hashed.hexdigest()
