"""What is known about a source's files without decoding images."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Contents:
    """Number of images per split, and the first images."""

    classes: int
    train: int
    test: int
    first: tuple[bytes, ...]
    """The first images of the train split as encoded bytes; images without bytes are left out."""
    fewest: int
    """Training images of the smallest class."""
