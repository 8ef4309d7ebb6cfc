"""Real images, loaded once per run and shared through the object store."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from safetensors.torch import load, save

from rayddl import plugins
from rayddl.data.config import Scaling, SourceConfig
from rayddl.data.dataset import ImageDataset
from rayddl.data.pixels import space
from rayddl.data.pixels.space import PixelSpace
from rayddl.data.sources import registry as sources
from rayddl.data.sources.listing import Listing
from rayddl.data.sources.refusals import refuse_absent_classes
from rayddl.data.sources.splits import refuse_mixed_sizes
from rayddl.errors import ArtifactError
from rayddl.methods.training import input_spec
from rayddl.stages.runtime import shards
from rayddl.stages.runtime.large import is_large
from rayddl.stages.runtime.mapped import mapped
from rayddl.stages.runtime.shards import Batches, Shards
from rayddl.storage import Folder

tensor = shards.tensor
SPACE_FILE = "space.safetensors"


@dataclass(frozen=True)
class SharedSource:
    """A source in the object store. It holds references, so that it is cheap to send to a task."""

    refs: tuple[Any, Any, Any, Any]
    """Train images uint8 ``[N, C, H, W]``, train labels, test images, test labels; the first two are ``None`` if
    the train split was not loaded. Images of a source with a large split are
    :class:`~rayddl.stages.runtime.shards.Shards`: :func:`train_images` and :func:`held_out` read both."""
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    fingerprint: str
    bad: tuple[str, ...]
    space_kind: str
    counts: tuple[int, int]
    """Images in the train and the test split."""
    notes: tuple[str, ...] = ()
    """Sentences on what the files have and the splits leave out."""
    scaling: Scaling | None = None
    """The constants of ``space: published``."""
    zoomed: bool = False
    """True if published results for it are of zoomed test images."""
    listed: Any = None
    """Reference to the listing of the train split, if :func:`listed_too` has added one."""

    @property
    def space_id(self) -> str:
        """An identifier of the pixel space by the data it is fitted on, not by its floating-point numbers, which differ
        in the last bits between machines.
        """
        return f"{self.space_kind}:{self.fingerprint}"


_published: dict[str, SharedSource] = {}
_publishing = threading.RLock()
"""Held while a source is loaded, so that stages that run at the same time load it once."""
plugins.on_change(_published.clear)


def publish(config: SourceConfig) -> SharedSource:
    """The source in Ray's object store, in shards if a split is large; loaded at the first call of a session.

    Raises the errors of :func:`rayddl.data.sources.registry.load`; of a large source, each split may have
    ``max_bad_fraction`` unreadable images.
    """
    key = _key(config)
    with _publishing:
        if key not in _published:
            large = is_large(config, "train") or is_large(config, "test")
            _published[key] = _in_shards(config, publish_held_out(config)) if large else _whole(config)
        return _published[key]


def _whole(config: SourceConfig) -> SharedSource:
    source = sources.load(config)
    return SharedSource(
        (*_put(source.train), *_put(source.test)),
        source.train.classes,
        source.train.shape,
        source.fingerprint,
        source.bad,
        config.space_key,
        (len(source.train.labels), len(source.test.labels)),
        source.notes,
        config.scaling,
        config.zoomed,
    )


def publish_held_out(config: SourceConfig) -> SharedSource:
    """The source with only its held-out split in the object store: the train split may exceed memory.

    Sources that are always decoded whole, or are published already, are published whole.
    """
    key = _key(config, "held out:")
    with _publishing:
        if key not in _published:
            if _key(config) in _published or (listed := sources.listing(config, "test")) is None:
                return publish(config)
            _published[key] = _held_out(config, listed)
        return _published[key]


def _held_out(config: SourceConfig, listed: Listing) -> SharedSource:
    train, found = sources.listing(config), shards.decoded(config, listed)
    return SharedSource(
        (None, None, found.images, found.labels),
        listed.classes,
        found.shape,
        sources.fingerprint(config),
        tuple(f"{name}: {why}" for name, why in found.bad.items()),
        config.space_key,
        (0 if train is None else len(train), found.count),
        listed.notes,
        config.scaling,
        config.zoomed,
    )


def _in_shards(config: SourceConfig, rest: SharedSource) -> SharedSource:
    import ray

    listed = sources.listing(config)
    assert listed is not None
    found = shards.decoded(config, listed)
    refuse_absent_classes(ray.get(found.labels).tolist(), listed.classes, config)
    (mine, *sides), (theirs, *others) = found.shape, rest.shape
    counts = Counter({tuple(sides): found.count}) + Counter({tuple(others): rest.counts[1]})
    examples = {tuple(sides): "a training image", tuple(others): "a held-out image"}
    refuse_mixed_sizes(config, counts, examples)
    # Grey only if all images are.
    channels = max(mine, theirs)
    train, test = (
        replace(_parts(images, count), channels=channels)
        for images, count in ((found.images, found.count), (rest.refs[2], rest.counts[1]))
    )
    return replace(
        rest,
        refs=(train, found.labels, test, rest.refs[3]),
        shape=(channels, sides[0], sides[1]),
        bad=(*(f"{name}: {why}" for name, why in found.bad.items()), *rest.bad),
        counts=(found.count, rest.counts[1]),
        notes=(*listed.notes, *(line for line in rest.notes if line not in listed.notes)),
    )


def _parts(images: Any, count: int, channels: int = 0) -> Shards:
    """``images`` of a split of ``count`` as shards; one array is a single one."""
    return images if isinstance(images, Shards) else Shards((images,), (count,), channels)


def train_in_memory(source: SharedSource) -> bool:
    """True if the train split was loaded, and is not in shards."""
    return source.refs[0] is not None and len(train_parts(source).counts) == 1


def train_images(source: SharedSource) -> torch.Tensor:
    """The train images, uint8 ``[N, C, H, W]``, to be indexed in any order: in the object store's memory, or mapped
    from a file on this node's disk if the split is in shards. Raises the errors of :func:`mapped`.
    """
    parts = train_parts(source)
    return parts.read(0) if train_in_memory(source) else mapped(parts, source.shape)


def train_batches(source: SharedSource) -> Batches:
    """The train images in batches, from first to last; of a split in shards, a shard at a time."""
    return Batches(train_parts(source), torch.arange(source.counts[0]))


def train_parts(source: SharedSource) -> Shards:
    """The train images in shards, of a small split in a single one."""
    return _parts(source.refs[0], source.counts[0], source.shape[0])


def train_labels(source: SharedSource) -> torch.Tensor:
    """The labels of the train images, int64 ``[N]``."""
    import ray

    return tensor(ray.get(source.refs[1]))


def held_out(source: SharedSource, picked: torch.Tensor | None = None) -> tuple[Batches, torch.Tensor]:
    """The held-out images in batches, and their labels; of those at the ascending positions ``picked``, if given."""
    import ray

    labels = tensor(ray.get(source.refs[3]))
    picked = torch.arange(len(labels)) if picked is None else picked
    return Batches(_parts(source.refs[2], len(labels), source.shape[0]), picked), labels[picked]


def note(source: SharedSource, said: Callable[[str], None]) -> None:
    """Say the source's notes, and its first unreadable images."""
    for line in source.notes:
        said(line)
    for line in source.bad[:3]:
        said(f"skipped an unreadable image: {line}")


