"""What identifies files that a stage reads and that no stage has made: their path does not say that they have changed.

Files in a folder count if they can be part of a set, of experts or of weights; a log beside them does not. Imports
neither torch nor Ray.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import partial

from rayddl.config import places
from rayddl.credentials import scrub
from rayddl.data.sources import known, trees
from rayddl.errors import ArtifactError, PathError
from rayddl.stages.settings import StageConfig
from rayddl.storage import Folder, UnreachableError, split

TENSORS = (".pt", ".pth", ".safetensors", ".parquet")
"""Endings of files whose size does not depend on their values."""
NAMED = ("set.json", "classes.txt")
END = 2**20
"""Bytes at the beginning and at the end of a file of tensors that are read: torch's files end with the checksums of
all their tensors, and those of another training differ everywhere.
"""


def identities(config: StageConfig) -> dict[str, str]:
    """By field of ``config``, the identity of the files that it names. Fields whose files are not there are left out:
    the stage says so itself.

    Raises :class:`ArtifactError` for remote storage that does not answer.
    """
    found = {
        field: known.once(("files at", where), partial(identity, where)) for field, where in places(config)
    }
    return {field: digest for field, digest in found.items() if digest}


def identity(where: str) -> str:
    """A hash of the names, sizes and contents of the files at ``where``, a path or URI; empty if there are none.

    Contents count at both ends of files of tensors (:data:`END`), in a file that is named itself, and of images by the
    size alone.
    """
    hashed, some = hashlib.sha256(), False
    try:
        for folder, name, size, content in _files(where):
            some = True
            hashed.update(f"{name}\n{size}\n".encode())
            if content:
                hashed.update(folder.read(name, END))
            if content and size > END:
                hashed.update(folder.read(name, at=max(END, size - END)))
    except UnreachableError as error:
        raise ArtifactError(
            f"the storage of {scrub(where)} does not answer: {error}. Run the same command again when it does.",
            code="import-unreachable",
        ) from error
    except (OSError, PathError):
        return ""
    return hashed.hexdigest() if some else ""


def _files(where: str) -> Iterator[tuple[Folder, str, int, bool]]:
    """The folder, name and bytes of each file, and whether its content counts."""
    whole = Folder(where)
    if whole.exists():
        for name, size in whole.listed():
            content = name.endswith(TENSORS) or name in NAMED
            if (content or trees.is_image(name)) and not trees.is_hidden(name):
                yield whole, name, size, content
        return
    folder, name = split(where)
    # The labels and the rate of a set in several files have its number or word.
    first, mark, rest = name.partition("_")
    beside = [f"{part}_{rest}" for part in ("labels", "lr")] if mark and first == "images" else []
    for each in (name, *beside):
        if folder.has(each):
            yield folder, each, folder.size(each), True
