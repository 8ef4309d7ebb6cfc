"""What a user can say about the images."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rayddl.config import Config

AUGMENTATIONS = ("color", "crop", "cutout", "flip", "scale", "rotate")


class SourceConfig(Config):
    """Where the real images come from, and the pixel space that everything works in."""

    name: Literal["digits", "cifar10", "cifar100", "parquet", "imagefolder"]
    root: str | None = None
    """Folder or URI of the files; not needed for ``digits``."""
    space: Literal["normalise", "zca"] = "normalise"
    """``normalise``: per-channel mean and deviation. ``zca``: whitening fitted on the train split."""
    size: int | None = Field(default=None, ge=4)
    """Side in pixels that images are resized to; default: as stored, which must then be one size."""
    download: bool = False
    """Fetch ``cifar10`` or ``cifar100`` into ``root`` when it is not there."""
    train: str | None = None
    """``parquet``: the train split's file or files (glob inside ``root``); default ``*train*.parquet``.
    ``imagefolder``: the split's folder; default ``train``."""
    test: str | None = None
    """Likewise for the held-out split; default ``*test*.parquet``, then ``*val*.parquet``; ``val`` or
    ``test`` folder."""
    image_column: str = "image"
    label_column: str = "label"
    max_bad_fraction: float = Field(default=0.01, ge=0, le=1)
    """Share of unreadable images above which the source is refused."""


def augmentation_names(text: str) -> tuple[str, ...]:
    """``"color_crop_flip"`` as a tuple, ``"none"`` as an empty one. Raises ``ValueError``."""
    if text in ("", "none"):
        return ()
    names = tuple(text.split("_"))
    unknown = [n for n in names if n not in AUGMENTATIONS]
    if unknown:
        raise ValueError(f"unknown augmentation {unknown[0]!r}; known: {', '.join(AUGMENTATIONS)}")
    return names