def listed_too(config: SourceConfig, source: SharedSource) -> SharedSource:
    """``source`` with the listing of its train split, if there is one, for processes that :func:`adopt` it."""
    import ray

    train = sources.listing(config)
    return source if train is None else replace(source, listed=ray.put(train))


def adopt(config: SourceConfig, source: SharedSource) -> None:
    """Make :func:`publish` and :func:`publish_held_out` of this process return ``source``, which another process has
    published. Its files are not listed again if it is from :func:`listed_too`.
    """
    import ray

    sources.receive(config, source.fingerprint, None if source.listed is None else ray.get(source.listed))
    _published[_key(config, "held out:" if source.refs[0] is None else "")] = source


def _key(config: SourceConfig, part: str = "") -> str:
    import ray

    runtime = ray.get_runtime_context()
    # Every local Ray numbers its jobs from 1: the node's random id distinguishes sessions.
    session = f"{runtime.get_node_id()}:{runtime.get_job_id()}"
    return f"{part}{session}:{config.model_dump_json()}"


def _put(split: ImageDataset) -> tuple[Any, Any]:
    import ray

    return ray.put(split.images.numpy()), ray.put(split.labels.numpy())


def on_device(images: torch.Tensor, device: torch.device) -> torch.Tensor:
    """uint8 ``images`` on ``device`` if they need at most a quarter of its free memory, else unchanged."""
    if device.type != "cuda":
        return images
    free, _ = torch.cuda.mem_get_info(device)
    return images.to(device) if images.nbytes <= free / 4 else images


def fit_space(source: SharedSource, folder: Folder) -> PixelSpace:
    """The source's pixel space: read from ``folder`` if it is stored there, else fitted and stored.

    Raises :class:`ArtifactError` if the stored space was fitted on other images.
    """
    if folder.has(SPACE_FILE):
        return read_space(folder, source)
    fitted = _fitted(source, source.space_kind, source.scaling)
    folder.write_json("space.json", {"id": source.space_id, "space": fitted.to_json()})
    folder.write(SPACE_FILE, save({k: v.contiguous() for k, v in fitted.tensors().items()}))
    return fitted


def moments(source: SharedSource) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of the train images, for pixels in 0..1."""
    return input_spec.moments_of(_fitted(source, "normalise"))


def _fitted(source: SharedSource, kind: str, scaling: Scaling | None = None) -> PixelSpace:
    if scaling is not None:
        return space.scaled(scaling, source.shape)
    return space.of_sums(kind, shards.summed(kind, train_parts(source), source.shape), source.shape)


def read_space(folder: Folder, source: SharedSource) -> PixelSpace:
    """The pixel space stored in ``folder``. Raises :class:`ArtifactError` if it was fitted on other images."""
    head = folder.read_json("space.json")
    if head["id"] != source.space_id:
        kind, _, images = str(head["id"]).partition(":")
        raise ArtifactError(
            f"{folder} was made in pixel space {kind} of the images {images[:12]}, but this definition's source "
            f"has {source.space_kind} of {source.fingerprint[:12]}. Use the source that made it, or make it anew.",
            code="artifact-of-another-source",
        )
    return PixelSpace.from_parts(head["space"], load(folder.read(SPACE_FILE)))
