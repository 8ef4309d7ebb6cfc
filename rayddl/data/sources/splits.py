"""Builds a :class:`~rayddl.data.dataset.Source` from the encoded images of two splits.

Common to all families of files: counts unreadable images, decides on one size and on grey or RGB,
and checks that each class has training images.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch

from rayddl.data.config import SourceConfig
from rayddl.data.dataset import ImageDataset, Source
from rayddl.data.pixels.decode import DEEPEST, Decoded, Encoded, Pixels, decode
from rayddl.data.sources.listing import Blob, Listing
from rayddl.data.sources.refusals import SHOWN, refuse_absent_classes
from rayddl.errors import SourceError


@dataclass
class _Split:
    names: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    pixels: list[Pixels] = field(default_factory=list)
    bad: dict[str, str] = field(default_factory=dict)
    """By name, the reason why an image is unreadable."""
    brightest: int = 0
    """The largest value in images of 16 bits per pixel; 0 if there are none."""


def build(
    config: SourceConfig,
    fingerprint: str,
    classes: tuple[str, ...],
    train: Iterable[Sequence[Encoded]],
    test: Iterable[Sequence[Encoded]],
    *,
    notes: tuple[str, ...] = (),
) -> Source:
    """Decode both splits, batch by batch, each into one tensor.

    The source is grey (C = 1) if every image of both splits is grey, else RGB. Raises
    :class:`SourceError` if more than ``max_bad_fraction`` of the images cannot be read, if sizes
    differ and ``size`` is not set, or if a class has no readable training image.
    """
    splits = [_read(decode(batches, config.size, config.range)) for batches in (train, test)]
    _refuse_too_many_bad(config, splits)
    refuse_mixed_sizes(config, *_sizes(splits))
    refuse_absent_classes(splits[0].labels, classes, config)
    grey = all(pixels.ndim == 2 for split in splits for pixels in split.pixels)
    datasets = [_stacked(split, classes, grey) for split in splits]
    bad = tuple(_reasons(splits))
    return Source(
        train=datasets[0],
        test=datasets[1],
        fingerprint=fingerprint,
        bad=bad,
        notes=(*notes, *_dark(config, splits)),
    )


def decoded(config: SourceConfig, listed: Listing) -> tuple[ImageDataset, dict[str, str]]:
    """The readable images of a listing, in its order, and by name the reasons of unreadable ones.

    They are grey if all of them are grey. Raises the errors of :func:`build` that concern unreadable
    images and sizes.
    """
    split = _read(decode(batches(listed), config.size))
    _refuse_too_many_bad(config, [split])
    refuse_mixed_sizes(config, *_sizes([split]))
    grey = all(pixels.ndim == 2 for pixels in split.pixels)
    return _stacked(split, listed.classes, grey), split.bad


def batches(listed: Listing) -> Iterator[list[Encoded]]:
    """The images of a listing, to be decoded, in portions that are stored together. Far storage is read ahead."""
    blobs = listed.store.read(listed)
    for start, end in itertools.pairwise(listed.bounds().tolist()):
        names, labels = listed.names[start:end].to_pylist(), listed.labels[start:end].tolist()
        yield [
            Encoded(name, label, partial(_given, blob))
            for name, label, blob in zip(names, labels, itertools.islice(blobs, end - start), strict=True)
        ]


def _given(blob: Blob) -> bytes:
    if isinstance(blob, Exception):
        raise blob
    assert isinstance(blob, bytes)
    return blob


def _read(images: Iterable[Decoded]) -> _Split:
    split = _Split()
    for image in images:
        if isinstance(image.pixels, str):
            split.bad[image.name] = image.pixels
        else:
            split.names.append(image.name)
            split.labels.append(image.label)
            split.pixels.append(image.pixels)
            split.brightest = max(split.brightest, image.brightest)
    return split


def _dark(config: SourceConfig, splits: Sequence[_Split]) -> tuple[str, ...]:
    """A sentence on images of 16 bits per pixel that use at most 14 of them."""
    brightest = max(split.brightest for split in splits)
    if config.range is not None or not 0 < brightest <= DEEPEST // 4:
        return ()
    white = 2 ** brightest.bit_length() - 1
    return (
        f"images have 16 bits per pixel, and none of their values is above {brightest:,}, so they are nearly black; if "
        f"{white:,} is their white, set source.range={white}",
    )


def _reasons(splits: Sequence[_Split]) -> list[str]:
    return [f"{name}: {why}" for split in splits for name, why in split.bad.items()]


def _refuse_too_many_bad(config: SourceConfig, splits: Sequence[_Split]) -> None:
    bad = _reasons(splits)
    refuse_too_many_bad(config, bad, len(bad) + sum(len(split.pixels) for split in splits))


def refuse_too_many_bad(config: SourceConfig, bad: Sequence[str], total: int) -> None:
    """Raise :class:`SourceError` if more of ``total`` images cannot be read than allowed, for the reasons ``bad``."""
    if bad and len(bad) > config.max_bad_fraction * total:
        raise SourceError(
            f"source {config.name} in {config.root}: {len(bad):,} of {total:,} images cannot be read "
            f"({len(bad) / total:.1%}; source.max_bad_fraction allows {config.max_bad_fraction:.1%}):\n"
            + "\n".join(f"  {reason}" for reason in bad[:SHOWN])
            + (f"\n  and {len(bad) - SHOWN:,} more" if len(bad) > SHOWN else "")
            + "\nRepair or remove them, or raise source.max_bad_fraction.",
            code="too-many-bad-images",
        )


def _sizes(splits: Sequence[_Split]) -> tuple[Counter[tuple[int, ...]], dict[tuple[int, ...], str]]:
    """The number of images of each (height, width), and the name of one of them."""
    found: Counter[tuple[int, ...]] = Counter()
    example: dict[tuple[int, ...], str] = {}
    for split in splits:
        for name, pixels in zip(split.names, split.pixels, strict=True):
            found[pixels.shape[:2]] += 1
            example.setdefault(pixels.shape[:2], name)
    return found, example


def refuse_mixed_sizes(
    config: SourceConfig, found: Counter[tuple[int, ...]], example: Mapping[tuple[int, ...], str]
) -> None:
    """Raise :class:`SourceError` for images of several sizes: the number of each (height, width), and an example."""
    if len(found) < 2:
        return
    sizes = [f"{w} x {h} ({count:,}, e.g. {example[h, w]})" for (h, w), count in found.most_common(SHOWN)]
    more = f" and {len(found) - SHOWN:,} other sizes" if len(found) > SHOWN else ""
    raise SourceError(
        f"source {config.name} in {config.root}: images must be of one size, found (width x height) "
        f"{', '.join(sizes)}{more}. Set source.size to the side in pixels that all are brought to.",
        code="images-of-several-sizes",
    )


def _stacked(split: _Split, classes: tuple[str, ...], grey: bool) -> ImageDataset:
    """The split in one tensor. Arrays are freed one by one, so that memory holds at most one copy."""
    count, (height, width) = len(split.pixels), split.pixels[0].shape[:2] if split.pixels else (0, 0)
    images = np.empty((count, 1 if grey else 3, height, width), dtype=np.uint8)
    for index in range(count - 1, -1, -1):
        pixels = split.pixels.pop()
        images[index] = pixels if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    labels = torch.tensor(split.labels, dtype=torch.int64)
    return ImageDataset(torch.from_numpy(images), labels, classes)
