"""Distilled images as data URIs: single images for small sets, one sheet per class for large ones.

The pictures of a set stay within a budget of bytes. Above it, they are compressed as JPEG, then reduced in size,
then reduced in number per class, and a note on the page says so.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from rayddl.report import numbers
from rayddl.report.curves import evenly
from rayddl.report.values import Pictures

Pixels = npt.NDArray[np.uint8]

TILES_AT_MOST = 300
"""Maximum number of images that are shown as single elements."""
SMALLEST_SIDE = 16
MOSAIC = 20
"""Maximum number of images next to the headline."""
_MOSAIC_COLUMNS = 5
OPEN_CLASSES = 24
"""Number of classes shown before the rest is folded."""


@dataclass(frozen=True)
class Tile:
    """An ``<img>`` with one distilled image or the sheet of a class."""

    src: str
    alt: str


@dataclass(frozen=True)
class ImageGroup:
    """Pictures under one label, usually those of a class."""

    label: str
    tiles: tuple[Tile, ...]
    columns: int = 1
    rows: int = 1


@dataclass(frozen=True)
class Gallery:
    """The pictures of a set, by class."""

    groups: tuple[ImageGroup, ...]
    sheets: bool
    """True if each class is one sheet."""
    width: int
    """Width of an image in CSS pixels."""
    pixelated: bool
    """True if images are enlarged and shown with sharp pixel edges."""
    note: str = ""

    @property
    def first(self) -> tuple[ImageGroup, ...]:
        """The classes that are not folded."""
        return self.groups[:OPEN_CLASSES]

    @property
    def rest(self) -> tuple[ImageGroup, ...]:
        """The folded classes."""
        return self.groups[OPEN_CLASSES:]

    @property
    def single(self) -> bool:
        """True if every class has exactly one image."""
        return not self.sheets and all(len(s.tiles) == 1 for s in self.groups)


@dataclass(frozen=True)
class _Step:
    """A degree of reduction: the images' side in pixels, compression, and images per class."""

    side: int
    quality: int | None
    """Quality of JPEG; ``None`` for lossless PNG."""
    per_class: int


def gallery(pictures: Pictures, folder: str, budget: int) -> Gallery:
    """Return the set's pictures by class in about ``budget`` bytes of data URIs at most.

    ``folder`` contains the lossless images; a note under a reduced gallery names it.
    """
    images = _viewable(pictures.images)
    members = _by_class(pictures)
    if len(images) <= TILES_AT_MOST:
        groups = tuple(_tiles(images, numbered, name) for name, numbered in members)
        if sum(len(t.src) for s in groups for t in s.tiles) <= budget:
            width = _display_width(images.shape[2], len(images))
            return Gallery(groups, False, width, width >= images.shape[2])
    return _sheets(images, members, folder, budget)


def strip(pictures: Pictures, label: int, most: int, budget: int, alt: str) -> ImageGroup | None:
    """Return up to ``most`` images of a class in a row, in about ``budget`` bytes at most; ``None`` without any."""
    found = np.flatnonzero(pictures.labels == label)[:most].tolist()
    if not found:
        return None
    images = _viewable(pictures.images[found])
    places = range(len(found))
    for step in _steps(images.shape[2], len(found)):
        text = f"{alt}, {numbers.counted(min(step.per_class, len(found)), 'image')}"
        group = _sheet(images, places[: step.per_class], "", step, columns=most, alt=text)
        if len(group.tiles[0].src) <= budget or step.side <= SMALLEST_SIDE:
            break
    return group


def mosaic(pictures: Pictures) -> ImageGroup | None:
    """Return a small picture with one image of each of up to 20 classes, in full rows; ``None`` without images."""
    members = _by_class(pictures)
    if not members:
        return None
    most = min(len(members), MOSAIC)
    # Rows of one length: an empty place would be a white square on a dark page.
    many, columns = next(
        (n, c) for n in range(most, 0, -1) for c in (5, 4, 3, n) if n % c == 0 and c <= _MOSAIC_COLUMNS
    )
    firsts = [members[i][1][0] for i in evenly(range(len(members)), many)]
    images = _viewable(pictures.images)
    step = _Step(min(images.shape[2], 64), None, len(firsts))
    alt = f"{numbers.counted(len(firsts), 'distilled image')}, each of another class"
    return _sheet(images, firsts, "", step, columns=columns, alt=alt)


def data_uri(pixels: Pixels, quality: int | None = None) -> str:
    """Return uint8 pixels ``[H, W]`` or ``[H, W, 3]`` as a PNG, or as a JPEG of this quality."""
    stream = io.BytesIO()
    image = Image.fromarray(pixels)
    if quality is None:
        image.save(stream, "PNG", optimize=True)
    else:
        image.save(stream, "JPEG", quality=quality, optimize=True)
    kind = "png" if quality is None else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"


