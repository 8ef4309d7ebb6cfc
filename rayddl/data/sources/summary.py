"""The size of a source from listings and image headers: no image is decoded, and torch is not imported."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass

from rayddl import plugins
from rayddl.data.config import SourceConfig
from rayddl.data.pixels.decode import open_image
from rayddl.data.sources import folders, given, imagenet, tinyimagenet
from rayddl.data.sources import parquet as tables
from rayddl.data.sources import webdataset as shards
from rayddl.data.sources.trees import Survey

_LOOKED_AT = 8
"""Number of images whose headers are read to decide if a source is grey."""
_GREY = ("1", "L", "LA", "La", "I", "I;16")


@dataclass(frozen=True)
class Glance:
    """The size of a source."""

    shape: tuple[int, int, int]
    """(C, H, W) of its images."""
    classes: int
    train: int
    """Number of training images."""
    test: int
    """Number of held-out images."""

    @property
    def numbers(self) -> int:
        """Values in one image, C·H·W."""
        channels, height, width = self.shape
        return channels * height * width


_KNOWN = {
    "digits": Glance((1, 8, 8), 10, 1438, 359),
    "cifar10": Glance((3, 32, 32), 10, 50_000, 10_000),
    "cifar100": Glance((3, 32, 32), 100, 50_000, 10_000),
}
_TREES: dict[str, Callable[[SourceConfig], Survey]] = {
    "imagefolder": folders.survey,
    "tinyimagenet": tinyimagenet.survey,
    "imagenet": imagenet.survey,
}


def glance(config: SourceConfig) -> Glance:
    """The size of the source. Counts include unreadable images; a source counts as grey if its first few
    images are grey. Raises the errors of :func:`rayddl.data.sources.registry.fingerprint`.
    """
    known = _KNOWN.get(config.name)
    if known is not None:
        channels, *sides = known.shape
        height, width = (config.size or side for side in sides)
        return Glance((channels, height, width), known.classes, known.train, known.test)
    if plugins.owner("sources", config.name):
        train, test = given.decoded(config)
        return Glance(train.shape, len(train.classes), len(train), len(test))
    if config.name in _TREES:
        tree = _TREES[config.name](config)
        listed = tree.splits["train"]
        first = (listed.folder.read(file.name) for file in listed.files[:_LOOKED_AT])
        counts = [len(tree.splits[split].files) for split in ("train", "test")]
        return Glance(_shape(first, config.size), len(tree.classes), *counts)
    found = (shards if config.name == "webdataset" else tables).contents(config, _LOOKED_AT)
    return Glance(_shape(found.first, config.size), found.classes, found.train, found.test)


def _shape(images: Iterable[bytes], size: int | None) -> tuple[int, int, int]:
    sides, modes = [(size or 1, size or 1)], set()
    for data in images:
        # Unreadable images are skipped here; decoding reports them by name.
        with (
            # The parsers raise many types for broken files.
            suppress(Exception),
            open_image(data) as image,
        ):
            modes.add(image.mode)
            sides.append((image.height, image.width))
    height, width = sides[0] if size else sides[-1]
    return (1 if modes and modes <= set(_GREY) else 3), height, width
