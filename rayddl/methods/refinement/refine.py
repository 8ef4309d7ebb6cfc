"""Refinement of images by the features of their views (CIM, Shang et al. 2026).

A stitched image of factor² tiles has as many *views*: its tiles, each resized to a whole image. Every view has an
*anchor*, a real image. The change of an image is learned by AdamW, such that observers see its views as they see their
anchors: the loss is the distance between the features of the two, augmented in the same way, averaged over observers
and added over views.

Differences from the published code: views and their anchors are augmented by draws of their own, not by one for all
images of a class; pixels stay in 0..1. So an image depends on no other one. And anchors are a set of their own: there,
an anchor is the image that its tile is made of.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from rayddl.data.pixels import augment
from rayddl.data.pixels.augment import Draw
from rayddl.methods.patches.stitch import tiles
from rayddl.methods.refinement.settings import RefineSettings


@dataclass(frozen=True, eq=False)
class FeatureExtractor:
    """What an observer sees in images."""

    scaled: Callable[[Tensor], Tensor]
    """Maps pixels in 0..1, ``[B, C, H, W]``, to the network's input."""
    features: Callable[[Tensor], Tensor]
    """Maps the network's input to features ``[B, D]``."""


def views(images: Tensor, factor: int) -> Tensor:
    """The views of ``images`` ``[n, C, H, W]``: ``[n * factor², C, H, W]``, those of an image next to each other.

    Tiles are those of :func:`~rayddl.methods.patches.stitch.stitched`, row by row; resizing is bilinear.
    """
    if factor == 1:
        return images
    count, _, height, width = images.shape
    shown = [
        F.interpolate(
            images[:, :, top : top + rows, left : left + columns],
            (height, width),
            mode="bilinear",
            align_corners=False,
        )
        for top, rows in tiles(height, factor)
        for left, columns in tiles(width, factor)
    ]
    return torch.stack(shown, 1).reshape(count * factor**2, *images.shape[1:])


def gaps(seen: Tensor, wanted: Tensor, distance: str) -> Tensor:
    """The distance of each row of ``seen`` ``[N, D]`` from the same row of ``wanted``: ``[N]``."""
    apart = seen - wanted
    return (apart.abs() if distance == "l1" else apart.square()).mean(1)


def paired(apart: Tensor) -> Tensor:
    """The anchor of every view, int64 ``[N]``, from their distances ``[N, M]``.

    The sum of the distances is the smallest possible, where each anchor has at most ⌈N / M⌉ views.
    """
    from scipy.optimize import linear_sum_assignment

    views_, anchors = apart.shape
    rounds = -(-views_ // anchors)
    _, columns = linear_sum_assignment(apart.double().repeat(1, rounds).numpy())
    return torch.from_numpy(columns).long() % anchors


def apart(seen: Sequence[Tensor], wanted: Sequence[Tensor], distance: str) -> Tensor:
    """The distances between all views and all anchors, averaged over observers: float32 ``[N, M]``.

    Each element of ``seen`` and ``wanted`` are the features of one observer, ``[N, D]`` and ``[M, D]``.
    """
    parts = [
        torch.stack([gaps(row.expand_as(theirs), theirs, distance) for row in mine])
        for mine, theirs in zip(seen, wanted, strict=True)
    ]
    return torch.stack(parts).mean(0)


@dataclass(frozen=True, eq=False)
class RefineDraws:
    """The random choices of a refinement: for each augmentation, the parameters of every view at every step."""

    each: tuple[Draw, ...]
    """The parameters of an image's views and steps are next to each other: ``[n * steps * views]``."""
    steps: int
    views: int

    def at(self, step: int) -> list[Draw]:
        """The choices of ``step``, counted from 0, in the order of :func:`views`."""
        return [
            Draw(
                drawn.name,
                tuple(p.view(-1, self.steps, self.views)[:, step].flatten() for p in drawn.params),
            )
            for drawn in self.each
        ]


def draw(
    settings: RefineSettings, shape: tuple[int, int, int], factor: int, generators: Sequence[Generator]
) -> RefineDraws:
    """The random choices for images of ``shape``; each has its own generator, and so depends on no other image."""
    count = settings.steps * factor**2
    found = []
    for name in settings.augmentations:
        drawn = [augment.draw((name,), (count, *shape), generator) for generator in generators]
        params = zip(*(one.params for one in drawn if one is not None), strict=True)
        found.append(Draw(name, tuple(torch.cat(list(each)) for each in params)))
    return RefineDraws(tuple(found), settings.steps, factor**2)


@dataclass(frozen=True, eq=False)
class Refined:
    """Refined images, and how far their views are from their anchors without augmentation."""

    images: Tensor
    """float ``[n, C, H, W]``, pixels in 0..1."""
    before: Tensor
    """``[n * factor²]``: the distance of each view at the start, averaged over observers."""
    after: Tensor
    """The same of the refined images."""


def refined(
    start: Tensor,
    anchors: Tensor,
    eyes: Sequence[FeatureExtractor],
    settings: RefineSettings,
    factor: int,
    draws: RefineDraws,
) -> Refined:
    """Refine the images ``start`` ``[n, C, H, W]``, pixels in 0..1 on the observers' device.

    ``anchors`` ``[n * factor², C, H, W]`` are the views' anchors, in the order of :func:`views`.
    """
    change = torch.zeros_like(start).requires_grad_()
    optimiser = torch.optim.AdamW([change], lr=settings.lr, weight_decay=settings.weight_decay)

    def distances(chosen: Sequence[Draw]) -> Tensor:
        seen = views(start + change, factor)
        return torch.stack([_gaps_of(extractor, seen, anchors, settings, chosen) for extractor in eyes]).mean(
            0
        )

    with torch.no_grad():
        before = distances(())
    for step in range(settings.steps):
        optimiser.zero_grad(set_to_none=True)
        distances(draws.at(step)).sum().backward()
        optimiser.step()
        with torch.no_grad():
            change.copy_((start + change).clamp_(0, 1) - start)
    with torch.no_grad():
        return Refined((start + change).clamp_(0, 1), before, distances(()))


def _gaps_of(
    extractor: FeatureExtractor,
    seen: Tensor,
    anchors: Tensor,
    settings: RefineSettings,
    chosen: Sequence[Draw],
) -> Tensor:
    with torch.no_grad():
        wanted = extractor.features(_augmented(extractor.scaled(anchors), chosen))
    return gaps(extractor.features(_augmented(extractor.scaled(seen), chosen)), wanted, settings.distance)


def _augmented(x: Tensor, chosen: Sequence[Draw]) -> Tensor:
    for drawn in chosen:
        x = augment.apply(x, drawn)
    return x
