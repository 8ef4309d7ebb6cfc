"""Finds out what a path holds: its layout, classes, splits, and a sample of its images' sizes and formats.

Headers of up to a few hundred images are read, and of these as many are decoded as take a moment. Imports no torch.
"""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from rayddl.data.config import SourceConfig
from rayddl.data.pixels.decode import open_image, read_image
from rayddl.data.sources import registry
from rayddl.data.sources.known import Known
from rayddl.data.sources.refusals import bad_images_rule, shown
from rayddl.data.sources.summary import source_summary
from rayddl.data.sources.trees import EXTENSIONS
from rayddl.errors import SourceError
from rayddl.storage import Folder, split

HOLDOUT = 0.2
_SAMPLE = 256
_DECODED = 100_000_000
"""Pixels of the sample that are decoded at most, which shows that files are cut off: about a second."""
_TRIED = 32
"""The side to which they are decoded."""
_CLASSES = 8
"""Class names that the description has."""
_NAMED = 3
"""Names of unreadable images that the description has."""
_GREY = ("1", "L", "LA", "La", "I", "I;16")
_HELD_OUT = ("val", "test", "valid", "validation", "dev", "eval")
_WNID = re.compile(r"n\d{8}")
_PUBLISHED = {"cifar-10-batches-py": "cifar10", "cifar-100-python": "cifar100"}
_TABLES = {".parquet": "parquet", ".tar": "webdataset"}


@dataclass(frozen=True)
class PathContents:
    """What a path holds."""

    source: Mapping[str, Any]
    """The keys of ``source`` that read it, without ``size``."""
    classes: tuple[str, ...]
    train: tuple[int, ...]
    """Training images per class."""
    test: int
    """Held-out images."""
    sides: tuple[tuple[int, int], ...]
    """(width, height) of the sampled images."""
    formats: Mapping[str, int]
    """Sampled images per file format."""
    grey: bool
    unreadable: tuple[str, ...] = ()
    """Names of the sample's images that cannot be read."""
    notes: tuple[str, ...] = ()
    """What the listings leave out."""

    @property
    def images(self) -> int:
        """Training images."""
        return sum(self.train)

    @property
    def looked_at(self) -> int:
        """Images of the sample."""
        return len(self.sides) + len(self.unreadable)

    @property
    def bad_fraction(self) -> float | None:
        """A share of unreadable images that is allowed for: twice that of the sample, if it is above the default."""
        share = len(self.unreadable) / self.looked_at
        allowed = SourceConfig.model_fields["max_bad_fraction"].default
        return min(1.0, math.ceil(200 * share) / 100) if share > allowed else None

    @property
    def one_size(self) -> bool:
        """True if all sampled images have the same width and height."""
        return len(set(self.sides)) <= 1

    @property
    def side(self) -> int:
        """The median of the sampled images' shorter sides, in pixels."""
        return int(statistics.median(min(sides) for sides in self.sides))

    def lines(self) -> list[str]:
        """A description in a few lines."""
        few, most = min(self.train), max(self.train)
        per_class = f"{few:,}" if few == most else f"{few:,} to {most:,}"
        sizes = "all of {} x {} pixels".format(*self.sides[0]) if self.one_size else self._sizes()
        held = "held out of them by holdout" if "holdout" in self.source else "held out"
        return [
            f"{self.images:,} training images of {len(self.classes):,} classes, {per_class} each; {self.test:,} {held}",
            f"{', '.join(f'{name} {count}' for name, count in self.formats.items())}; "
            f"{'grey' if self.grey else 'colour'}, {sizes} ({self.looked_at} looked at)",
            f"classes: {shown(self.classes, _CLASSES)}",
            *self._broken(),
            *self.notes,
        ]

    def _broken(self) -> Iterator[str]:
        bad, allowed = self.unreadable, self.bad_fraction
        if bad:
            rule = bad_images_rule(
                SourceConfig.model_fields["max_bad_fraction"].default if allowed is None else allowed
            )
            yield f"{len(bad)} of {self.looked_at} images looked at cannot be read: {shown(bad, _NAMED)}; {rule}"

    def _sizes(self) -> str:
        shorter = [min(sides) for sides in self.sides]
        return f"shorter sides of {min(shorter)} to {max(shorter)} pixels, median {self.side}"


def read_contents(path: str, *, follow_links: bool = False) -> PathContents:
    """Look at a folder, a Parquet file or a tar file, by path or URI; at images outside it if ``follow_links``.

    Raises :class:`SourceError` for a path that does not exist or holds no images that rayddl can read, and those of
    :func:`rayddl.data.sources.registry.fingerprint`.
    """
    with Known().used():
        return _look(path, {"follow_links": True} if follow_links else {})


