"""Splits that are decoded by tasks, so that no process holds one: references to some hundred images each."""

from __future__ import annotations

import functools
import itertools
import math
import warnings
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rayddl.data.config import SourceConfig
from rayddl.data.pixels import sums
from rayddl.data.pixels.sums import Sums
from rayddl.data.sources import registry as sources
from rayddl.data.sources import splits
from rayddl.data.sources.listing import Listing
from rayddl.methods.training.input_spec import BATCH
from rayddl.stages.runtime import failures, sizes, unreserved
from rayddl.stages.runtime.large import image_bytes, large

SHARD_BYTES = 64 * 2**20
"""About the bytes of a shard."""
SUMS_BYTES = 2**30
"""Most bytes of the sums of products that tasks make at the same time, unless one of them has more."""


@dataclass(frozen=True)
class Shards:
    """Images in the object store, in several parts."""

    refs: tuple[Any, ...]
    """References to uint8 arrays ``[n, C or 1, H, W]``; an array of one channel is grey."""
    counts: tuple[int, ...]
    channels: int

    def read(self, number: int) -> Tensor:
        """The part ``number``, uint8 ``[n, C, H, W]``, in the store's memory."""
        import ray

        return tensor(ray.get(self.refs[number])).expand(-1, self.channels, -1, -1)

    def every(self, first: int, step: int) -> Shards:
        """Each ``step``-th part from the part ``first`` on."""
        return replace(self, refs=self.refs[first::step], counts=self.counts[first::step])

    def owners(self, places: Tensor) -> Tensor:
        """The number of the part of each image at ``places``, int64 ``[N]``."""
        return torch.searchsorted(torch.tensor(self.counts).cumsum(0), places, right=True)

    def at(self, places: Tensor) -> Iterator[Tensor]:
        """Copies of the images at ``places``, uint8 ``[C, H, W]``, in their order; neighbours in a part are read
        together.
        """
        firsts = [0, *itertools.accumulate(self.counts)]
        number, part = -1, torch.empty(0)
        for place, owner in zip(places.tolist(), self.owners(places).tolist(), strict=True):
            if owner != number:
                del part
                number, part = owner, self.read(owner)
            yield part[place - firsts[owner]].clone()


@dataclass(frozen=True)
class Batches:
    """Batches of images at ascending positions, each read when it is asked for. May be iterated again.

    They are the batches of the images in one tensor, however these are divided into shards.
    """

    shards: Shards
    picked: Tensor
    """int64 ``[N]``."""
    size: int = BATCH
    """Images in a batch."""

    def __iter__(self) -> Iterator[Tensor]:
        ends = torch.tensor(self.shards.counts).cumsum(0)
        number, part = -1, torch.empty(0)
        for picked in self.picked.split(self.size):
            found = []
            owners = torch.searchsorted(ends, picked, right=True)
            for owner in owners.unique().tolist():
                if owner != number:
                    # The last part is let go before the next one is read.
                    del part
                    number, part = owner, self.shards.read(owner)
                found.append(part[picked[owners == owner] - (ends[owner] - self.shards.counts[owner])])
            yield torch.cat(found)


