"""The real images by name.

Each family of files is one module with ``identity(config)``, which finds and checks the files and
says what is in them without decoding a pixel, and ``load(config, fingerprint)``. Importing this
module, and :func:`fingerprint`, import no torch: a plan is shown at once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from rayddl.data.config import SourceConfig
from rayddl.data.sources import bundled, cifar, folders, given, imagenet, tinyimagenet
from rayddl.data.sources import parquet as tables
from rayddl.data.sources import webdataset as shards
from rayddl.errors import SourceError

if TYPE_CHECKING:
    from rayddl.data.dataset import ImageDataset, Source
    from rayddl.data.sources.listing import Listing

_FORMAT = 1
"""Raise it when the same files give other pixels or labels than before."""


class _Family(Protocol):
    def identity(self, config: SourceConfig) -> dict[str, Any]: ...
    def load(self, config: SourceConfig, fingerprint: str) -> Source: ...


@runtime_checkable
class _Listed(Protocol):
    def listing(self, config: SourceConfig, split: str) -> Listing: ...


_FAMILIES: dict[str, _Family] = {
    "digits": bundled,
    "cifar10": cifar,
    "cifar100": cifar,
    "parquet": tables,
    "webdataset": shards,
    "imagefolder": folders,
    "tinyimagenet": tinyimagenet,
    "imagenet": imagenet,
}


def _family(config: SourceConfig) -> _Family:
    """Plugins' sources are one family."""
    return _FAMILIES.get(config.name, given)


def load(config: SourceConfig) -> Source:
    """Both splits, every image decoded once.

    Raises :class:`~rayddl.errors.SourceError` when files, columns or classes are not as they must be
    (the same as :func:`fingerprint` does), and when too many images cannot be read or their sizes
    differ.
    """
    with _unreadable(config):
        return _family(config).load(config, fingerprint(config))


def in_place(config: SourceConfig) -> bool:
    """True if images can be read one by one where they lie: :func:`listing` lists them."""
    return isinstance(_family(config), _Listed)


def listing(config: SourceConfig, split: Literal["train", "test"] = "train") -> Listing | None:
    """A split's images where they lie, none of them read; ``None`` for families that are small and always
    decoded whole.

    Raises :class:`~rayddl.errors.SourceError` as :func:`fingerprint` does.
    """
    family = _family(config)
    with _unreadable(config):
        return family.listing(config, split) if isinstance(family, _Listed) else None


def decoded(config: SourceConfig, listed: Listing) -> tuple[ImageDataset, dict[str, str]]:
    """The images of a listing of this source, and of those that cannot be read the reason, by name.

    Raises :class:`~rayddl.errors.SourceError` as :func:`load` does of images.
    """
    from rayddl.data.sources import splits

    with _unreadable(config):
        return splits.decoded(config, listed)


def fingerprint(config: SourceConfig) -> str:
    """Hex that changes with the images, their labels, or a setting that changes either.

    Files count by their name inside the root and their size (Parquet also by its footer and labels),
    never by place or time: a copied or moved source keeps its fingerprint. The pixel space is no part
    of it. Raises :class:`~rayddl.errors.SourceError` for a source that is missing, empty, of one class,
    or without the columns asked for.
    """
    with _unreadable(config):
        content = _family(config).identity(config)
    identity = {"format": _FORMAT, "name": config.name, "size": config.size, "content": content}
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


@contextmanager
def _unreadable(config: SourceConfig) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SourceError(
            f"source {config.name} in {config.root} cannot be read: {error}. Check that it is there and may "
            "be read by this user.",
            code="source-unreadable",
        ) from error
