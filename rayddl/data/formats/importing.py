"""Imports sets made by other code: converts classes, pixel space and image size to those of a source.

Four formats are read: a rayddl set; files of torch, as the published codes save them (:mod:`.pt_layouts`); images in
folders by class; and one Parquet table with the columns ``image`` and ``label``. Classes are matched by name if the
format has names; numbers are indices into the source's classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from rayddl import limits
from rayddl.data import views
from rayddl.data.distilled import LR_STUDENT, DistilledSet
from rayddl.data.formats import pt, pt_places
from rayddl.data.formats.forms import NAMES, Form, images_in, tables_in
from rayddl.data.formats.pt_places import Place
from rayddl.data.pixels.cutting import with_channels
from rayddl.data.pixels.decode import Encoded, decode
from rayddl.data.pixels.space import PixelSpace
from rayddl.data.sources import parquet_bounds, parquet_labels
from rayddl.data.sources.refusals import read_names, shown
from rayddl.errors import ArtifactError, SourceError
from rayddl.storage import Folder

_DIGITS = 19
"""Longer numbers as names are text."""


@dataclass(frozen=True)
class TargetSource:
    """The classes, image shape and pixel space of the source that a set is converted to."""

    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    """(C, H, W)."""
    space: PixelSpace


def bring(
    folder: Folder, form: Form, home: TargetSource, note: Callable[[str], None] = lambda _: None
) -> DistilledSet:
    """The set in ``folder``, converted to the source ``home``; ``note`` is called with sentences on what is lost by it.

    Raises :class:`ArtifactError` if classes or sizes differ from the source's, or files cannot be read.
    """
    if form == "set":
        return DistilledSet.load(folder)
    if form == "pt":
        place = pt_places.find(folder)
        if place is None:
            raise ArtifactError(
                f"there is no set in {folder}: looked for {pt_places.IMAGES} and {pt_places.LABELS}, or one other "
                ".pt file.",
                code="no-set-here",
            )
        return bring_pt(place, home)
    read = _tree if form == "imagefolder" else _table
    images, labels, soft = read(folder, home, note)
    order = labels.argsort(stable=True)
    kept = labels[order] if soft is None else soft[order]
    made = DistilledSet(images[order], kept, LR_STUDENT, home.classes, home.space, {"method": "imported"})
    wrong = made.wrong_values()
    if wrong:
        raise ArtifactError(f"the set in {folder} cannot be trained on: {wrong}.", code="import-values-wrong")
    return made


def bring_pt(place: Place, home: TargetSource) -> DistilledSet:
    """The set in files of torch, converted to the source ``home``; raises as :func:`bring`."""
    made, folder = pt.load_place(place), place.folder
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
    info = {"method": "imported", "labels_read_as": made.info["labels_read_as"]}
    return replace(made, classes=home.classes, space=home.space, info=info)


def _tree(
    folder: Folder, home: TargetSource, note: Callable[[str], None]
) -> tuple[Tensor, Tensor, Tensor | None]:
    files = [name for name, _ in images_in(folder)]
    if not files:
        raise ArtifactError(
            f"there is no set in {folder}: looked for images in a folder for each class, found {_found(folder)}.",
            code="no-set-here",
        )
    names = [name.split("/")[0] for name in files]
    places = _places(sorted(set(names)), home, str(folder), _order(folder, set(names)))
    encoded = [
        Encoded(folder.path(file), places[name], partial(folder.read, file))
        for file, name in zip(files, names, strict=True)
    ]
    images, labels = _decoded([encoded], home, note)
    return images, labels, None


def _found(folder: Folder) -> str:
    """What is in ``folder``, for messages."""
    return shown([*folder.names(), *(f"{name}/" for name in folder.folders())]) or "nothing"


def _order(folder: Folder, folders: set[str]) -> dict[str, str]:
    """The class of each folder: the lines of an export's ``classes.txt`` name the folders in sorted order."""
    if not folder.has(NAMES):
        return {}
    lines = parquet_labels.names_of(read_names(folder, NAMES))
    named = dict(zip(views.class_folders(lines), lines, strict=True))
    return {name: named[name] for name in folders} if folders <= set(named) else {}


