"""Distilled images as data URIs: sharp tiles for a few, one sheet per class for many.

However large a set is, its pictures stay within a number of bytes: beyond it they become JPEG, then
thumbnails, then fewer per class, and the page says so.
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
"""Images up to which each is an element of its own."""
SMALLEST_SIDE = 16
MOSAIC = 20
"""Images at most beside the headline."""
OPEN_CLASSES = 24
"""Classes shown before the rest is folded away."""


@dataclass(frozen=True)
class Tile:
    """One ``<img>``: one distilled image, or a class's whole sheet."""

    src: str
    alt: str


@dataclass(frozen=True)
class ImageGroup:
    """One class: its name and its pictures."""

    label: str
    tiles: tuple[Tile, ...]
    columns: int = 1
    rows: int = 1


@dataclass(frozen=True)
class Gallery:
    """A set, ready for the page."""

    groups: tuple[ImageGroup, ...]
    sheets: bool
    """Whether each class is one sheet."""
    width: int
    """Width in CSS pixels that one image is shown at."""
    pixelated: bool
    """Whether images are enlarged, and thus shown with hard pixel edges."""
    note: str = ""

    @property
    def first(self) -> tuple[ImageGroup, ...]:
        """The classes shown at once."""
        return self.groups[:OPEN_CLASSES]

    @property
    def rest(self) -> tuple[ImageGroup, ...]:
        """The classes that are folded away."""
        return self.groups[OPEN_CLASSES:]

    @property
    def single(self) -> bool:
        """Whether every class has just one image."""
        return not self.sheets and all(len(s.tiles) == 1 for s in self.groups)


@dataclass(frozen=True)
class _Step:
    """One way of writing a set: the images' side, lossless or not, images per class."""

    side: int
    quality: int | None
    """JPEG's; ``None`` is lossless."""
    per_class: int


def gallery(pictures: Pictures, folder: str, budget: int) -> Gallery:
    """The set's pictures by class in at most about ``budget`` bytes of data URIs.

    ``folder`` is where the lossless images lie, for the note on a reduced gallery.
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
    """Up to ``most`` images of one class in a row, in at most about ``budget`` bytes; ``None`` without any."""
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
    """One image of each of up to twenty classes as one small picture."""
    members = _by_class(pictures)
    if not members:
        return None
    firsts = [members[i][1][0] for i in evenly(range(len(members)), MOSAIC)]
    images = _viewable(pictures.images)
    step = _Step(min(images.shape[2], 64), None, len(firsts))
    alt = f"{numbers.counted(len(firsts), 'distilled image')}, each of another class"
    return _sheet(images, firsts, "", step, columns=min(5, len(firsts)), alt=alt)


def data_uri(pixels: Pixels, quality: int | None = None) -> str:
    """Pixels [H,W] or [H,W,3] as a PNG, or as a JPEG of the quality given."""
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
    """The sheets written one way and their bytes; gives up once it is clear they are too many."""
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
        # Every image's edge falls on a pixel's edge, so averaging never mixes neighbours.
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
    """CSS pixels for one image: a whole multiple of its side near the size that suits so many."""
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
    """[N,C,H,W] as [N,H,W] grey or [N,H,W,3]; other numbers of channels are averaged to grey."""
    if images.shape[1] == 3:
        return np.ascontiguousarray(images.transpose(0, 2, 3, 1))
    if images.shape[1] == 1:
        return np.ascontiguousarray(images[:, 0])
    return np.asarray(images.mean(axis=1).round(), dtype=np.uint8)
