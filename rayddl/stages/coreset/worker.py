"""Units of work of ``kind: coreset``: read the images of some classes, select some, and write them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load, save
from torch import Tensor

from rayddl import plugins, seeds
from rayddl.data.pixels.cutting import opened
from rayddl.data.pixels.decode import read_image, reason
from rayddl.data.sources import picking
from rayddl.data.sources.listing import Blob, Listing
from rayddl.errors import PluginError
from rayddl.methods.selection.features import BATCH, Features
from rayddl.methods.selection.rows import FeatureRows
from rayddl.methods.selection.select import balanced, easiest, herding, k_center, medium
from rayddl.stages.coreset.settings import CoresetConfig
from rayddl.stages.runtime import devices
from rayddl.storage import Folder

GREEDY = {"herding": herding, "kcenter": k_center, "balanced": balanced}
BY_SCORE = {"easiest": easiest, "medium": medium}


@dataclass(frozen=True)
class CoresetTask:
    """The arguments that all tasks of the stage share."""

    config: CoresetConfig
    listing: Listing
    """The images to select from."""
    shape: tuple[int, int, int]
    """(C, H, W) of the chosen images."""
    features: Any
    """Reference to the :class:`Features` in the object store."""
    out: Folder
    seed: int
    threads: int

    def file(self, label: int) -> str:
        """The file of a class's selected images."""
        return f"class-{label:05d}.safetensors"


@dataclass(frozen=True)
class SelectedImages:
    """The selected images of one class, and the images that could not be read."""

    images: Tensor
    """uint8 ``[n, C, H, W]``, in the order of selection."""
    positions: Tensor
    """int64 ``[n]``: positions in the listing."""
    bad: tuple[str, ...]


def choose(job: CoresetTask, labels: list[int]) -> None:
    """Select images of each class in ``labels`` and write a file per class; classes that have a file are skipped."""
    missing = [label for label in labels if not job.out.has(job.file(label))]
    if not missing:
        return
    device = devices.enter(job.threads, unit=f"coreset of classes {labels[0]}–{labels[-1]}")
    if job.config.method == "random":
        for label in missing:
            _keep(job, label, _at_random(job, label))
        return
    import ray

    features: Features = ray.get(job.features).on(device)
    found = _gathered(job, features, missing)
    for label in missing:
        gathered = found.pop(label)
        _refuse_short(job, label, len(gathered.positions))
        order = _selected(job, label, gathered.rows.joined())
        picked = np.array(gathered.positions, dtype=np.int64)[_filled(job, order)]
        again = dict(_read(job, np.unique(picked)))
        images = torch.stack([_whole(again[int(p)]) for p in picked])
        _keep(job, label, SelectedImages(images, torch.from_numpy(picked), tuple(gathered.bad)))


def _selected(job: CoresetTask, label: int, features: Tensor) -> list[int]:
    """The selected rows of the features, or the scores, of one class, in the order of selection."""
    name, count = job.config.method, min(job.config.ipc, len(features))
    if name in GREEDY:
        return GREEDY[name](features, count)
    if name in BY_SCORE:
        return BY_SCORE[name](features, count)
    asked = f"{count} of {len(features)} images of class {job.listing.classes[label]!r}"
    with plugins.called("selections", name, asked), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seeds.derive(job.seed, "selection", job.listing.classes[label]))
        found = torch.as_tensor(plugins.find("selections", name)(features, count))  # type: ignore[misc]
    whole = (
        found.ndim == 1
        and not found.is_floating_point()
        and not found.is_complex()
        and found.dtype != torch.bool
    )
    order = found.tolist() if whole else []
    if len(order) != count or len(set(order)) != count or not all(0 <= row < len(features) for row in order):
        raise PluginError(
            f"selection {name!r} of plugin {plugins.owner('selections', name)} returned "
            f"{str(found.dtype).removeprefix('torch.')} {list(found.shape)}, {found.flatten()[:10].tolist()}, for "
            f"{asked}; expected {count} different indices, whole numbers from 0 to {len(features) - 1}",
            code="plugin-selection-output",
        )
    return order


def read_chosen(job: CoresetTask, label: int) -> SelectedImages:
    """Read the file that :func:`choose` wrote for a class."""
    tensors = load(job.out.read(job.file(label)))
    bad = bytes(tensors["bad"].tolist()).decode()
    return SelectedImages(tensors["images"], tensors["positions"], tuple(bad.split("\n")) if bad else ())


def _keep(job: CoresetTask, label: int, chosen: SelectedImages) -> None:
    bad = torch.tensor(list("\n".join(chosen.bad).encode()), dtype=torch.uint8)
    tensors = {"images": chosen.images, "positions": chosen.positions, "bad": bad}
    job.out.write(job.file(label), save(tensors))


