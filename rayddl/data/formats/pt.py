"""Sets in torch's files, as the published code saves them.

rayddl's own exports add ``set.json`` and ``space.safetensors``, so they load completely. Files of other code
do not name their classes or pixel space, and do not say what their labels are: classes, probabilities, or logits, as
DATM's code saves them.
"""

from __future__ import annotations

from typing import Any

import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors
from torch import Tensor

from rayddl import documents, limits
from rayddl.data.distilled import LR_STUDENT, DistilledSet
from rayddl.data.formats import pt_layouts
from rayddl.data.formats.pt_places import META, SPACE, Place
from rayddl.data.pixels.space import Normalise, PixelSpace
from rayddl.errors import ArtifactError
from rayddl.storage import Folder

SPREAD = 2.5
"""For pixels of unknown scale, pictures show the mean plus and minus this many standard deviations."""


BRIGHTEST = 30
"""Images without a negative value and with one above this are pixels up to 255, not scaled ones."""
SUM_TOLERANCE = 1e-2
"""Largest deviation from 1 of the sum of a row of probabilities."""


def load_place(place: Place) -> DistilledSet:
    """The set at ``place``, with unchanged tensors. No code in the files is executed.

    Without rayddl's files, classes are named by their numbers, and the pixel space is estimated, which
    suffices for pictures only: such a set names no source, and evaluating it needs one. Raises
    :class:`ArtifactError` for files without images and labels.
    """
    folder, stored = place.folder, pt_layouts.read(place)
    images = stored.images
    counted = images.dtype == torch.uint8
    if images.ndim != 4 or not (images.is_floating_point() or counted) or images.numel() == 0:
        raise ArtifactError(
            f"{folder.path(place.images)} holds images of {images.dtype} {tuple(images.shape)}, expected [N, C, H, W] "
            "of floats as a network is trained on them, or of uint8, pixels up to 255",
            code="pt-images-malformed",
        )
    if not counted:
        images = images.float()
        _refuse_unlikely(folder.path(place.images), images)
    labels, read_as = _labels(stored.labels, place.labels_path, len(images))
    classes = labels.shape[1] if labels.ndim == 2 else int(labels.max()) + 1
    if classes > limits.CLASSES.value:
        raise ArtifactError(
            f"{place.labels_path} has labels of {limits.CLASSES.exceeded(classes, 'classes')}",
            code="pt-too-many-classes",
        )
    if place.exported and folder.has(META):
        made = _own(folder, images, labels)
    else:
        made = _foreign(images, labels, _rate(place, stored.rate), read_as)
    wrong = made.wrong_values()
    if wrong:
        raise ArtifactError(
            f"the set in {folder} cannot be trained on: {wrong}. Save it again without that.",
            code="pt-values-wrong",
        )
    return made


def _refuse_unlikely(where: str, images: Tensor) -> None:
    if images.isfinite().all() and images.min() >= 0 and images.max() > BRIGHTEST:
        raise ArtifactError(
            f"{where} holds pixels from {float(images.min()):g} to {float(images.max()):g}, expected images as a "
            "network is trained on them, of mean about 0 and deviation about 1. Save them so, or pixels as uint8.",
            code="pt-images-not-scaled",
        )


def _labels(found: Tensor, where: str, count: int) -> tuple[Tensor, str]:
    """The labels, int64 [N] or probabilities float32 [N, K], and how the numbers were read.

    Raises :class:`ArtifactError` for numbers that are neither classes nor probabilities nor logits.
    """
    if found.ndim not in (1, 2) or found.is_complex() or found.numel() == 0 or len(found) != count:
        raise ArtifactError(
            f"{where} holds {found.dtype} {tuple(found.shape)}, expected int64 [{count}] or float [{count}, K] as "
            f"there are {count} images",
            code="pt-labels-malformed",
        )
    # Not every type of numbers has the operations below.
    found = found.double() if found.is_floating_point() else found.to(torch.int64)
    if not found.isfinite().all():
        raise ArtifactError(f"{where} holds numbers that are not finite", code="pt-labels-not-finite")
    if found.ndim == 1 or found.shape[1] == 1:
        whole = found.reshape(-1).round().to(torch.int64)
        if not torch.equal(whole.to(found.dtype), found.reshape(-1)) or int(whole.min()) < 0:
            raise ArtifactError(
                f"{where} holds numbers from {float(found.min()):g} to {float(found.max()):g}, expected classes: whole "
                "numbers from 0",
                code="pt-labels-no-classes",
            )
        return whole, "classes"
    rows = found.float()
    if rows.min() >= 0 and (rows.sum(1) - 1).abs().max() < SUM_TOLERANCE:
        return rows, "probabilities"
    if rows.min() < 0:
        return rows.softmax(1), "logits"
    raise ArtifactError(
        f"{where} holds rows that are no probabilities (their sums are {float(rows.sum(1).min()):g} to "
        f"{float(rows.sum(1).max()):g}, expected 1), and may be no logits (none is negative). Save probabilities.",
        code="pt-labels-unclear",
    )


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


def _foreign(images: Tensor, labels: Tensor, rate: float, read_as: str) -> DistilledSet:
    soft = labels.ndim == 2
    count = labels.shape[1] if soft else int(labels.max()) + 1
    info: dict[str, Any] = {"method": "imported", "guessed": ["classes", "space"], "labels_read_as": read_as}
    names = tuple(str(number) for number in range(count))
    return DistilledSet(images, labels, rate, names, _guessed(images), info)


def _rate(place: Place, rate: Tensor | None) -> float:
    if rate is None:
        return LR_STUDENT
    if rate.numel() != 1 or rate.is_complex():
        raise ArtifactError(
            f"{place.folder} holds a learning rate of {rate.dtype} {tuple(rate.shape)} for {place.images}, expected "
            "one number",
            code="pt-rate-malformed",
        )
    return float(rate)


def _guessed(images: Tensor) -> PixelSpace:
    """A pixel space in which most pixels decode to values between black and white; for pixels as uint8 that of their
    own mean and deviation.
    """
    channels, height, width = (int(n) for n in images.shape[1:])
    pixels = images.double().transpose(0, 1).flatten(1)
    mean, std = pixels.mean(1), pixels.std(1, correction=0).clamp(min=1e-6)
    if images.dtype == torch.uint8:
        return Normalise((channels, height, width), mean / 255, std / 255)
    half = SPREAD * std
    # (x - (mean - half)) / (2 half), written in the form x * std + mean of a pixel space.
    std = 0.5 / half
    return Normalise((channels, height, width), 0.5 - mean * std, std)
