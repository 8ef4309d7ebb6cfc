"""Loads and fingerprints sources by name.

Each family of sources is a module with ``identity(config)``, which finds and checks the files and
identifies their content without decoding images, and ``load(config, fingerprint)``. Neither this
module nor :func:`fingerprint` imports torch, so that a plan is shown at once.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from rayddl.data.config import SourceConfig
from rayddl.data.sources import bundled, cifar, folders, given, imagenet, known, tinyimagenet
from rayddl.data.sources import parquet as tables
from rayddl.data.sources import webdataset as shards
from rayddl.data.sources.refusals import FOLLOW, unreachable
from rayddl.errors import PathError, SourceError
from rayddl.filenames import FileList
from rayddl.storage import UnreachableError

if TYPE_CHECKING:
    from rayddl.data.dataset import ImageDataset, Source
    from rayddl.data.sources.listing import Listing

_FORMAT = 1
"""Increase it if the same files give other pixels or labels than before."""


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
    """The module that reads the source; one module reads all plugins' sources."""
    return _FAMILIES.get(config.name, given)


def load(config: SourceConfig) -> Source:
    """Both splits in memory; every image is decoded once.

    Raises :class:`~rayddl.errors.SourceError` for wrong files, columns or classes, as
    :func:`fingerprint` does, if more than ``max_bad_fraction`` of the images cannot be read, and if
    their sizes differ and ``size`` is not set.
    """
    with _unreadable(config):
        return _family(config).load(config, fingerprint(config))


def in_place(config: SourceConfig) -> bool:
    """True if images can be read individually from storage, with :func:`listing`."""
    return isinstance(_family(config), _Listed)


def listing(config: SourceConfig, split: Literal["train", "test"] = "train") -> Listing | None:
    """The listing of a split's images, made without reading one; ``None`` for small sources that are
    always decoded completely.

    Raises the errors of :func:`fingerprint`.
    """
    family = _family(config)
    if not isinstance(family, _Listed):
        return None
    with _unreadable(config):
        found = known.once(("listing", config, split), partial(family.listing, config, split))
        return found if config.range is None else _ranged(found, config.range)


def _ranged(found: Listing, white: int) -> Listing:
    from rayddl.data.sources.listing import RangedStore

    return replace(found, store=RangedStore(found.store, white))


def receive(config: SourceConfig, digest: str, listed: Listing | None) -> None:
    """Make :func:`fingerprint` and :func:`listing` of the train split return what another process has found."""
    found: dict[Hashable, Any] = {("fingerprint", config): digest}
    if listed is not None and config.range is None:
        found["listing", config, "train"] = listed
    known.receive(found)


def decoded(config: SourceConfig, listed: Listing) -> tuple[ImageDataset, dict[str, str]]:
    """The readable images of a listing of this source, and by name the reasons of unreadable ones.

    Raises the errors of :func:`load` that concern images.
    """
    from rayddl.data.sources import splits

    with _unreadable(config):
        return splits.decoded(config, listed)


def fingerprint(config: SourceConfig) -> str:
    """Hexadecimal hash of the images, their labels, and the settings that change either.

    Files are identified by name inside the root and size (Parquet also by footer and labels), not by
    path or time: a copied or moved source keeps its fingerprint. The pixel space is not included.
    Raises :class:`~rayddl.errors.SourceError` for a source that is missing or empty, has one class, or
    lacks the columns that are set.
    """
    return known.once(("fingerprint", config), partial(_fingerprint, config))


def _fingerprint(config: SourceConfig) -> str:
    with _unreadable(config):
        content = _family(config).identity(config)
    identity = {"format": _FORMAT, "name": config.name, "size": config.size, "content": content}
    if config.range is not None:
        identity["range"] = config.range
    return _digest(identity)


def _digest(identity: dict[str, Any]) -> str:
    """SHA-256 of ``identity`` as JSON with sorted keys; a list of files is written piece by piece, since that of a
    million is 100 MiB.
    """
    lists: list[FileList] = []
    mark = secrets.token_hex(16)

    def later(value: object) -> str:
        if not isinstance(value, FileList):
            raise TypeError(f"{type(value).__name__} has no place in an identity")
        lists.append(value)
        return mark

    first, *rest = json.dumps(identity, sort_keys=True, default=later).split(f'"{mark}"')
    digest = hashlib.sha256(first.encode())
    for files, after in zip(lists, rest, strict=True):
        for at, some in enumerate(files.batches()):
            digest.update(f"{', ' if at else '['}{json.dumps(some)[1:-1]}".encode())
        digest.update(f"{']' if len(files) else '[]'}{after}".encode())
    return digest.hexdigest()


@contextmanager
def _unreadable(config: SourceConfig) -> Iterator[None]:
    try:
        yield
    except PathError as error:
        if error.code != "link-leaves-folder":
            raise
        raise SourceError(f"source {config.name}: {error}. {FOLLOW}", code="link-leaves-root") from error
    except UnreachableError as error:
        raise unreachable(error) from error
    except OSError as error:
        raise SourceError(
            f"source {config.name} in {config.root} cannot be read: {error}. Check that it is there and may "
            "be read by this user.",
            code="source-unreadable",
        ) from error
