"""Image files in folders: the code common to all families of folder trees.

A family finds its files and assigns classes to them (a :class:`Survey`); this module lists and decodes
them. Imports no torch.
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
    """One image file, not yet read."""

    name: str
    """Path relative to the split's folder."""
    class_: str
    bytes: int


@dataclass(frozen=True)
class Split:
    """The image files of one split, in the order of loading."""

    folder: Folder
    files: tuple[ImageFile, ...]


@dataclass(frozen=True)
class Survey:
    """Files and classes of a folder tree, without images."""

    classes: tuple[str, ...]
    splits: Mapping[str, Split]
    """``train`` and ``test``."""


def list_images(folder: Folder) -> list[tuple[str, int]]:
    """Name and bytes of every image file in ``folder`` and below, sorted by name, without hidden files."""
    return [(name, size) for name, size in folder.files().items() if is_image(name)]


def is_image(name: str) -> bool:
    """True if ``name`` has an image's ending and no component of it is hidden."""
    parts = PurePosixPath(name)
    hidden = any(part.startswith(".") for part in parts.parts)
    return not hidden and parts.suffix.lower() in EXTENSIONS


def load(config: SourceConfig, fingerprint: str, survey: Survey) -> Source:
    """Both splits in memory; each file is read once, a few hundred at a time."""
    from rayddl.data.sources.splits import build

    train, test = (batches(survey.splits[split], survey.classes) for split in ("train", "test"))
    return build(config, fingerprint, survey.classes, train, test)


def batches(split: Split, classes: Sequence[str]) -> Iterator[list[Encoded]]:
    """The files of ``split``, to be read and decoded; labels are indices into ``classes``."""
    from rayddl.data.pixels.decode import Encoded

    index = {name: position for position, name in enumerate(classes)}
    for start in range(0, len(split.files), _FILES_AT_ONCE):
        yield [
            Encoded(split.folder.path(file.name), index[file.class_], partial(split.folder.read, file.name))
            for file in split.files[start : start + _FILES_AT_ONCE]
        ]


def listing(survey: Survey, name: str) -> Listing:
    """The listing of the split ``name``; opens no file."""
    from rayddl.data.sources.listing import FileStore, sorted_listing

    split, index = survey.splits[name], {name: position for position, name in enumerate(survey.classes)}
    labels = np.fromiter((index[file.class_] for file in split.files), np.int32, len(split.files))
    return sorted_listing(
        [file.name for file in split.files], labels, survey.classes, FileStore(split.folder)
    )


def refuse_no_images(name: str, folder: str, split: Sized, looked_for: str, tree: str) -> None:
    """Raise :class:`SourceError` if a split has no files. ``tree`` is the expected layout."""
    if not split:
        raise SourceError(
            f"source {name}: no image in {folder}. Looked for {looked_for} with an ending of "
            f"{', '.join(EXTENSIONS)}. Expected:\n{tree}",
            code="tree-without-images",
        )
