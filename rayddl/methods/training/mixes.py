"""The augmentation of soft-label training (RDED, section 3.3 and the published code).

The rows and the columns of each image's ``factor`` x ``factor`` grid of patches are permuted; a random
crop of ``1/factor`` to all of the area is resized to the network's input (bilinear, antialiased); half of
the images are flipped. Then CutMix: one box, the same for the whole batch, is replaced by that of other
images of the batch.

:func:`draw` makes an epoch's random choices on the CPU; :func:`shown` applies them to a batch on any
device. Permutation, crop, scaling and flip are linear in the rows and in the columns of an image. So they
are two small matrices per image, applied by one batched product.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor

ASPECT = (3 / 4, 4 / 3)
"""Range of a crop's width divided by its height, drawn log-uniformly."""
TRIES = 10
"""Crops drawn before the largest centred crop is used instead."""
FLIP_PROBABILITY = 0.5


@dataclass(frozen=True, eq=False)
class Draws:
    """The random choices of an epoch of N images, or of a batch, in training order."""

    picked: Tensor
    """int64 [N]: index of the image."""
    rows: Tensor
    """int64 [N, factor]: index of the row of patches at each position, from the top."""
    columns: Tensor
    """int64 [N, factor]: the same for columns, from the left."""
    boxes: Tensor
    """int64 [N, 4]: top, left, height, width of the crop, in the permuted image, in pixels."""
    flipped: Tensor
    """bool [N]: flipped horizontally."""
    partners: Tensor
    """int64 [N]: index in the batch of the image that CutMix copies the box from."""
    cuts: Tensor
    """int64 [steps, 4]: top, left, bottom, right of CutMix's box; an empty box without CutMix."""

    def batches(self, size: int) -> Iterator[Draws]:
        """The choices of each batch of the epoch."""
        for step, start in enumerate(range(0, len(self.picked), size)):
            part = {f.name: getattr(self, f.name)[start : start + size] for f in fields(self)}
            yield Draws(**{**part, "cuts": self.cuts[step : step + 1]})

    def of(self, rows: slice) -> Draws:
        """The choices for the images in ``rows`` of a batch, and after them for those that CutMix copies from.

        The first of the images that these show are those which the whole batch shows in ``rows``.
        """
        mine = torch.arange(len(self.picked))[rows]
        if len(mine) == len(self.picked):
            return self
        top, left, bottom, right = self.cuts[0].tolist()
        partners = self.partners[rows] if bottom > top and right > left else mine[:0]
        both = torch.cat([mine, partners])
        part = {f.name: getattr(self, f.name)[both] for f in fields(self) if f.name != "cuts"}
        places = torch.arange(len(both)).roll(-len(partners))
        return Draws(**{**part, "partners": places, "cuts": self.cuts})

    def to(self, device: torch.device) -> Draws:
        """The same choices on ``device``."""
        return Draws(**{f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)})


def draw(
    count: int,
    sides: tuple[int, int],
    into: tuple[int, int],
    *,
    batch: int,
    factor: int,
    cutmix: bool,
    generator: torch.Generator,
    least: float | None = None,
    within_patch: bool = False,
) -> Draws:
    """Draw an epoch of ``count`` images of height and width ``sides``, resized to ``into``, in batches of ``batch``.

    ``least``: smallest share of the area in a crop; default: ``1/factor``. ``within_patch``: it is the share of a
    patch, and each crop is taken from one patch.
    """
    picked = torch.randperm(count, generator=generator)
    rows, columns = (torch.rand(count, factor, generator=generator).argsort(1) for _ in range(2))
    smallest = 1 / factor if least is None else least
    if within_patch:
        boxes = _boxes_in_patches(rows, columns, sides, smallest, generator)
    else:
        boxes = _boxes(count, sides, smallest, generator)
    flipped = torch.rand(count, generator=generator) < FLIP_PROBABILITY
    partners, cuts = [], []
    for start in range(0, count, batch):
        partners.append(torch.randperm(min(batch, count - start), generator=generator))
        cuts.append(_cut(into, generator) if cutmix else torch.zeros(4, dtype=torch.int64))
    return Draws(picked, rows, columns, boxes, flipped, torch.cat(partners), torch.stack(cuts))


