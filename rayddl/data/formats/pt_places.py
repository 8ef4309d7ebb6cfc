"""Where a set in files of torch is, in the layouts in which codes of the field save them. Imports no torch.

MTT's code and those that build on it save a file of images and one of labels, ``images_best.pt`` and
``labels_best.pt``, or with the number of an iteration in place of ``best``, and some the learning rate. Others save one
file: a list of two tensors, or a dictionary that names them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from rayddl.storage import Folder, split

IMAGES, LABELS, RATE = "images_best.pt", "labels_best.pt", "lr_best.pt"
META, SPACE = "set.json", "space.safetensors"
"""What rayddl's own exports add to these."""
SUFFIXES = (".pt", ".pth")
_NUMBERED = re.compile(r"images_(\d{1,18})\.pt")


@dataclass(frozen=True)
class Place:
    """Where a set is: a file of images and one of labels in ``folder``, or one file with both."""

    folder: Folder
    images: str
    labels: str | None = None
    """``None``: in the same file as the images."""

    @property
    def rate(self) -> str:
        """The file of the learning rate, which may be beside those of images and labels."""
        return f"lr_{self.images.removeprefix('images_')}"

    @property
    def names(self) -> tuple[str, ...]:
        """The files that are read, of which the rate and those of an export need not be there."""
        if self.labels is None:
            return (self.images,)
        return (self.images, self.labels, self.rate, *((META, SPACE) if self.exported else ()))

    @property
    def exported(self) -> bool:
        """True for the names of rayddl's own exports, beside which there may be files that complete them."""
        return (self.images, self.labels) == (IMAGES, LABELS)

    @property
    def labels_path(self) -> str:
        """The path of the file with the labels, for messages."""
        return self.folder.path(self.labels or self.images)


def is_file(where: str) -> bool:
    """True if ``where`` is the path or URI of a file of torch, by its name."""
    return where.partition("?")[0].endswith(SUFFIXES)


def at(where: str) -> Place | None:
    """The set in the file or folder ``where``, a path or URI; ``None`` if there is none. A file of images may have its
    labels beside it.
    """
    if not is_file(where):
        return find(Folder(where))
    folder, name = split(where)
    labels = f"labels_{name.removeprefix('images_')}"
    beside = name.startswith("images_") and folder.has(labels)
    return Place(folder, name, labels if beside else None) if folder.has(name) else None


def find(folder: Folder) -> Place | None:
    """The set in ``folder``; ``None`` if there is none. Of several iterations' files, the last iteration's."""
    if is_pair(folder):
        return Place(folder, IMAGES, LABELS)
    names = set(folder.names())
    numbers = (int(found[1]) for name in names if (found := _NUMBERED.fullmatch(name)))
    for number in sorted(numbers, reverse=True):
        if f"labels_{number}.pt" in names:
            return Place(folder, f"images_{number}.pt", f"labels_{number}.pt")
    files = [name for name in names if name.endswith(SUFFIXES)]
    return Place(folder, files[0]) if len(files) == 1 else None


def is_pair(folder: Folder) -> bool:
    """True if ``folder`` has ``images_best.pt`` and ``labels_best.pt``."""
    return folder.has(IMAGES) and folder.has(LABELS)
