"""The size of a source from listings and image headers: no image is decoded, and torch is not imported."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from rayddl import plugins
from rayddl.data.ahead import ahead
from rayddl.data.config import SourceConfig
from rayddl.data.sources import folders, given, imagenet, known, tinyimagenet
from rayddl.data.sources import parquet as tables
from rayddl.data.sources import webdataset as shards
from rayddl.data.sources.trees import Survey

_LOOKED_AT = 8
"""Number of images whose headers are read to decide if a source is grey."""
_GREY = ("1", "L", "LA", "La", "I", "I;16")


@dataclass(frozen=True)
class SourceSummary:
    """The size of a source."""

    shape: tuple[int, int, int]
    """(C, H, W) of its images."""
    classes: int
    train: int
    """Number of training images."""
    test: int
    """Number of held-out images."""
    fewest: int = field(default=0, compare=False)
    """Training images of the smallest class; 0 if unknown."""
    sizes: tuple[tuple[int, int], ...] = field(default=(), compare=False)
    """(width, height) of the images whose headers were read, each once."""
    looked_at: int = field(default=0, compare=False)
    """Number of images whose headers were to be read."""
    unreadable: int = field(default=0, compare=False)
    """Those of them that cannot be read. They are counted in ``train``."""

    @property
    def numbers(self) -> int:
        """Values in one image, C·H·W."""
        channels, height, width = self.shape
        return channels * height * width


_KNOWN = {
    "digits": SourceSummary((1, 8, 8), 10, 1438, 359, 139),
    "cifar10": SourceSummary((3, 32, 32), 10, 50_000, 10_000, 5_000),
    "cifar100": SourceSummary((3, 32, 32), 100, 50_000, 10_000, 500),
}
_TREES: dict[str, Callable[[SourceConfig], Survey]] = {
    "imagefolder": folders.survey,
    "tinyimagenet": tinyimagenet.survey,
    "imagenet": imagenet.survey,
}


def source_summary(config: SourceConfig) -> SourceSummary:
    """The size of the source. Counts include unreadable images; a source counts as grey if its first few
    images are grey. Raises the errors of :func:`rayddl.data.sources.registry.fingerprint`.
    """
    return known.once(("summary", config), partial(_summary, config))


def _summary(config: SourceConfig) -> SourceSummary:
    same = _KNOWN.get(config.name)
    if same is not None:
        channels, *sides = same.shape
        height, width = (config.size or side for side in sides)
        return SourceSummary((channels, height, width), same.classes, same.train, same.test, same.fewest)
    if plugins.owner("sources", config.name):
        train, test = given.decoded(config)
        return SourceSummary(train.shape, len(train.classes), len(train), len(test), min(train.counts()))
    if config.name in _TREES:
        tree = _TREES[config.name](config)
        listed = tree.splits["train"]
        # Spread over the classes, which may come from different cameras.
        apart = max(1, len(listed.files) // _LOOKED_AT)
        some = listed.files[::apart][:_LOOKED_AT]
        reads = ((partial(listed.folder.read, file.name), file.bytes) for file in some)
        first = ahead(reads, threaded=listed.folder.far)
        counts = {split: len(part.files) for split, part in tree.splits.items()}
        fewest = int(listed.files.counts().min())
        return _summarised(
            _headers(first, config.size), len(tree.classes), counts["train"], counts["test"], fewest
        )
    found = (shards if config.name == "webdataset" else tables).contents(config, _LOOKED_AT)
    headers = _headers(found.first, config.size)
    return _summarised(headers, found.classes, found.train, found.test, found.fewest)


class _Headers(NamedTuple):
    """What the headers of some images say of a source."""

    shape: tuple[int, int, int]
    sizes: tuple[tuple[int, int], ...]
    """The different (width, height)."""
    looked_at: int
    unreadable: int


def _summarised(headers: _Headers, classes: int, train: int, test: int, fewest: int) -> SourceSummary:
    shape, sizes, looked_at, unreadable = headers
    return SourceSummary(shape, classes, train, test, fewest, sizes, looked_at, unreadable)


def _headers(images: Iterable[bytes], size: int | None) -> _Headers:
    # Sizes of published sources are known, and a plan of them loads no library for images.
    from rayddl.data.pixels.decode import open_image

    sides, modes, looked_at = [(size or 1, size or 1)], set(), 0
    for data in images:
        looked_at += 1
        # Unreadable images are counted here; decoding reports them by name.
        with (
            # The parsers raise many types for broken files.
            suppress(Exception),
            open_image(data) as image,
        ):
            modes.add(image.mode)
            sides.append((image.height, image.width))
    height, width = sides[0] if size else sides[-1]
    found = tuple(dict.fromkeys((w, h) for h, w in sides[1:]))
    shape = (1 if modes and modes <= set(_GREY) else 3, height, width)
    return _Headers(shape, found, looked_at, looked_at - len(sides) + 1)
