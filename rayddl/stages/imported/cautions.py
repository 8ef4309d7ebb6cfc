"""Warnings about an imported set that is probably not what it is read as."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

NAMED = 5
"""Number of classes without images that are named."""


def after(summary: Mapping[str, Any]) -> Iterator[str]:
    """Numbers that are probably pixels but were read as encoded ones, and classes without images."""
    if summary.get("in_unit"):
        yield (
            "all numbers of the images are between 0 and 1, as those of pixels, and were read as encoded ones, which "
            "have both signs: if they are pixels, the images are too pale and accuracies too low; save them as PNG "
            "files in a folder for each class, or encode them first (made.space.encode of a set of this source)"
        )
    without = summary.get("without_images") or ()
    if without:
        listed = ", ".join(str(name) for name in without[:NAMED]) + (" …" if len(without) > NAMED else "")
        yield (
            f"{len(without)} of {len(summary['classes'])} classes have no image: {listed}; students cannot learn "
            "these. Add their images, or compare sets of the same classes only"
        )
