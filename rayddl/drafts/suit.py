"""Settings that suit a set of images: the size, the method and its learning rates, by numbers and resolution.

The published settings are for 50,000 images, whose epochs have 200 steps. What counts is the number of steps, so for
few images batches are smaller, epochs more, and windows longer in epochs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from rayddl.data.config import DSA
from rayddl.drafts.look import Look
from rayddl.errors import UserError

Method = Literal["match", "rded"]

STEPS_AN_EPOCH = 16
"""Least number of steps in an epoch of experts and teachers that a batch leaves."""
EXPERT_STEPS = 600
"""Steps of an expert's whole training."""
TEACHER_STEPS = 1500
WINDOW_STEPS = 70
"""Steps of an expert between the start and the target of a window."""
START_STEPS = 150
"""Latest step of an expert at which a window starts."""
MATCHED_ON_CPU = 5_000
"""Training images up to which trajectories are matched by default without a GPU."""
LARGEST_MATCHED = 64
"""Side in pixels up to which trajectories are matched by default."""


@dataclass(frozen=True)
class Suited:
    """The chosen settings; reasons are the comments in the file."""

    method: Method
    why_method: str
    ipc: int
    why_ipc: str
    size: int
    """Side in pixels at which the stages work."""
    resize: bool
    """True if ``source.size`` has to be set."""
    net: dict[str, Any]
    batch: int
    steps: int
    """Steps in an epoch."""
    epochs: int
    factor: int
    """RDED: patches along one side of an image."""
    augment: str
    window: int
    """Expert epochs of a window."""
    starts: int
    """The latest start epoch of a window."""


def suit(look: Look, *, gpu: bool, ipc: int | None, size: int | None, method: Method | None) -> Suited:
    """The settings for these images on a machine with or without a GPU; ``ipc``, ``size`` and ``method`` override the
    choice.

    Raises :class:`UserError` for an ``ipc`` above the training images of the smallest class.
    """
    side, resize = _size(look, size, gpu, method)
    chosen, why = (method, "as asked for") if method else _method(look, side, gpu)
    rded = chosen == "rded"
    factor = 2 if rded and side > LARGEST_MATCHED else 1
    fewest = min(look.train)
    most = fewest // factor**2
    wanted = ipc or min(10 if fewest >= 100 else 1, most)
    if not 1 <= wanted <= most:
        patches = f", of which {factor**2} make one" if factor > 1 else ""
        raise UserError(
            f"{wanted or 1} images per class are more than the {fewest} training images of the smallest class allow"
            f"{patches}; give at most --ipc {most}"
            if most
            else f"the smallest class has {fewest} training images"
            f"{patches}; add images, or give --method match",
            code="ipc-above-class",
        )
    batch = _batch(look.images, most=128 if rded else 256)
    steps = -(-look.images // batch)
    whole = TEACHER_STEPS if rded else EXPERT_STEPS
    epochs = min(300, max(20, -(-whole // steps)))
    window = max(2, round(WINDOW_STEPS / steps))
    starts = max(2, round(START_STEPS / steps))
    return Suited(
        method=chosen,
        why_method=why,
        ipc=wanted,
        why_ipc="as asked for" if ipc else f"the smallest class has {fewest:,} training images",
        size=side,
        resize=resize,
        net=_net(side, rded=rded, gpu=gpu),
        batch=batch,
        steps=steps,
        epochs=max(epochs, window + starts),
        factor=factor,
        augment="none" if look.grey else ("crop_flip" if rded else DSA),
        window=window,
        starts=starts,
    )


def _size(look: Look, size: int | None, gpu: bool, method: Method | None) -> tuple[int, bool]:
    """The side in pixels, and whether images have to be resized to it."""
    square = look.one_size and look.sides[0][0] == look.sides[0][1]
    if size is not None:
        return size, not (square and look.side == size)
    if square and look.side <= LARGEST_MATCHED:
        return look.side, False
    if look.source["name"] in ("cifar10", "cifar100", "digits"):
        return look.side, False
    if method == "rded" or look.images >= 50_000:
        able: tuple[int, ...] = (32, 64, 128, 224)
    else:
        able = (32, 64) if gpu else (32,)
    return max([side for side in able if side <= look.side], default=able[0]), True


def _method(look: Look, side: int, gpu: bool) -> tuple[Method, str]:
    if side > LARGEST_MATCHED:
        return "rded", f"crops of real images: matching trajectories is for up to {LARGEST_MATCHED} pixels"
    if len(look.classes) > 200:
        return (
            "rded",
            f"crops of real images: matching trajectories of {len(look.classes):,} classes takes days",
        )
    if not gpu and look.images > MATCHED_ON_CPU:
        return (
            "rded",
            "crops of real images, in minutes; `--method match` matches trajectories, hours without a GPU",
        )
    return "match", f"matching trajectories (MCT): the best sets at up to {LARGEST_MATCHED} pixels"


def _batch(images: int, most: int) -> int:
    """The largest power of two that leaves ``STEPS_AN_EPOCH`` steps, between 8 and ``most``."""
    batch = 8
    while batch * 2 <= most and images / (batch * 2) >= STEPS_AN_EPOCH - 1:
        batch *= 2
    return batch


def _net(side: int, *, rded: bool, gpu: bool) -> dict[str, Any]:
    """A ConvNet whose last block sees about 4 pixels a side, as in the literature; ResNet-18 for large images."""
    if side > 128:
        return {"name": "resnet18", "norm": "batch"}
    depth = max(1, min(7, (side // 4).bit_length() - 1 if side >= 8 else 1))
    if side <= 16:
        depth = min(2, side.bit_length() - 1)
    width = 128 if gpu else 64 if rded else 32
    return {"name": "convnet", "depth": depth, "width": width, **({"norm": "batch"} if rded else {})}
