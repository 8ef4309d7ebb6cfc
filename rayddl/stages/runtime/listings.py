"""The train split of a source as a listing: of its files, or of images in the object store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rayddl.data.config import SourceConfig
from rayddl.data.sources import picking
from rayddl.data.sources import registry as sources
from rayddl.data.sources.listing import Blob, Listing, sorted_listing
from rayddl.seeds import generator
from rayddl.stages.runtime.shards import Shards
from rayddl.stages.runtime.sources import SharedSource, publish


@dataclass(frozen=True)
class ObjectStore:
    """Decoded images in Ray's object store."""

    images: Any
    """:class:`~rayddl.stages.runtime.shards.Shards`, or a reference to a uint8 array ``[N, C, H, W]``."""

    def read(self, listing: Listing) -> Iterator[Blob]:
        import ray

        if isinstance(self.images, Shards):
            yield from (image.numpy() for image in self.images.at(torch.from_numpy(listing.at)))
        else:
            images = ray.get(self.images)
            yield from (images[at] for at in listing.at)

    def unit(self, listing: Listing) -> NDArray[np.int64]:
        if isinstance(self.images, Shards):
            return self.images.owners(torch.from_numpy(listing.at)).numpy()
        return np.zeros(len(listing), np.int64)


def listing_of(config: SourceConfig) -> Listing:
    """The listing of the train split; images in files are not read.

    Small sources that are always decoded whole (``digits``, ``cifar10`` …) are listed from the object store.
    """
    found = sources.listing(config)
    return found if found is not None else of_shared(publish(config))


def of_shared(source: SharedSource) -> Listing:
    """The listing of the train split of a source in the object store."""
    import ray

    labels = np.array(ray.get(source.refs[1]), dtype=np.int32)
    names = [f"{index:09d}" for index in range(len(labels))]
    at = np.arange(len(labels), dtype=np.int64)
    return sorted_listing(names, labels, source.classes, ObjectStore(source.refs[0]), at=at)


@dataclass(frozen=True)
class Draw:
    """Random real images that are yet to be read, by the process that uses them."""

    listed: Any
    """Reference to the :class:`Listing` of the train split."""
    config: SourceConfig
    counts: tuple[int, ...]
    """The number of images of each class."""
    channels: int
    """The least number of channels: all images of a draw may be grey, and those of the split not."""
    seed: int
    number: int
    """Draws of different numbers are independent."""

    def read(self) -> tuple[torch.Tensor, torch.Tensor]:
        """What :func:`drawn` returns."""
        import ray

        draws = generator(self.seed, "random", self.number)
        images, labels = drawn(self.config, ray.get(self.listed), self.counts, draws)
        return images.expand(-1, max(self.channels, images.shape[1]), -1, -1), labels


def drawn(
    config: SourceConfig, listed: Listing, ipc: int | Sequence[int], draws: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """``ipc`` random images of every class of a listing, or ``ipc[c]`` of class c, read from files: uint8
    ``[N, C, H, W]``, and their labels.

    The same images, in the same order, as :func:`~rayddl.data.sources.picking.per_class` selects from the split in
    memory. Unreadable images are replaced by further draws; a class with too few images contributes all of them.
    Raises :class:`SourceError` for images of several sizes.
    """
    lenient = config.model_copy(update={"max_bad_fraction": 1.0})
    while True:
        labels = torch.from_numpy(listed.labels).long()
        rising, order = picking.per_class(labels, listed.classes, ipc, draws).sort()
        found, bad = sources.decoded(lenient, listed.take(rising.numpy()))
        if not bad:
            places = order.argsort()
            return found.images[places], labels[rising][places]
        sound = ~np.isin(listed.names.to_numpy(zero_copy_only=False), list(bad))
        listed = listed.take(np.flatnonzero(sound))
