"""Splits in model space on a worker's device, encoded when they are used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from rayddl.data.pixels.encoded import Encoded, Streamed, in_model_space
from rayddl.data.pixels.space import PORTION, PixelSpace
from rayddl.methods.training.input_spec import BATCH
from rayddl.methods.trajectories.expert import HeldOut, Images
from rayddl.stages.runtime.mapped import mapped
from rayddl.stages.runtime.shards import Batches
from rayddl.stages.runtime.sources import (
    SharedSource,
    held_out,
    on_device,
    train_images,
    train_in_memory,
    train_labels,
    train_parts,
)

_Split = TypeVar("_Split", Images, HeldOut)
_made: dict[tuple[str, str, str, str], Any] = {}
"""The splits that this process used last; the key is the source, the pixel space, which may be that of a set, device
and split. Ray gives a process work of several stages, one after the other."""


def train(source: SharedSource, fitted: Any, device: torch.device) -> Images:
    """The train images in model space, to be read in any order; labels on ``device``.

    ``fitted`` is a reference to the :class:`PixelSpace`. A process holds the bytes of a small split, on a GPU if they
    fit; a large one is in a file. Whitened images are float32, whitened once.
    """
    space = _space(fitted, device)

    def make() -> Images:
        labels = train_labels(source).to(device)
        if space.elementwise or train_in_memory(source):
            return Images(_held(space, train_images(source), device), labels)
        return Images(Encoded(mapped(train_parts(source), source.shape, space), None, device), labels)

    return _once(source, space, device, "train", make)


def some_of_train(source: SharedSource, fitted: Any, picked: Tensor, device: torch.device) -> Tensor:
    """The train images at ``picked``, int64 ``[n]``, in model space: float32 ``[n, C, H, W]`` on ``device``."""
    space = _space(fitted, device)
    if not space.elementwise or train_in_memory(source):
        return train(source, fitted, device).x[picked.to(device)]
    # They are few: no file is written for them.
    rising, order = picked.sort()
    images = torch.cat(list(Batches(train_parts(source), rising)))
    return in_model_space(space, images[order.argsort()], device)


def test(source: SharedSource, fitted: Any, device: torch.device) -> HeldOut:
    """The held-out images in model space, to be read from first to last; of a large split, a shard at a time."""
    space = _space(fitted, device)

    def make() -> HeldOut:
        batches, labels = held_out(source)
        if len(batches.shards.counts) == 1:
            return HeldOut(_held(space, batches.shards.read(0), device), labels.to(device))
        portions = replace(batches, size=BATCH if space.elementwise else PORTION)
        return HeldOut(Streamed(portions, space, device), labels.to(device))

    return _once(source, space, device, "test", make)


def _space(fitted: Any, device: torch.device) -> PixelSpace:
    import ray

    space: PixelSpace = ray.get(fitted)
    return space.on(device) if space.elementwise else space


def _held(space: PixelSpace, images: Tensor, device: torch.device) -> Tensor | Encoded:
    if space.elementwise:
        return Encoded(on_device(images, device), space, device)
    return in_model_space(space, images, device)


def _once(
    source: SharedSource, space: PixelSpace, device: torch.device, split: str, make: Callable[[], _Split]
) -> _Split:
    key = (source.space_id, space.fingerprint, str(device), split)
    if key not in _made:
        for other in [other for other in _made if other[:3] != key[:3]]:
            del _made[other]
        _made[key] = make()
    found: _Split = _made[key]
    return found