def kept(method: str, label: int) -> Callable[[Tensor], Tensor]:
    """What is kept of a batch's features ``[B, D]`` until the selection: all, or only the scores ``[B]`` of ``label``.

    So a selection by scores holds one number of each image, however many images and classes there are.
    """
    if method in BY_SCORE:
        return lambda logits: logits.log_softmax(1)[:, label].clone()  # a copy, which lets the others go
    return lambda features: features


def bytes_per_image(method: str, width: int) -> int:
    """Bytes of each image that a selection compares; ``width``: the number of features."""
    return 0 if method == "random" else 4 if method in BY_SCORE else 4 * width


class _Gathered:
    """Collects the features of one class of ``count`` images, or its scores, computed batch by batch.

    It holds at most ``BATCH`` images, and features as :class:`FeatureRows` does.
    """

    def __init__(self, features: Features, kept: Callable[[Tensor], Tensor], count: int) -> None:
        self._of, self._kept, self._left = features, kept, count
        self._waiting: list[Tensor] = []
        self.rows = FeatureRows()
        self.positions: list[int] = []
        self.bad: list[str] = []

    def add(self, position: int, image: Tensor | str, name: str) -> None:
        self._left -= 1
        if isinstance(image, str):
            self.bad.append(f"{name}: {image}")
        else:
            self.positions.append(position)
            self._waiting.append(image)
        if self._waiting and (len(self._waiting) == BATCH or not self._left):
            self.rows.add(self._kept(self._of(torch.stack(self._waiting))))
            self._waiting.clear()


def _gathered(job: CoresetTask, features: Features, labels: list[int]) -> dict[int, _Gathered]:
    # Batches are formed within a class, so that features do not depend on the grouping of classes.
    counts = job.listing.counts()
    found = {
        label: _Gathered(features, kept(job.config.method, label), int(counts[label])) for label in labels
    }
    for position, image in _read(job, np.flatnonzero(np.isin(job.listing.labels, labels))):
        name = job.listing.names[position].as_py()
        found[int(job.listing.labels[position])].add(position, image, name)
    return found


def _at_random(job: CoresetTask, label: int) -> SelectedImages:
    positions = np.flatnonzero(job.listing.labels == label)
    draws = seeds.generator(job.seed, "random", job.listing.classes[label])
    order = positions[torch.randperm(len(positions), generator=draws).numpy()]
    bad: list[str] = []
    chosen: dict[int, Tensor] = {}
    while len(order) and len(chosen) < job.config.ipc:
        part, order = np.split(order, [job.config.ipc - len(chosen)])
        read = dict(_read(job, np.sort(part)))
        for position in part.tolist():
            image = read[position]
            if isinstance(image, str):
                bad.append(f"{job.listing.names[position].as_py()}: {image}")
            else:
                chosen[position] = image
    _refuse_short(job, label, len(chosen))
    picked = np.array(list(chosen))[_filled(job, list(range(len(chosen))))]
    images = torch.stack([chosen[int(p)] for p in picked])
    return SelectedImages(images, torch.from_numpy(picked), tuple(bad))


def _refuse_short(job: CoresetTask, label: int, readable: int) -> None:
    needed = job.config.ipc if job.config.short_class == "error" else 1
    if readable < needed:
        picking.refuse_short([job.listing.classes[label]], [readable], job.config.ipc)


def _filled(job: CoresetTask, order: list[int]) -> list[int]:
    if job.config.short_class == "repeat":
        return [order[i % len(order)] for i in range(job.config.ipc)]
    return order


def _read(job: CoresetTask, positions: NDArray[np.int64]) -> Iterator[tuple[int, Tensor | str]]:
    """Yield each position with its image, uint8 ``[C, H, W]``, or the reason why it cannot be read."""
    for part in np.array_split(positions, max(1, -(-len(positions) // BATCH))):
        for position, blob in zip(part.tolist(), job.listing.read(part), strict=True):
            yield position, _image(blob, job.shape)


def _image(blob: Blob, shape: tuple[int, int, int]) -> Tensor | str:
    if isinstance(blob, Exception):
        return reason(blob)
    try:
        pixels = blob if isinstance(blob, np.ndarray) else _channels_first(read_image(blob, shape[1]))
        return opened(pixels, shape[0]).pixels(1)[0].contiguous()
    except Exception as error:  # parsers raise any exception for a broken file
        return reason(error)


def _channels_first(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _whole(image: Tensor | str) -> Tensor:
    assert not isinstance(image, str)  # the same file was readable before
    return image
