"""Sets as two torch files, ``images_best.pt`` and ``labels_best.pt``: the layout of the published code.

rayddl's own exports add ``set.json`` and ``space.safetensors``, so they load completely. Files of other code
do not name their classes or pixel space.
"""

from __future__ import annotations

from typing import Any

import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors
from torch import Tensor

from rayddl import documents, limits, tensorfiles
from rayddl.data.distilled import LR_STUDENT, DistilledSet
from rayddl.data.pixels.space import Normalise, PixelSpace
from rayddl.errors import ArtifactError
from rayddl.storage import Folder

IMAGES, LABELS, RATE = "images_best.pt", "labels_best.pt", "lr_best.pt"
META, SPACE = "set.json", "space.safetensors"
SPREAD = 2.5
"""For pixels of unknown scale, pictures show the mean plus and minus this many standard deviations."""


def is_pair(folder: Folder) -> bool:
    """True if ``folder`` has both torch files of a set."""
    return folder.has(IMAGES) and folder.has(LABELS)


def load_pair(folder: Folder) -> DistilledSet:
    """The set in ``folder``, with unchanged tensors. No code in the files is executed.

    Without rayddl's files, classes are named by their numbers, and the pixel space is estimated, which
    suffices for pictures only: such a set names no source, and evaluating it needs one. Raises
    :class:`ArtifactError` for files without images and labels.
    """
    images, labels = _tensor(folder, IMAGES), _tensor(folder, LABELS)
    if images.ndim != 4 or not images.is_floating_point() or len(images) == 0:
        raise ArtifactError(
            f"{folder.path(IMAGES)} holds {images.dtype} {tuple(images.shape)}, expected float images [N, C, H, W]",
            code="pt-images-malformed",
        )
    if not labels.is_complex():
        labels = labels.float() if labels.is_floating_point() else labels.to(torch.int64)
    wanted = 2 if labels.is_floating_point() else 1
    if labels.ndim != wanted or len(labels) != len(images) or labels.is_complex():
        raise ArtifactError(
            f"{folder.path(LABELS)} holds {labels.dtype} {tuple(labels.shape)}, expected int64 [{len(images)}] or "
            f"float [{len(images)}, K] as there are {len(images)} images",
            code="pt-labels-malformed",
        )
    if not labels.is_floating_point() and int(labels.min()) < 0:
        raise ArtifactError(
            f"{folder.path(LABELS)} has the label {int(labels.min())}; labels are numbers of classes from 0 on. "
            "Take images without a class out.",
            code="pt-label-negative",
        )
    classes = labels.shape[1] if labels.is_floating_point() else int(labels.max()) + 1
    if classes > limits.CLASSES.value:
        raise ArtifactError(
            f"{folder.path(LABELS)} has labels of {limits.CLASSES.exceeded(classes, 'classes')}",
            code="pt-too-many-classes",
        )
    images = images.float()
    return _own(folder, images, labels) if folder.has(META) else _foreign(folder, images, labels)


def _own(folder: Folder, images: Tensor, labels: Tensor) -> DistilledSet:
    try:
        meta = folder.read_document(META, documents.DistilledSetDocument, "copy all files of the export")
        space = PixelSpace.from_parts(meta["space"], safetensors.load(folder.read(SPACE)))
        rate, classes, info = float(meta["lr_student"]), tuple(meta["classes"]), meta["info"]
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise ArtifactError(
            f"{folder.path(META)} or {SPACE} beside it is missing or no part of an export: {error}. Copy all files "
            f"of the export, or remove {META} to read the tensors alone.",
            code="pt-export-incomplete",
        ) from error
    return DistilledSet(images, labels, rate, classes, space, info)


def _foreign(folder: Folder, images: Tensor, labels: Tensor) -> DistilledSet:
    soft = labels.ndim == 2
    count = labels.shape[1] if soft else int(labels.max()) + 1
    rate = _rate(folder) if folder.has(RATE) else LR_STUDENT
    info: dict[str, Any] = {"method": "imported", "guessed": ["classes", "space"]}
    names = tuple(str(number) for number in range(count))
    return DistilledSet(images, labels, rate, names, _guessed(images), info)


def _rate(folder: Folder) -> float:
    rate = _tensor(folder, RATE)
    if rate.numel() != 1 or rate.is_complex():
        raise ArtifactError(
            f"{folder.path(RATE)} holds {rate.dtype} {tuple(rate.shape)}, expected one number",
            code="pt-rate-malformed",
        )
    return float(rate)


def _guessed(images: Tensor) -> PixelSpace:
    """A pixel space in which most pixels decode to values between black and white."""
    pixels = images.double().transpose(0, 1).flatten(1)
    mean, half = pixels.mean(1), SPREAD * pixels.std(1, correction=0).clamp(min=1e-6)
    channels, height, width = (int(n) for n in images.shape[1:])
    # (x - (mean - half)) / (2 half), written in the form x * std + mean of a pixel space.
    std = 0.5 / half
    return Normalise((channels, height, width), 0.5 - mean * std, std)


def _tensor(folder: Folder, name: str) -> Tensor:
    with folder.open(name) as stream:
        try:
            found = tensorfiles.load(stream)
        except tensorfiles.NotTensors as error:
            raise ArtifactError(
                f"{folder.path(name)} is no file of plain tensors: {error}. Files that need code to be read are not "
                "opened.",
                code="pt-not-tensors",
            ) from error
    if not isinstance(found, Tensor):
        raise ArtifactError(
            f"{folder.path(name)} holds {type(found).__name__}, expected one tensor; save it alone.",
            code="pt-not-one-tensor",
        )
    return found.detach()
