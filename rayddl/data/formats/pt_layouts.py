"""Reads the images and labels of a set from files of torch, wherever :mod:`.pt_places` finds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rayddl import tensorfiles
from rayddl.data.formats.pt_places import Place
from rayddl.data.sources.refusals import shown
from rayddl.errors import ArtifactError
from rayddl.storage import Folder

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


def read(place: Place) -> Stored:
    """The tensors at ``place``. No code in the files is executed.

    Raises :class:`ArtifactError` for files that are no files of plain tensors, or without images and labels.
    """
    if place.labels is None:
        return _together(place, stored(place.folder, place.images))
    return Stored(
        tensor(place.folder, place.images),
        tensor(place.folder, place.labels),
        tensor(place.folder, place.rate) if place.folder.has(place.rate) else None,
    )


def _together(place: Place, found: Any) -> Stored:
    values: Sequence[Any] = ()
    if isinstance(found, Mapping):
        values = [next((found[key] for key in keys if key in found), None) for keys in _KEYS]
    elif isinstance(found, Sequence) and len(found) == 2:
        values = [*found, None]
    tensors = [value.detach() if isinstance(value, Tensor) else None for value in values]
    if not tensors or tensors[0] is None or tensors[1] is None:
        raise ArtifactError(
            f"{place.folder.path(place.images)} holds {_described(found)}, expected a set: two tensors, images and "
            "labels, in a list or in a dictionary with these names.",
            code="pt-no-images-and-labels",
        )
    rate = torch.tensor(values[2]) if isinstance(values[2], float) else tensors[2]
    return Stored(tensors[0], tensors[1], rate)


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