def summed(name: str, shards: Shards, shape: tuple[int, int, int]) -> Sums:
    """The sums over the images of ``shape`` (C, H, W) for the pixel space ``name``: of several shards by tasks, each of
    which reads one shard at a time. They are exact, so their order does not matter.
    """
    import ray

    count = len(shards.counts)
    if count == 1:
        return _sums(name, shards, shape)
    cpus = int(ray.cluster_resources().get("CPU", 1))
    tasks = max(1, min(count, cpus, SUMS_BYTES // sums.sums_bytes(name, shape)))
    parts = [(name, shards.every(k, tasks), shape) for k in range(tasks)]
    found: list[Sums] = unreserved.results(_sums, parts, "sum over images")
    return functools.reduce(Sums.plus, found)


def _sums(name: str, shards: Shards, shape: tuple[int, int, int]) -> Sums:
    return sums.summed(name, map(shards.read, range(len(shards.counts))), shape)


def _got(ref: Any, what: str) -> Any:
    import ray

    try:
        return ray.get(ref)
    except ray.exceptions.RayError as error:
        failures.explain(error, what)


@dataclass(frozen=True)
class Decoded:
    """A split in the object store."""

    images: Any
    """:class:`Shards`, or a reference to one uint8 array ``[N, C, H, W]``."""
    labels: Any
    """Reference to int64 ``[N]``."""
    shape: tuple[int, int, int]
    count: int
    bad: dict[str, str]
    """By name, the reason why an image cannot be read."""


def decoded(config: SourceConfig, listed: Listing) -> Decoded:
    """The readable images of a listing, in its order; a large listing is decoded by tasks.

    Raises the errors of :func:`rayddl.data.sources.registry.decoded`.
    """
    import ray

    if large(config, len(listed)):
        return _by_tasks(config, listed, max(1, SHARD_BYTES // image_bytes(config)))
    found, bad = sources.decoded(config, listed)
    images, labels = ray.put(found.images.numpy()), ray.put(found.labels.numpy())
    return Decoded(images, labels, found.shape, len(found), bad)


def parted(images: Tensor) -> Tensor | Shards:
    """``images``, uint8 ``[N, C, H, W]``; large ones in the object store, to which one part is copied at a time."""
    if images.nbytes <= sizes.WHOLE_BYTES:
        return images
    import ray

    parts = images.split(max(1, SHARD_BYTES // math.prod(images.shape[1:])))
    refs = tuple(ray.put(part.numpy()) for part in parts)
    return Shards(refs, tuple(map(len, parts)), int(images.shape[1]))


def tensor(array: NDArray[Any]) -> Tensor:
    """An array of the object store as a tensor that shares its read-only memory."""
    # Without a context manager, which would restore the filters of the whole process under other threads.
    warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
    return torch.from_numpy(array)


def decode_shard(config: SourceConfig, listed: Listing) -> tuple[NDArray[np.uint8], tuple[Any, ...]]:
    """The images, and their labels, shape, first name, and unreadable images with reasons."""
    found, bad = sources.decoded(config.model_copy(update={"max_bad_fraction": 1.0}), listed)
    first = next((name for name in listed.names.to_pylist() if name not in bad), "")
    return found.images.numpy(), (found.labels.numpy(), found.shape, first, bad)


def _by_tasks(config: SourceConfig, listed: Listing, most: int) -> Decoded:
    import ray

    task: Any = ray.remote(decode_shard).options(num_cpus=1, num_returns=2, name="decode images")
    at_once = max(2, 2 * int(ray.cluster_resources().get("CPU", 1)))
    waiting: deque[tuple[Any, Any]] = deque()
    refs: list[Any] = []
    rest: list[tuple[Any, ...]] = []
    for start in itertools.chain(range(0, len(listed), most), [None] * at_once):
        if start is not None:
            part = listed.take(np.arange(start, min(start + most, len(listed))))
            images, more = task.remote(config, part)
            waiting.append((images, more))
        if waiting and (start is None or len(waiting) >= at_once):
            images, more = waiting.popleft()
            rest.append(_got(more, "the decoding of images"))
            refs.append(images)
    return _joined(config, refs, rest)


def _joined(config: SourceConfig, refs: list[Any], rest: list[tuple[Any, ...]]) -> Decoded:
    """The shards as one split. Raises :class:`~rayddl.errors.SourceError` for what concerns all of them."""
    import ray

    labels = [each for each, *_ in rest]
    bad = {name: why for *_, reasons in rest for name, why in reasons.items()}
    count = sum(map(len, labels))
    splits.refuse_too_many_bad(config, [f"{name}: {why}" for name, why in bad.items()], count + len(bad))
    sizes = Counter[tuple[int, ...]]()
    example: dict[tuple[int, ...], str] = {}
    for own, (_, *sides), first, _ in rest:
        if len(own):
            sizes[tuple(sides)] += len(own)
            example.setdefault(tuple(sides), first)
    splits.refuse_mixed_sizes(config, sizes, example)
    kept = [(ref, len(own)) for ref, own in zip(refs, labels, strict=True) if len(own)]
    channels = max(shape[0] for own, shape, *_ in rest if len(own))
    images = Shards(tuple(ref for ref, _ in kept), tuple(n for _, n in kept), channels)
    height, width = next(iter(sizes))
    return Decoded(images, ray.put(np.concatenate(labels)), (channels, height, width), count, bad)