def _table(
    folder: Folder, home: TargetSource, note: Callable[[str], None]
) -> tuple[Tensor, Tensor, Tensor | None]:
    tables = tables_in(folder)
    if not tables:
        raise ArtifactError(
            f"there is no set in {folder}: looked for one .parquet file there or in its folder data, found "
            f"{_found(folder)}.",
            code="no-set-here",
        )
    if len(tables) > 1:
        raise ArtifactError(
            f"{folder} has {len(tables)} Parquet files: {shown(tables)}. A set is one table: put it into a folder of "
            "its own, or write all rows as one table.",
            code="import-tables-several",
        )
    where = folder.path(tables[0])
    try:
        with folder.open(tables[0]) as stream:
            file = parquet_bounds.opened(stream, where)
            _refuse_other_columns(file.schema_arrow, where)
            written = parquet_bounds.labels(file, stream, "label", where)
            column = parquet_labels.read(written, file.schema_arrow.metadata or {}, where, "label")
            places = _places_of(column, home, where, file.metadata.num_rows, int(stream.size()))
            images, labels = _decoded(_cells(file, column, places, where), home, note)
            said = _numbers(file, where) if "soft_label" in file.schema_arrow.names else None
    except (KeyError, OSError, pa.ArrowException, SourceError) as error:
        raise ArtifactError(
            f"{where} cannot be read as a set: {error}. Expected the columns image and label.",
            code="set-table-unreadable",
        ) from error
    return images, labels, None if said is None else _soft(said, column, places, home, where)


def _refuse_other_columns(schema: pa.Schema, where: str) -> None:
    """Raise ``KeyError`` for a column that is missing, and :class:`ArtifactError` for one of another type."""
    wanted = {
        "label": (parquet_bounds.holds_labels, "whole numbers or text"),
        "image": (parquet_bounds.holds_images, "the bytes of an image in each row"),
    }
    for name, (fits, expected) in wanted.items():
        kind = parquet_bounds.type_of(schema, name, where)
        if not fits(kind):
            raise ArtifactError(
                f"{where} has {kind} in its column {name}, expected {expected}.", code="set-table-unreadable"
            )


def _places_of(
    column: parquet_labels.Column, home: TargetSource, where: str, rows: int, size: int
) -> dict[str, int]:
    """:func:`_places` of a table of ``rows`` rows in a file of ``size`` bytes.

    Raises :class:`ArtifactError` for no rows, unlabelled ones, and for images that take much more than the file.
    """
    _, height, width = home.shape
    density = rows * height * width // max(1, size)
    if density > limits.PIXELS_PER_BYTE.value and rows * height * width > limits.SMALL:
        raise ArtifactError(
            f"{where} has {limits.PIXELS_PER_BYTE.exceeded(density, f'pixels for each of its {size:,} bytes')}.",
            code="import-larger-than-stored",
        )
    if not rows:
        raise ArtifactError(f"{where} has no rows.", code="import-without-rows")
    if column.codes.min(initial=0) < 0:
        raise ArtifactError(
            f"{where} has {int((column.codes < 0).sum())} rows with the label -1, which means unlabelled. Remove them.",
            code="import-unlabelled",
        )
    return _places(column.vocabulary, home, where, numbers=not column.text and not column.named)


def _cells(
    file: pq.ParquetFile, column: parquet_labels.Column, places: dict[str, int], where: str
) -> Iterator[list[Encoded]]:
    """The images of a table, a portion at a time."""
    row = 0
    for part in parquet_bounds.batches(file, "image"):
        encoded = []
        for cell in part:
            value = cell.as_py()
            blob = _blob(value.get("bytes") if isinstance(value, dict) else value, where)
            place = places[column.vocabulary[column.codes[row]]]
            encoded.append(Encoded(f"{where} row {row}", place, partial(bytes, blob)))
            row += 1
        yield encoded