def _tiles(images: Pixels, numbered: Sequence[int], name: str) -> ImageGroup:
    many = len(numbered)
    return ImageGroup(
        name,
        tuple(
            Tile(
                data_uri(images[i]),
                f"{name}, distilled image {n} of {many}" if many > 1 else f"{name}, distilled",
            )
            for n, i in enumerate(numbered, 1)
        ),
    )


def _sheets(images: Pixels, members: list[tuple[str, list[int]]], folder: str, budget: int) -> Gallery:
    most = max(len(numbered) for _, numbered in members)
    groups: tuple[ImageGroup, ...] = ()
    step = _Step(images.shape[2], None, most)
    for step in _steps(images.shape[2], most):
        groups, spent = _attempt(images, members, step, budget)
        if spent <= budget:
            break
    side = images.shape[2]
    width = 32 if side < 32 else min(side, 64)
    width = max(12, min(width, 320 // groups[0].columns)) if groups else width
    return Gallery(groups, True, width, width >= step.side, _note(step, side, most, folder))


def _attempt(
    images: Pixels, members: list[tuple[str, list[int]]], step: _Step, budget: int
) -> tuple[tuple[ImageGroup, ...], int]:
    """Return the sheets at one degree of reduction and their bytes; stops once they exceed the budget."""
    groups: list[ImageGroup] = []
    spent = 0
    for name, numbered in members:
        group = _sheet(images, numbered[: step.per_class], name, step)
        spent += len(group.tiles[0].src)
        groups.append(group)
        if spent > budget and step.per_class > 1:
            break
    return tuple(groups), spent


def _sheet(
    images: Pixels, numbered: Sequence[int], name: str, step: _Step, *, columns: int = 10, alt: str = ""
) -> ImageGroup:
    columns = min(columns, len(numbered))
    rows = -(-len(numbered) // columns)
    height, width = images.shape[1:3]
    sheet = np.full((rows * height, columns * width, *images.shape[3:]), 255, np.uint8)
    for n, i in enumerate(numbered):
        y, x = divmod(n, columns)
        sheet[y * height : (y + 1) * height, x * width : (x + 1) * width] = images[i]
    if step.side < width:
        # Edges of images are also edges of pixels in the reduced sheet, so averaging mixes no images.
        size = (columns * step.side, rows * max(1, height * step.side // width))
        sheet = np.asarray(Image.fromarray(sheet).resize(size, Image.Resampling.BOX))
    alt = alt or f"{name}, {numbers.counted(len(numbered), 'distilled image')}"
    return ImageGroup(name, (Tile(data_uri(sheet, step.quality), alt),), columns, rows)


def _steps(side: int, per_class: int) -> Iterator[_Step]:
    for quality in (None, 85, 65):
        yield _Step(side, quality, per_class)
    while side > SMALLEST_SIDE:
        side = max(SMALLEST_SIDE, side // 2)
        yield _Step(side, 75, per_class)
    while per_class > 1:
        per_class = max(1, per_class // 2)
        yield _Step(side, 75, per_class)


def _note(step: _Step, side: int, per_class: int, folder: str) -> str:
    reductions = []
    if step.per_class < per_class:
        reductions.append(f"the first {step.per_class} of up to {per_class} images of each class")
    if step.side < side:
        reductions.append(f"reduced to {step.side} pixels")
    if step.quality is not None:
        reductions.append("compressed as JPEG")
    if not reductions:
        return ""
    text = ", ".join(reductions)
    return f"To keep this page light: {text}. All images, lossless, lie in {folder}."


def _display_width(side: int, many: int) -> int:
    """Return the width of an image in CSS pixels: a multiple of its side near a size that depends on ``many``."""
    wanted = 96 if many <= 20 else 80 if many <= 60 else 64 if many <= 150 else 48
    return side * max(1, round(wanted / side)) if side <= wanted else min(side, wanted + 56)


def _by_class(pictures: Pictures) -> list[tuple[str, list[int]]]:
    found: dict[int, list[int]] = {}
    for i, label in enumerate(pictures.labels.tolist()):
        found.setdefault(int(label), []).append(i)
    names = pictures.classes
    return [
        (names[label] if 0 <= label < len(names) else f"class {label}", found[label])
        for label in sorted(found)
    ]


def _viewable(images: Pixels) -> Pixels:
    """Return ``[N, C, H, W]`` as grey ``[N, H, W]`` or as ``[N, H, W, 3]``, without a copy; other channel counts are
    averaged.
    """
    if images.shape[1] == 3:
        return images.transpose(0, 2, 3, 1)
    if images.shape[1] == 1:
        return images[:, 0]
    return np.asarray(images.mean(axis=1).round(), dtype=np.uint8)
