"""What students are trained and tested on, and how their worker reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from rayddl.data import unnamed
from rayddl.data.pixels.encoded import Encoded
from rayddl.errors import StageError
from rayddl.methods.training.hard import Protocol
from rayddl.methods.training.input_spec import BATCH, InputSpec
from rayddl.methods.training.soft import OwnLabels, SoftProtocol
from rayddl.methods.trajectories.expert import Images
from rayddl.nets.config import NetConfig
from rayddl.stages.runtime import model_space
from rayddl.stages.runtime.listings import Draw
from rayddl.stages.runtime.mapped import mapped
from rayddl.stages.runtime.progress import ProgressCounter
from rayddl.stages.runtime.shards import Batches, Shards
from rayddl.stages.runtime.sources import SharedSource, held_out, train_images, train_labels
from rayddl.storage import Folder


@dataclass(frozen=True)
class TrainingData:
    """Training data of students: images and labels, or int64 indices ``picked`` into the train split."""

    name: str
    """The name in results: ``distilled``, ``random``, ``whole``."""
    images: torch.Tensor | Shards | Draw | None
    """``[N, C, H, W]``: float32 in model space; uint8 for soft labels, and of a draw."""
    labels: torch.Tensor | None
    picked: torch.Tensor | None
    protocol: Protocol | SoftProtocol
    stored: Folder | None = None
    """The folder of stored soft labels of ``images``, in place of the observer."""
    drawn: bool = False
    """True if each seed has its own random images."""

    @property
    def count(self) -> int | None:
        """The number of images; ``None`` for the whole train split."""
        if isinstance(self.images, Draw):
            return sum(self.images.counts)
        if isinstance(self.images, Shards):
            return sum(self.images.counts)
        shown = self.picked if self.picked is not None else self.images
        return None if shown is None else len(shown)


@dataclass(frozen=True)
class Student:
    """One student: the name of its training data, its network, its seed, and its result file."""

    data: str
    net: NetConfig
    seed: int
    file: str
    lr: float | None = None
    """Learning rate in place of the training data's protocol's."""
    trial: bool = False
    """Tested on the validation part of the train split that compares learning rates, and not trained on it."""


@dataclass(frozen=True)
class Shared:
    """Arguments that all students share."""

    source: SharedSource
    space: Any
    """Reference to the pixel space in the object store."""
    out: Folder
    seed: int
    precision: str
    compile: bool
    threads: int
    input_spec: InputSpec | None = None
    """The input specification of students of soft labels."""
    observer: Any = None
    """Reference to their observer in the object store."""
    trials_on: torch.Tensor | None = None
    """int64 indices into the train split, on which :attr:`Student.trial` students are tested."""
    best: bool = False
    """Test after late epochs, too, and store the best accuracy."""
    counter: ProgressCounter | None = None
    """Receives progress reports of long trainings."""


def in_model_space(
    shared: Shared, data: TrainingData, without: torch.Tensor | None, device: torch.device
) -> Images:
    """The training images in model space; for the whole train split all but the indices ``without``."""
    import ray

    if isinstance(data.images, Draw):
        pixels, labels = data.images.read()
        return Images(ray.get(shared.space).encode(pixels).to(device), labels.to(device))
    if data.images is not None and data.labels is not None:
        return Images(whole(data.images).to(device), data.labels.to(device))
    train = model_space.train(shared.source, shared.space, device)
    if data.picked is not None:
        picked = data.picked.to(device)
        return Images(train.x[picked], train.y[picked])
    if without is None:
        return train
    kept = torch.ones(len(train.y), dtype=torch.bool)
    kept[without] = False
    return only(train, kept.nonzero().flatten().to(device))


def only(train: Images, places: torch.Tensor) -> Images:
    """The images at ``places``, int64 ``[n]``."""
    x = train.x.only(places) if isinstance(train.x, Encoded) else train.x[places]
    return Images(x, train.y[places])


def trials_on(shared: Shared, data: TrainingData) -> torch.Tensor:
    """int64 indices that a trial is tested on: the validation part without images in the training data.

    Raises :class:`StageError` if the training data has all of them.
    """
    assert shared.trials_on is not None
    if data.picked is None:
        return shared.trials_on
    left = shared.trials_on[~torch.isin(shared.trials_on, data.picked)]
    if not len(left):
        raise StageError(
            f"lr_grid compares learning rates on {len(shared.trials_on)} training images, and the {len(data.picked)} "
            f"of {data.name} have all of them. Lower ipc, set lr in place of lr_grid, or leave random images out "
            "(random: false).",
            code="lr-grid-without-images",
        )
    return left


def as_pixels(
    shared: Shared, data: TrainingData, trial: bool
) -> tuple[torch.Tensor, OwnLabels | None, torch.Tensor | Batches, torch.Tensor]:
    """The training images as networks take them, and their labels; the images that the student is tested on, and
    theirs. A trial is tested on a part of the train split, which its training data lacks.
    """
    assert shared.input_spec is not None
    source, own = shared.source, data.labels
    images: torch.Tensor | None
    if isinstance(data.images, Draw):
        images, own = data.images.read()
    else:
        images = None if data.images is None else whole(data.images)
    test: torch.Tensor | Batches
    test, labels = held_out(source)
    if trial:
        places = trials_on(shared, data)
        test, labels = _some(train_images(source), places), train_labels(source)[places]
    if images is None:
        images, own, kept = train_images(source), train_labels(source).long(), data.picked
        if kept is None and trial:
            left = torch.ones(len(images), dtype=torch.bool)
            left[places] = False
            kept = left.nonzero().flatten()
        if kept is not None:
            images, own = _some(images, kept), own[kept]
    named = None if own is None else OwnLabels(own, len(source.classes))
    return shared.input_spec.fitted(images), named, test, labels


def whole(images: torch.Tensor | Shards) -> torch.Tensor:
    """The images uint8 ``[N, C, H, W]``; those of the object store in a file, which the processes of a node share."""
    if isinstance(images, torch.Tensor):
        return images
    _, channels, height, width = images.read(0).shape
    return mapped(images, (channels, height, width))


def _some(images: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """A copy of the images at ``places``; a large one is in a file."""
    parts = (images[part] for part in places.split(BATCH))
    return unnamed.stacked(parts, (len(places), *images.shape[1:]), images.dtype)