def _numbers(file: pq.ParquetFile, where: str) -> Tensor:
    """The column of soft labels, float32 [N, K]; empty if its rows differ in length or are no rows of numbers."""
    values = parquet_bounds.values(file.metadata, "soft_label")
    if values > limits.ROWS.value:
        raise ArtifactError(
            f"{where} has {limits.ROWS.exceeded(values, 'numbers in soft_label')}.",
            code="soft-labels-too-many",
        )
    type_ = parquet_bounds.type_of(file.schema_arrow, "soft_label", where)
    listed = pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_)
    # Cells of other types may be large, however few they are.
    if not (listed and (pa.types.is_floating(type_.value_type) or pa.types.is_integer(type_.value_type))):
        return torch.empty(0)
    rows = file.read(columns=["soft_label"]).column("soft_label")
    parquet_bounds.refuse_other_rows(len(rows), file.metadata, "soft_label")
    widths = pc.unique(pc.list_value_length(rows)).to_pylist()
    flat = pa.chunked_array([chunk.flatten() for chunk in rows.chunks], type_.value_type)
    if len(widths) != 1 or flat.null_count:
        return torch.empty(0)
    return torch.from_numpy(flat.to_numpy().astype(np.float32)).reshape(len(rows), widths[0] or 0)


def _soft(
    said: Tensor, column: parquet_labels.Column, places: dict[str, int], home: TargetSource, where: str
) -> Tensor:
    """The soft labels with a column for each of the source's classes: float32 [N, K].

    Raises :class:`ArtifactError` if rows differ in length or are not numbers, or if the file does not say which class
    each column is.
    """
    if said.ndim != 2 or said.numel() == 0:
        raise ArtifactError(
            f"{where}: the rows of soft_label differ in length or are no rows of numbers; expected a number for each "
            "class.",
            code="soft-labels-ragged",
        )
    order = _columns(said, column, places, home)
    if order is None:
        raise ArtifactError(
            f"{where}: soft_label has {said.shape[1]} columns, and nothing says which class each is: the file has no "
            'class names, and the labels do not show it. Add the schema metadata "classes", a name per line in the '
            "columns' order.",
            code="soft-labels-without-order",
        )
    soft = torch.zeros(len(said), len(home.classes))
    soft[:, order] = said
    return soft


def _columns(
    said: Tensor, column: parquet_labels.Column, places: dict[str, int], home: TargetSource
) -> list[int] | None:
    """The source's class of each soft-label column; ``None`` if unknown."""
    width, classes = said.shape[1], len(home.classes)
    if column.named:
        return [places[name] for name in column.vocabulary] if width == len(column.vocabulary) else None
    if width != classes:
        return None
    if not column.text:
        return list(range(classes))
    labels = torch.tensor([places[column.vocabulary[code]] for code in column.codes.tolist()])
    at = said.gather(1, labels[:, None]).squeeze(1)
    if bool((at >= said.amax(1)).all()):
        return list(range(classes))
    # A column is the class of the images of which it is the largest.
    found: dict[int, set[int]] = {}
    for top, label in zip(said.argmax(1).tolist(), labels.tolist(), strict=True):
        found.setdefault(top, set()).add(label)
    order = [min(found.get(at, {-1})) for at in range(width)]
    clear = all(len(each) == 1 for each in found.values())
    return order if clear and sorted(order) == list(range(classes)) else None


def _blob(cell: Any, where: str) -> bytes:
    # bytes() of a number would be as many zeros.
    if not isinstance(cell, bytes):
        raise ArtifactError(
            f"{where} has {type(cell).__name__} in its column image, expected the bytes of an image in each row.",
            code="set-table-unreadable",
        )
    return cell


