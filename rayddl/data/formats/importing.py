"""Imports sets made by other code: converts classes, pixel space and image size to those of a source.

Four formats are read: a rayddl set; ``images_best.pt`` with ``labels_best.pt``, as the published code saves
them; images in folders by class; and one Parquet table with the columns ``image`` and ``label``. Classes are
matched by name if the format has names; numbers are indices into the source's classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from rayddl.data import views
from rayddl.data.distilled import LR_STUDENT, DistilledSet
from rayddl.data.formats import pt as pairs
from rayddl.data.pixels.decode import Encoded, decode
from rayddl.data.pixels.space import PixelSpace
from rayddl.data.sources import parquet_bounds, parquet_labels, trees
from rayddl.data.sources.refusals import shown
from rayddl.errors import ArtifactError, SourceError
from rayddl.storage import Folder

Form = Literal["set", "pt", "imagefolder", "parquet"]
SET_FILE = "set.json"
LOOKED_FOR = "set.json, images_best.pt and labels_best.pt, folders of images by class, or one .parquet file"


@dataclass(frozen=True)
class Home:
    """The classes, image shape and pixel space of the source that a set is converted to."""

    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    """(C, H, W)."""
    space: PixelSpace


def form_of(folder: Folder) -> Form:
    """The format of the set in ``folder``. Raises :class:`ArtifactError` if there is no set."""
    if pairs.is_pair(folder):
        return "pt"
    if folder.has(SET_FILE):
        return "set"
    if _table_in(folder) is not None:
        return "parquet"
    if any("/" in name for name, _ in trees.list_images(folder)):
        return "imagefolder"
    raise ArtifactError(f"there is no set in {folder}: looked for {LOOKED_FOR}.", code="no-set-here")


def bring(folder: Folder, form: Form, home: Home) -> DistilledSet:
    """The set in ``folder``, converted to the source ``home``.

    Raises :class:`ArtifactError` if classes or sizes differ from the source's, or files cannot be read.
    """
    if form == "set":
        return DistilledSet.load(folder)
    if form == "pt":
        return _pair(folder, home)
    images, labels, soft = _tree(folder, home) if form == "imagefolder" else _table(folder, home)
    order = labels.argsort(stable=True)
    kept = labels[order] if soft is None else soft[order]
    return DistilledSet(images[order], kept, LR_STUDENT, home.classes, home.space, {"method": "imported"})


def _pair(folder: Folder, home: Home) -> DistilledSet:
    made = pairs.load_pair(folder)
    if "guessed" not in made.info:
        return made
    if made.space.shape != home.shape:
        raise ArtifactError(
            f"the images in {folder} are {made.space.shape} (channels, height, width), the source's {home.shape}. "
            "Name the source that they were made from.",
            code="images-of-another-shape",
        )
    labels = made.labels
    if labels.ndim == 2 and labels.shape[1] != len(home.classes):
        raise ArtifactError(
            f"the labels in {folder} are of {labels.shape[1]} classes, the source has {len(home.classes)}.",
            code="labels-of-other-classes",
        )
    if labels.ndim == 1 and int(labels.max()) >= len(home.classes):
        raise ArtifactError(
            f"the labels in {folder} go up to {int(labels.max())}, and the source has {len(home.classes)} classes, "
            "numbered from 0.",
            code="label-beyond-classes",
        )
    # The published code stores images in the pixel space of the real images.
    return replace(made, classes=home.classes, space=home.space, info={"method": "imported"})


def _tree(folder: Folder, home: Home) -> tuple[Tensor, Tensor, None]:
    files = [name for name, _ in trees.list_images(folder) if "/" in name]
    names = [name.split("/")[0] for name in files]
    places = _places(sorted(set(names)), home, str(folder))
    encoded = [
        Encoded(folder.path(file), places[name], partial(folder.read, file))
        for file, name in zip(files, names, strict=True)
    ]
    images, labels = _decoded(encoded, home)
    return images, labels, None


def _table(folder: Folder, home: Home) -> tuple[Tensor, Tensor, Tensor | None]:
    name = _table_in(folder)
    assert name is not None
    where = folder.path(name)
    try:
        with folder.open(name) as stream:
            table = parquet_bounds.opened(stream, where).read()
        column = parquet_labels.read(table["label"], table.schema.metadata or {}, where, "label")
        cells = table["image"].to_pylist()
    except (KeyError, pa.ArrowException, SourceError) as error:
        raise ArtifactError(
            f"{where} cannot be read as a set: {error}. Expected the columns image and label.",
            code="set-table-unreadable",
        ) from error
    places = _places(column.vocabulary, home, where)
    blobs = [_blob(cell.get("bytes") if isinstance(cell, dict) else cell, where) for cell in cells]
    encoded = [
        Encoded(f"{where} row {row}", places[column.vocabulary[code]], partial(bytes, blob))
        for row, (blob, code) in enumerate(zip(blobs, column.codes.tolist(), strict=True))
    ]
    images, labels = _decoded(encoded, home)
    if "soft_label" not in table.column_names:
        return images, labels, None
    said = torch.tensor(table["soft_label"].to_pylist(), dtype=torch.float32)
    soft = torch.zeros(len(said), len(home.classes))
    soft[:, [places[own] for own in column.vocabulary]] = said
    return images, labels, soft


def _blob(cell: Any, where: str) -> bytes:
    # bytes() of a number would be as many zeros.
    if not isinstance(cell, bytes):
        raise ArtifactError(
            f"{where} has {type(cell).__name__} in its column image, expected the bytes of an image in each row.",
            code="set-table-unreadable",
        )
    return cell


def _table_in(folder: Folder) -> str | None:
    """The one Parquet file in ``folder``, or in its folder ``data``."""
    found = [name for name in folder.names() if name.endswith(".parquet")]
    if not found and "data" in folder.folders():
        found = [f"data/{name}" for name in folder.child("data").names() if name.endswith(".parquet")]
    return found[0] if len(found) == 1 else None


def _places(names: Sequence[str], home: Home, where: str) -> dict[str, int]:
    """Index of each class name in the source's classes, matched by name, folder name or number."""
    known = {name: i for i, name in reversed(list(enumerate(home.classes)))}
    known = {folder: i for i, folder in enumerate(views.class_folders(home.classes))} | known
    if all(name.isdecimal() and int(name) < len(home.classes) for name in names) and not set(names) <= set(
        known
    ):
        known = {name: int(name) for name in names}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ArtifactError(
            f"{where} has classes that the source has not: {shown(unknown)}. The source's are {shown(home.classes)}. "
            "Name the source that the set was made from.",
            code="classes-not-of-source",
        )
    return {name: known[name] for name in names}


def _decoded(encoded: Sequence[Encoded], home: Home) -> tuple[Tensor, Tensor]:
    """uint8 images [N, C, H, W] of the source's shape, and int64 labels [N]."""
    channels, height, width = home.shape
    size = height if height == width else None
    stacked, labels = [], []
    for image in decode([encoded], size):
        if isinstance(image.pixels, str):
            raise ArtifactError(
                f"{image.name} cannot be read: {image.pixels}. Repair it, or remove it.",
                code="image-unreadable",
            )
        pixels = image.pixels if image.pixels.ndim == 3 else image.pixels[..., None]
        if pixels.shape[2] != channels:
            pixels = (
                pixels.repeat(3, 2)
                if channels == 3
                else pixels.mean(2, keepdims=True).round().astype(np.uint8)
            )
        if pixels.shape[:2] != (height, width):
            raise ArtifactError(
                f"{image.name} has {pixels.shape[0]} x {pixels.shape[1]} pixels, the source's images "
                f"{height} x {width}.",
                code="image-of-another-size",
            )
        stacked.append(torch.from_numpy(pixels.transpose(2, 0, 1).copy()))
        labels.append(image.label)
    return torch.stack(stacked), torch.tensor(labels)
