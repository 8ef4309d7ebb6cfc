"""What can be told of files without decoding their images."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Contents:
    """How much there is."""

    classes: int
    train: int
    test: int
    first: tuple[bytes, ...]
    """The first images of the train split, encoded; those without bytes are left out."""
