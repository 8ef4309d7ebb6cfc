"""A gallery of several sets: a table of their images with a row for each class and a column for each set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rayddl.report import numbers
from rayddl.report.curves import evenly
from rayddl.report.pictures import ImageGroup, strip
from rayddl.report.values import Pictures

CLASSES = 24
"""Maximum number of classes; of more, evenly spaced ones are shown."""
IMAGES = 4
"""Maximum number of images of a class in a set."""


@dataclass(frozen=True)
class SetsGallery:
    """A table of pictures: a row for each class, a column for each set."""

    sets: tuple[str, ...]
    rows: tuple[tuple[str, tuple[ImageGroup | None, ...]], ...]
    width: int
    """Width of an image in CSS pixels."""
    note: str = ""


def sets_gallery(sets: Sequence[tuple[str, Pictures]], budget: int) -> SetsGallery | None:
    """Return the gallery of labelled sets in about ``budget`` bytes at most; ``None`` without sets."""
    if not sets:
        return None
    classes = sets[0][1].classes
    kept = evenly(range(len(classes)), CLASSES)
    each = budget // (len(sets) * max(1, len(kept)))
    rows = tuple(
        (classes[c], tuple(_cell(label, made, classes, c, each) for label, made in sets)) for c in kept
    )
    some = [f"{numbers.counted(len(kept), 'class')} of {len(classes)}"] if len(kept) < len(classes) else []
    if any(len(made.labels) > IMAGES * len(classes) for _, made in sets):
        some.append(f"the first {IMAGES} images of a class at most")
    side = max(made.images.shape[2] for _, made in sets)
    text = ", ".join(some)
    return SetsGallery(
        tuple(label for label, _ in sets), rows, 48 if side < 48 else min(side, 72),
        f"{text[:1].upper()}{text[1:]}." if text else "",
    )  # fmt: skip


def _cell(label: str, made: Pictures, classes: Sequence[str], c: int, each: int) -> ImageGroup | None:
    """The images of class ``c``; ``None`` for a set of other data that has no class of that name."""
    alike = len(made.classes) == len(classes)
    if not alike and classes[c] not in made.classes:
        return None
    own = c if alike else list(made.classes).index(classes[c])
    return strip(made, own, IMAGES, each, f"{label}, {classes[c]}")
