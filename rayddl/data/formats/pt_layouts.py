"""Finds the images and labels of a set in files of torch, in the layouts in which codes of the field save them.

MTT's code and those that build on it save a file of images and one of labels, ``images_best.pt`` and
``labels_best.pt``, or with the number of an iteration in place of ``best``, and some the learning rate. Others save one
file: a list of two tensors, or a dictionary that names them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rayddl import tensorfiles
from rayddl.data.sources.refusals import shown
from rayddl.errors import ArtifactError
from rayddl.storage import Folder, split

IMAGES, LABELS, RATE = "images_best.pt", "labels_best.pt", "lr_best.pt"
SUFFIXES = (".pt", ".pth")
_NUMBERED = re.compile(r"images_(\d{1,18})\.pt")
_KEYS = (
    ("images", "image", "image_syn", "images_syn", "syn_images", "data", "x"),
    ("labels", "label", "label_syn", "labels_syn", "syn_labels", "targets", "y"),
    ("lr", "syn_lr", "lr_student"),
)


@dataclass(frozen=True)
class Stored:
    """The tensors of a set as files hold them."""

    images: Tensor
    labels: Tensor
    rate: Tensor | None
    """The student's learning rate, if it is stored."""


@dataclass(frozen=True)
class Place:
    """Where a set is: a file of images and one of labels in ``folder``, or one file with both."""

    folder: Folder
    images: str
    labels: str | None = None
    """``None``: in the same file as the images."""

    def read(self) -> Stored:
        """The tensors. No code in the files is executed.

        Raises :class:`ArtifactError` for files that are no files of plain tensors, or without images and labels.
        """
        if self.labels is None:
            return self._together(stored(self.folder, self.images))
        rate = f"lr_{self.images.removeprefix('images_')}"
        return Stored(
            tensor(self.folder, self.images),
            tensor(self.folder, self.labels),
            tensor(self.folder, rate) if self.folder.has(rate) else None,
        )

    def _together(self, found: Any) -> Stored:
        values: Sequence[Any] = ()
        if isinstance(found, Mapping):
            values = [next((found[key] for key in keys if key in found), None) for keys in _KEYS]
        elif isinstance(found, Sequence) and len(found) == 2:
            values = [*found, None]
        tensors = [value.detach() if isinstance(value, Tensor) else None for value in values]
        if not tensors or tensors[0] is None or tensors[1] is None:
            raise ArtifactError(
                f"{self.folder.path(self.images)} holds {_described(found)}, expected a set: two tensors, images and "
                "labels, in a list or in a dictionary with these names.",
                code="pt-no-images-and-labels",
            )
        rate = torch.tensor(values[2]) if isinstance(values[2], float) else tensors[2]
        return Stored(tensors[0], tensors[1], rate)

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


def tensor(folder: Folder, name: str) -> Tensor:
    """The one tensor in the file ``name``. Raises :class:`ArtifactError` for anything else."""
    found = stored(folder, name)
    if not isinstance(found, Tensor):
        raise ArtifactError(
            f"{folder.path(name)} holds {type(found).__name__}, expected one tensor; save it alone.",
            code="pt-not-one-tensor",
        )
    return found.detach()


def stored(folder: Folder, name: str) -> Any:
    """What the file ``name`` holds: tensors in lists and dictionaries. Raises :class:`ArtifactError`."""
    try:
        with folder.open(name) as stream:
            return tensorfiles.load(stream)
    except tensorfiles.NotTensors as error:
        raise ArtifactError(
            f"{folder.path(name)} is no file of plain tensors: {error}. Files that need code to be read are not "
            'opened. Save the tensors alone: torch.save([images, labels], "data.pt").',
            code="pt-not-tensors",
        ) from error
    except OSError as error:
        raise ArtifactError(f"{folder.path(name)} cannot be read: {error}.", code="pt-unreadable") from error


def _described(found: Any) -> str:
    if isinstance(found, Mapping):
        return f"a dictionary with {shown([str(key) for key in found])}"
    if isinstance(found, Tensor):
        return f"one tensor of {found.dtype} {tuple(found.shape)}"
    if isinstance(found, Sequence) and not isinstance(found, str):
        kinds = dict.fromkeys(type(each).__name__ for each in found)
        return f"a list of {len(found)}: {', '.join(kinds)}"
    return type(found).__name__