def unmixed(
    count: int, sides: tuple[int, int], *, batch: int, factor: int, generator: torch.Generator
) -> Draws:
    """An epoch of ``count`` images of height and width ``sides`` in random order, without augmentation."""
    picked = torch.randperm(count, generator=generator)
    strips = torch.arange(factor).expand(count, -1)
    boxes = torch.tensor([0, 0, *sides]).expand(count, -1)
    never, place = torch.zeros(count, dtype=torch.bool), torch.arange(count) % batch
    return Draws(
        picked, strips, strips, boxes, never, place, torch.zeros(-(-count // batch), 4, dtype=torch.int64)
    )


def shown(images: Tensor, draws: Draws, into: tuple[int, int]) -> Tensor:
    """Float ``images`` ``[B, C, H, W]``, augmented according to ``draws``, as ``[B, C, *into]``.

    ``images`` are those of ``draws.picked``, on the same device as ``draws``.
    """
    top, left, height, width = draws.boxes.unbind(1)
    from_rows = _weights(_places(draws.rows, images.shape[2]), top, height, into[0])
    from_columns = _weights(_places(draws.columns, images.shape[3]), left, width, into[1])
    from_columns = torch.where(draws.flipped[:, None, None], from_columns.flip(1), from_columns)
    cropped = from_rows[:, None] @ images @ from_columns[:, None].transpose(2, 3)
    return _mixed(cropped, draws.partners, draws.cuts[0])


def _boxes(count: int, sides: tuple[int, int], least: float, generator: torch.Generator) -> Tensor:
    """Boxes of RandomResizedCrop, with the share of the area uniform in ``least`` ... 1: int64 ``[count, 4]``."""
    height, width = sides
    share = torch.empty(count, TRIES, dtype=torch.float64).uniform_(least, 1.0, generator=generator)
    aspect = torch.empty(count, TRIES, dtype=torch.float64).uniform_(
        math.log(ASPECT[0]), math.log(ASPECT[1]), generator=generator
    )
    place = torch.rand(count, 2, dtype=torch.float64, generator=generator)
    area, ratio = share * (height * width), aspect.exp()
    w, h = (area * ratio).sqrt().round().long(), (area / ratio).sqrt().round().long()
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = fits.long().argmax(1, keepdim=True)
    w, h = w.gather(1, first).squeeze(1), h.gather(1, first).squeeze(1)
    top = (place[:, 0] * (height - h + 1)).floor().long()
    left = (place[:, 1] * (width - w + 1)).floor().long()
    none, middle = ~fits.any(1), torch.tensor(_middle(height, width))
    return torch.where(none[:, None], middle, torch.stack([top, left, h, w], 1))


def _boxes_in_patches(
    rows: Tensor, columns: Tensor, sides: tuple[int, int], least: float, generator: torch.Generator
) -> Tensor:
    """Boxes as :func:`_boxes` draws them in a patch, each in a random patch of the permuted image: int64 ``[N, 4]``."""
    count, factor = rows.shape
    boxes = _boxes(count, (sides[0] // factor, sides[1] // factor), least, generator)
    for axis, (strips, side) in enumerate(zip((rows, columns), sides, strict=True)):
        place = torch.randint(factor, (count, 1), generator=generator)
        ordered = _thickness(factor, side, strips.device)[strips]
        boxes[:, axis] += (ordered.cumsum(1) - ordered).gather(1, place).squeeze(1)
    return boxes


def _middle(height: int, width: int) -> tuple[int, int, int, int]:
    """The largest centred box with an aspect ratio in :data:`ASPECT`."""
    h = min(height, round(width / ASPECT[0]))
    w = min(width, round(height * ASPECT[1]))
    return (height - h) // 2, (width - w) // 2, h, w


def _cut(sides: tuple[int, int], generator: torch.Generator) -> Tensor:
    """CutMix's box: its share of the area is uniform (Beta distribution with alpha 1), clipped at the edges."""
    share = float(torch.rand((), dtype=torch.float64, generator=generator))
    ends = []
    for side in sides:
        half = int(side * math.sqrt(share)) // 2
        centre = int(torch.randint(side, (), generator=generator))
        ends.append((max(centre - half, 0), min(centre + half, side)))
    (top, bottom), (left, right) = ends
    return torch.tensor([top, left, bottom, right])


def _places(strips: Tensor, side: int) -> Tensor:
    """The position of each of ``side`` rows, ``[B, side]``, after the permutation of ``strips``.

    The last strip includes the remainder.
    """
    count, factor = strips.shape
    thick = side // factor
    ordered = _thickness(factor, side, strips.device)[strips]
    starts = torch.zeros_like(strips).scatter_(1, strips, ordered.cumsum(1) - ordered)
    row = torch.arange(side, device=strips.device)
    strip = (row // max(thick, 1)).clamp(max=factor - 1)
    return starts[:, strip] + (row - strip * thick).expand(count, -1)


def _thickness(factor: int, side: int, device: torch.device) -> Tensor:
    """The thickness of each of ``factor`` strips, int64 ``[factor]``; the last one includes the remainder."""
    sizes = torch.full((factor,), side // factor, device=device)
    sizes[-1] = side - side // factor * (factor - 1)
    return sizes


def _weights(places: Tensor, start: Tensor, length: Tensor, into: int) -> Tensor:
    """The weight of each row at ``places`` ``[B, H]`` in each of ``into`` output rows: float32 ``[B, into, H]``.

    Antialiased bilinear scaling of ``length`` rows from ``start`` on, as in torch.
    """
    scale = length.float()[:, None] / into
    centre = (torch.arange(into, device=places.device) + 0.5) * scale
    inside = places - start[:, None]
    reach = scale.clamp(min=1.0)[:, :, None]
    far = (inside[:, None, :] + 0.5 - centre[:, :, None]).abs() / reach
    within = ((inside >= 0) & (inside < length[:, None]))[:, None, :]
    weights = torch.where(within, (1 - far).clamp(min=0), 0.0)
    return weights / weights.sum(2, keepdim=True)


def _mixed(images: Tensor, partners: Tensor, cut: Tensor) -> Tensor:
    row = torch.arange(images.shape[2], device=images.device)
    column = torch.arange(images.shape[3], device=images.device)
    rows, columns = (row >= cut[0]) & (row < cut[2]), (column >= cut[1]) & (column < cut[3])
    return torch.where(rows[:, None] & columns[None, :], images[partners], images)