def _look(path: str, links: Mapping[str, Any]) -> PathContents:
    source = _with_held_out({**_found(path), **links})
    config = SourceConfig.model_validate(source)
    listed = registry.listing(config)
    if listed is None:
        seen = source_summary(config)
        per_class = seen.train // seen.classes
        channels, height, width = seen.shape
        names = tuple(str(index) for index in range(seen.classes))
        whole = ((width, height),)
        return PathContents(
            source, names, (per_class,) * seen.classes, seen.test, whole, {"published": 1}, channels == 1
        )
    held = registry.listing(config, "test")
    assert held is not None  # a source has listings of both splits or of none
    sides: list[tuple[int, int]] = []
    formats, modes = Counter[str](), set[str]()
    positions = np.unique(np.linspace(0, len(listed) - 1, min(_SAMPLE, len(listed))).astype(np.int64))
    unreadable: list[str] = []
    left = _DECODED
    for name, blob in zip(listed.take(positions).each_name(), listed.read(positions), strict=True):
        read = False
        with (
            suppress(Exception),  # the parsers raise many types for broken files
            open_image(blob) as image,  # type: ignore[arg-type]  # an error is no bytes
        ):
            if image.width * image.height <= left:
                left -= image.width * image.height
                read_image(blob, _TRIED)  # type: ignore[arg-type]  # as above
            sides.append((image.width, image.height))
            formats[image.format or "?"] += 1
            modes.add(image.mode)
            read = True
        if not read:
            unreadable.append(name)
    if not sides:
        raise SourceError(
            f"{path}: none of {len(positions)} images that were looked at can be read. Are they complete?",
            code="no-readable-image",
        )
    counts = tuple(int(count) for count in listed.counts())
    return PathContents(
        source,
        listed.classes,
        counts,
        len(held),
        tuple(sides),
        dict(formats.most_common()),
        modes <= set(_GREY),
        tuple(unreadable),
        tuple(listed.notes),
    )


def _found(path: str) -> dict[str, Any]:
    """The source's keys by the layout of ``path``."""
    folder = Folder(path.rstrip("/") or path)
    if not folder.exists():
        return _file(path)
    names, folders = folder.names(), folder.folders()
    for inside, name in _PUBLISHED.items():
        if inside in folders:
            return {"name": name, "root": path}
    if "wnids.txt" in names and "train" in folders:
        return {"name": "tinyimagenet", "root": path}
    files = [*names, *(folder.child("data").names() if "data" in folders else [])]
    for ending, name in _TABLES.items():
        if any(file.endswith(ending) for file in files):
            return _columns({"name": name, "root": path})
    held = next((name for name in _HELD_OUT if name in folders), None)
    if "train" in folders:
        classes = folder.child("train").folders()
        if classes and held == "val" and all(_WNID.fullmatch(name) for name in classes):
            return {"name": "imagenet", "root": path}
    found: dict[str, Any] = {"name": "imagefolder", "root": path}
    return found if held in (None, "val", "test") else {**found, "test": held}


def _file(path: str) -> dict[str, Any]:
    """The source's keys for one Parquet or tar file; a file of the other split with the same name is taken too."""
    folder, name = split(path)
    ending = PurePosixPath(name).suffix
    if ending not in _TABLES or not folder.has(name):
        raise SourceError(
            f"there is no folder, .parquet file or .tar file {path}. Give the folder that has the class folders, the "
            "files or the shards.",
            code="nothing-to-look-at",
        )
    found: dict[str, Any] = {"name": _TABLES[ending], "root": folder.uri, "train": name}
    others = [name.replace("train", word) for word in _HELD_OUT if "train" in name]
    test = next((other for other in others if other != name and folder.has(other)), None)
    return _columns(found if test is None else {**found, "test": test})


def _columns(source: dict[str, Any]) -> dict[str, Any]:
    """``source`` with the columns of images and labels set, if a Parquet file names them otherwise."""
    if source["name"] != "parquet":
        return source
    folder = Folder(source["root"])
    inside = [*folder.names(), *(f"data/{name}" for name in folder.child("data").names())]
    first = source.get("train") or next(name for name in inside if name.endswith(".parquet"))
    with folder.open(first) as stream:
        try:
            schema = pq.read_schema(stream)
        except (pa.ArrowException, OSError, UnicodeDecodeError):
            return source  # reading the source says what is wrong
    images = [f.name for f in schema if pa.types.is_struct(f.type) or pa.types.is_binary(f.type)]
    labels = [f.name for f in schema if pa.types.is_integer(f.type) or pa.types.is_string(f.type)]
    labels.sort(key=lambda name: "label" not in name and "class" not in name)
    for key, default, fitting in (("image_column", "image", images), ("label_column", "label", labels)):
        if default not in schema.names and fitting:
            source = {**source, key: fitting[0]}
    return source


def _with_held_out(source: dict[str, Any]) -> dict[str, Any]:
    """``source`` with ``holdout`` if it has no held-out split."""
    added: dict[str, Literal[True] | float] = {"holdout": HOLDOUT}
    try:
        wanted = SourceConfig.model_validate({**source, **added})
    except ValidationError:
        return source  # its held-out split is fixed or named
    with suppress(SourceError):
        registry.fingerprint(SourceConfig.model_validate(source))
        if "train" not in source or "test" in source:
            return source
    try:
        registry.fingerprint(wanted)  # raises what is wrong with the images
    except SourceError as error:
        if error.code == "tree-without-images":
            raise _without_images(source["root"]) from None
        raise
    return {**source, **added}


def _without_images(path: str) -> SourceError:
    """The error of a folder without images, for a reader who has not written a definition yet."""
    return SourceError(
        f"there is no image in {path}, in a folder for each class. Give the folder that has the class folders, such as "
        "cat/0001.png and dog/0001.png, or train and val folders of these, or one with .parquet or .tar files. Images "
        f"end in {', '.join(EXTENSIONS)}.",
        code="nothing-to-look-at",
    )