def _places(
    names: Sequence[str],
    home: TargetSource,
    where: str,
    called: Mapping[str, str] = MappingProxyType({}),
    *,
    numbers: bool = False,
) -> dict[str, int]:
    """Index of each class name in the source's classes, matched by name or folder name.

    Numbers as names match names of the same value (``02`` is ``2``) if the source's names are numbers, else they are
    indices. ``called`` gives names of folders. ``numbers``: the names are whole numbers from a column, which may be
    indices even if the source's names are numbers; raises :class:`ArtifactError` if they could be either.
    """
    known = {name: i for i, name in reversed(list(enumerate(home.classes)))}
    for folders in (views.plain_folders(home.classes), views.class_folders(home.classes)):
        known = {folder: i for i, folder in enumerate(folders)} | known
    known |= {folder: known[name] for folder, name in called.items() if name in known}
    numbered = {name: int(name) for name in {*names, *known} if name.isdecimal() and len(name) < _DIGITS}
    indices = {
        name: numbered[name] for name in names if numbered.get(name, len(home.classes)) < len(home.classes)
    }
    if len(indices) == len(names) and set(names) <= set(known) and numbers:
        if any(known[name] != index for name, index in indices.items()):
            raise ArtifactError(
                f"{where} has the labels {shown(names)}, which could be names of the source's classes "
                f"({shown(home.classes)}) or indices of them. Store labels as text, or add class names.",
                code="labels-ambiguous",
            )
    elif not set(names) <= set(known):
        values = {numbered[name]: i for name, i in known.items() if name in numbered}
        if len(values) == len(home.classes) and not numbers:
            indices = {name: values[numbered[name]] for name in names if numbered.get(name) in values}
        if len(set(indices.values())) == len(names):
            known = indices
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ArtifactError(
            f"{where} has classes that the source has not: {shown(unknown)}. The source's are {shown(home.classes)}. "
            "Name the source that the set was made from.",
            code="classes-not-of-source",
        )
    return {name: known[name] for name in names}


def _decoded(
    batches: Iterable[Sequence[Encoded]], home: TargetSource, note: Callable[[str], None]
) -> tuple[Tensor, Tensor]:
    """uint8 images [N, C, H, W] of the source's shape, and int64 labels [N]."""
    channels, height, width = home.shape
    size = height if height == width else None
    stacked, labels = [], []
    others, coloured = Counter[tuple[int, int]](), 0
    for image in decode(batches, size):
        if isinstance(image.pixels, str):
            raise ArtifactError(
                f"{image.name} cannot be read: {image.pixels}. Repair it, or remove it.",
                code="image-unreadable",
            )
        pixels = image.pixels if image.pixels.ndim == 3 else image.pixels[..., None]
        others[image.stored] += size is not None and image.stored != (size, size)
        coloured += pixels.shape[2] > channels
        if pixels.shape[2] != channels:
            pixels = (
                with_channels(torch.from_numpy(pixels).permute(2, 0, 1), channels).permute(1, 2, 0).numpy()
            )
        if pixels.shape[:2] != (height, width):
            raise ArtifactError(
                f"{image.name} has {pixels.shape[0]} x {pixels.shape[1]} pixels, the source's images "
                f"{height} x {width}.",
                code="image-of-another-size",
            )
        stacked.append(torch.from_numpy(pixels.transpose(2, 0, 1).copy()))
        labels.append(image.label)
    if count := others.total():
        sizes = [f"{width} x {height}" for (width, height), number in others.most_common() if number]
        note(
            f"{count:,} of {len(stacked):,} images were resized to {size} x {size} pixels, from {shown(sizes)}"
        )
    if coloured:
        note(f"{coloured:,} of {len(stacked):,} images lost their colour, since the source's images are grey")
    return torch.stack(stacked), torch.tensor(labels)
