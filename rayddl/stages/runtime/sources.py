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
from rayddl.methods.trajectories.expert import Images, encoded
from rayddl.stages.runtime import shards
from rayddl.stages.runtime.shards import Batches, Shards
from rayddl.storage import Folder

tensor = shards.tensor
SPACE_FILE = "space.safetensors"


@dataclass(frozen=True)
class SharedSource:
    """A source in the object store. It holds references, so that it is cheap to send to a task."""

    refs: tuple[Any, Any, Any, Any]
    """Train images uint8 ``[N, C, H, W]``, train labels, test images, test labels; the first two are ``None`` if
    the train split was not loaded. Images of :func:`publish_held_out` and :func:`publish_in_shards` may be
    :class:`~rayddl.stages.runtime.shards.Shards`. Test images are read with :func:`held_out`."""
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
    """The source in Ray's object store; loaded at the first call of a session."""
    key = _key(config)
    with _publishing:
        if key not in _published:
            source = sources.load(config)
            _published[key] = SharedSource(
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
        return _published[key]


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


def publish_in_shards(config: SourceConfig) -> SharedSource:
    """The source with both splits in the object store, the train split in shards if it is large.

    Sources that are always decoded whole, or are published already, are published whole. Raises the errors of
    :func:`publish`.
    """
    key = _key(config, "in shards:")
    with _publishing:
        if key not in _published:
            listed = sources.listing(config)
            if _key(config) in _published or listed is None or not shards.large(config, listed):
                return publish(config)
            _published[key] = _in_shards(config, listed, publish_held_out(config))
        return _published[key]


def _in_shards(config: SourceConfig, listed: Listing, rest: SharedSource) -> SharedSource:
    import ray

    found = shards.decoded(config, listed)
    refuse_absent_classes(ray.get(found.labels).tolist(), listed.classes, config)
    (mine, *sides), (theirs, *others) = found.shape, rest.shape
    counts = Counter({tuple(sides): found.count}) + Counter({tuple(others): rest.counts[1]})
    examples = {tuple(sides): "a training image", tuple(others): "a held-out image"}
    refuse_mixed_sizes(config, counts, examples)
    # Grey only if all images are.
    channels = max(mine, theirs)
    return replace(
        rest,
        refs=(replace(found.images, channels=channels), found.labels, *rest.refs[2:]),
        shape=(channels, sides[0], sides[1]),
        bad=(*(f"{name}: {why}" for name, why in found.bad.items()), *rest.bad),
        counts=(found.count, rest.counts[1]),
        notes=(*listed.notes, *(line for line in rest.notes if line not in listed.notes)),
    )


def held_out(source: SharedSource, picked: torch.Tensor | None = None) -> tuple[Batches, torch.Tensor]:
    """The held-out images in batches, and their labels; of those at the ascending positions ``picked``, if given."""
    import ray

    labels = tensor(ray.get(source.refs[3]))
    picked = torch.arange(len(labels)) if picked is None else picked
    images = source.refs[2]
    parts = images if isinstance(images, Shards) else Shards((images,), (len(labels),), source.shape[0])
    return Batches(parts, picked), labels[picked]


def note(source: SharedSource, said: Callable[[str], None]) -> None:
    """Say the source's notes, and its first unreadable images."""
    for line in source.notes:
        said(line)
    for line in source.bad[:3]:
        said(f"skipped an unreadable image: {line}")


def adopt(config: SourceConfig, source: SharedSource) -> None:
    """Make :func:`publish` and :func:`publish_held_out` of this process return ``source``, which another process
    has published.
    """
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
    images = source.refs[0]
    parts = images if isinstance(images, Shards) else Shards((images,), (source.counts[0],), source.shape[0])
    fitted = space.fit(source.space_kind, map(parts.read, range(len(parts.counts))), source.scaling)
    folder.write_json("space.json", {"id": source.space_id, "space": fitted.to_json()})
    folder.write(SPACE_FILE, save({k: v.contiguous() for k, v in fitted.tensors().items()}))
    return fitted


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


_encoded: dict[tuple[str, str], tuple[Images, Images]] = {}


def splits(source: SharedSource, fitted: Any, device: torch.device) -> tuple[Images, Images]:
    """Train and test images in model space (float32) on ``device``; a worker process encodes them once.

    ``fitted`` is a reference to the :class:`PixelSpace`.
    """
    import ray

    key = (source.space_id, str(device))
    if key not in _encoded:
        train_x, train_y, test_x, test_y = (tensor(a) for a in ray.get(list(source.refs)))
        space_ = ray.get(fitted)
        _encoded.clear()
        _encoded[key] = (
            encoded(space_, train_x, train_y, device),
            encoded(space_, test_x, test_y, device),
        )
    return _encoded[key]
