"""Image files in folders: what every family of such trees has in common.

A family finds its files and says which class each belongs to (a :class:`Survey`); listing, decoding
and what is hashed are here. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from rayddl.data.config import SourceConfig
from rayddl.errors import SourceError
from rayddl.storage import Folder

if TYPE_CHECKING:
    from rayddl.data.dataset import Source
    from rayddl.data.pixels.decode import Encoded
    from rayddl.data.sources.listing import Listing

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
_FILES_AT_ONCE = 512


class ImageFile(NamedTuple):
    """One image not yet read."""

    name: str
    """Relative to its split's folder."""
    class_: str
    bytes: int


@dataclass(frozen=True)
class Split:
    """The image files of one split, in the order they are loaded in."""

    folder: Folder
    files: tuple[ImageFile, ...]


@dataclass(frozen=True)
class Survey:
    """Everything about a tree but the pixels."""

    classes: tuple[str, ...]
    splits: Mapping[str, Split]
    """``train`` and ``test``."""


def list_images(folder: Folder) -> list[tuple[str, int]]:
    """Name and bytes of every image file in ``folder`` and below, sorted by name; hidden ones are no images."""
    return [(name, size) for name, size in folder.files().items() if is_image(name)]


def is_image(name: str) -> bool:
    """Whether the ending of ``name`` is an image's and nothing on its way is hidden."""
    parts = PurePosixPath(name)
    hidden = any(part.startswith(".") for part in parts.parts)
    return not hidden and parts.suffix.lower() in EXTENSIONS


def load(config: SourceConfig, fingerprint: str, survey: Survey) -> Source:
    """Decode both splits; each file is read once, a few hundred at a time."""
    from rayddl.data.sources.splits import build

    train, test = (batches(survey.splits[split], survey.classes) for split in ("train", "test"))
    return build(config, fingerprint, survey.classes, train, test)


def batches(split: Split, classes: Sequence[str]) -> Iterator[list[Encoded]]:
    """The files of ``split`` to be read and decoded; labels are positions in ``classes``."""
    from rayddl.data.pixels.decode import Encoded

    index = {name: position for position, name in enumerate(classes)}
    for start in range(0, len(split.files), _FILES_AT_ONCE):
        yield [
            Encoded(split.folder.path(file.name), index[file.class_], partial(split.folder.read, file.name))
            for file in split.files[start : start + _FILES_AT_ONCE]
        ]


def listing(survey: Survey, name: str) -> Listing:
    """The split ``name`` for a stream: no file is opened."""
    from rayddl.data.sources.listing import FileStore, sorted_listing

    split, index = survey.splits[name], {name: position for position, name in enumerate(survey.classes)}
    labels = np.fromiter((index[file.class_] for file in split.files), np.int32, len(split.files))
    return sorted_listing(
        [file.name for file in split.files], labels, survey.classes, FileStore(split.folder)
    )


def refuse_no_images(name: str, folder: str, split: Sized, looked_for: str, tree: str) -> None:
    """Raise :class:`SourceError` when a split has no files. ``tree`` shows how it should look."""
    if not split:
        raise SourceError(
            f"source {name}: no image in {folder}. Looked for {looked_for} with an ending of "
            f"{', '.join(EXTENSIONS)}. Expected:\n{tree}",
            code="tree-without-images",
        )
