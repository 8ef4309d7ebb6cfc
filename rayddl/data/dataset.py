"""Labelled images in memory."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class ImageDataset:
    """One split in one tensor: every image is decoded and has the same size."""

    images: Tensor
    """uint8 [N, C, H, W], C = 1 (grey) or 3 (RGB)."""
    labels: Tensor
    """int64 [N], each an index into ``classes``."""
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return int(self.labels.shape[0])

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        channels, height, width = self.images.shape[1:]
        return int(channels), int(height), int(width)

    def __repr__(self) -> str:
        channels, height, width = self.shape
        return f"<ImageDataset {len(self)} images of {len(self.classes)} classes, {channels} x {height} x {width}>"

    def counts(self) -> tuple[int, ...]:
        """Images per class, in the order of ``classes``."""
        return tuple(self.labels.bincount(minlength=len(self.classes)).tolist())


@dataclass(frozen=True, eq=False)
class Source:
    """The real images: two splits over the same classes and of the same shape."""

    train: ImageDataset
    test: ImageDataset
    fingerprint: str
    """Hexadecimal hash of contents and settings; it does not depend on where the files are."""
    bad: tuple[str, ...] = ()
    """The unreadable images, which are left out of the splits, each as ``path: reason``."""
    notes: tuple[str, ...] = ()
    """Sentences on what the files have and the splits leave out, and on pixels that look wrong."""
