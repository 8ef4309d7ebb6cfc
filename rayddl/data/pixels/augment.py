"""Differentiable siamese augmentation (DSA; Zhao & Bilen 2021), one strategy per call.

The parameters are those of the trajectory-matching papers, for training and evaluation: flip half of
the images; crop by a shift of up to an eighth of a side; cut out a square of half the side; change
brightness, saturation and contrast; scale each axis by up to 1.2; rotate by up to 15 degrees.

:func:`draw` makes every random choice on the CPU with the generator passed to it, so a
:class:`Draw` can be stored and applied again on any device. :func:`apply` uses plain tensor
operations only: it has forward- and reverse-mode derivatives of any order. ``grid_sample`` is not
used because its backward has no forward-mode derivative.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

FLIP_PROBABILITY = 0.5
CROP_SHARE = 0.125
CUTOUT_SHARE = 0.5
BRIGHTNESS = 1.0
SATURATION = 2.0
CONTRAST = 0.5
SCALE = 1.2
ROTATE_DEGREES = 15.0


@dataclass(frozen=True, eq=False)
class Draw:
    """The random choices of one call: the strategy's name and its parameters for each image."""

    name: str
    params: tuple[Tensor, ...]
    """CPU tensors [N]; their meaning depends on the strategy."""

    def of(self, rows: slice) -> Draw:
        """The choices for the images in ``rows``."""
        return Draw(self.name, tuple(numbers[rows] for numbers in self.params))


def draw(names: tuple[str, ...], shape: tuple[int, ...], generator: Generator) -> Draw | None:
    """Draw one of ``names`` uniformly, and its parameters for a batch of ``shape`` [N, C, H, W].

    Returns ``None`` if ``names`` is empty; :func:`apply` then returns images unchanged. Raises
    ``ValueError`` for a name that is not a strategy.
    """
    unknown = [name for name in names if name not in _STRATEGIES]
    if unknown:
        raise ValueError(f"unknown augmentation {unknown[0]!r}; known: {', '.join(_STRATEGIES)}")
    if not names:
        return None
    chosen = int(torch.randint(len(names), (1,), generator=generator))
    name = names[chosen]
    count, _, height, width = shape
    return Draw(name, _STRATEGIES[name].draw(count, height, width, generator))


def joined(draws: Sequence[Draw | None]) -> Draw | None:
    """One draw for the images of several batches, one after the other; all of the same strategy, or all ``None``."""
    some = [drawn for drawn in draws if drawn is not None]
    if len(draws) == 1 or not some:
        return draws[0]
    columns = zip(*(drawn.params for drawn in some), strict=True)
    return Draw(some[0].name, tuple(torch.cat(numbers) for numbers in columns))


def apply(x: Tensor, drawn: Draw | None) -> Tensor:
    """Images [N, C, H, W] of any floating type, augmented according to ``drawn``.

    The result has the type, device and memory format of ``x`` and is affine in ``x``. Pixels moved in
    or cut out are zero, which is the mean colour of a normalised image. Half-precision images are
    augmented in float32 and rounded once.
    """
    if drawn is None:
        return x
    if any(len(numbers) != len(x) for numbers in drawn.params):
        raise ValueError(f"drawn for {len(drawn.params[0])} images, applied to {len(x)}")
    numbers = tuple(p.to(x.device, non_blocking=True) for p in drawn.params)
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    result = _STRATEGIES[drawn.name].apply(wide, *numbers).to(x.dtype)
    if x.shape[1] > 1 and x.stride(1) == 1:
        result = result.contiguous(memory_format=torch.channels_last)
    return result


def _uniform(low: float, high: float, count: int, generator: Generator) -> Tensor:
    return low + (high - low) * torch.rand(count, generator=generator)


def _integers(low: int, high: int, count: int, generator: Generator) -> Tensor:
    """Uniform integers from ``low`` to ``high``, both included."""
    return torch.randint(low, high + 1, (count,), generator=generator)


def _rounded(share: float, side: int) -> int:
    # Halves are rounded up, as in the published code; round() rounds them to the even neighbour.
    return int(share * side + 0.5)


def _draw_flip(count: int, height: int, width: int, generator: Generator) -> tuple[Tensor, ...]:
    del height, width
    return (torch.rand(count, generator=generator) < FLIP_PROBABILITY,)


def _flip(x: Tensor, flipped: Tensor) -> Tensor:
    return torch.where(flipped.view(-1, 1, 1, 1), x.flip(3), x)


def _draw_crop(count: int, height: int, width: int, generator: Generator) -> tuple[Tensor, ...]:
    rows, columns = _rounded(CROP_SHARE, height), _rounded(CROP_SHARE, width)
    return _integers(-rows, rows, count, generator), _integers(-columns, columns, count, generator)


def _crop(x: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Pixel (i, j) of the result is pixel (i + down, j + right) of ``x``, zero outside."""
    height, width = x.shape[2:]
    # A border as wide as the largest shift makes shapes independent of the drawn values.
    ring_h, ring_w = _rounded(CROP_SHARE, height), _rounded(CROP_SHARE, width)
    rows = torch.arange(ring_h, ring_h + height, device=x.device) + down[:, None]
    columns = torch.arange(ring_w, ring_w + width, device=x.device) + right[:, None]
    index = rows[:, :, None] * (width + 2 * ring_w) + columns[:, None, :]
    padded = F.pad(x, (ring_w, ring_w, ring_h, ring_h)).flatten(2)
    return _take(padded, index.flatten(1)).view_as(x)


def _take(pixels: Tensor, index: Tensor) -> Tensor:
    """Pixels [N, C, P] at ``index`` [N, Q], the same for all channels: [N, C, Q]."""
    return pixels.gather(2, index.unsqueeze(1).expand(-1, pixels.shape[1], -1))


def _draw_cutout(count: int, height: int, width: int, generator: Generator) -> tuple[Tensor, ...]:
    def centres(side: int) -> Tensor:
        # The centre of an even square is between pixels, so it has one more possible position.
        return _integers(0, side - _rounded(CUTOUT_SHARE, side) % 2, count, generator)

    return centres(height), centres(width)


def _cutout(x: Tensor, row: Tensor, column: Tensor) -> Tensor:
    def inside(side: int, centre: Tensor) -> Tensor:
        size = _rounded(CUTOUT_SHARE, side)
        offset = torch.arange(side, device=x.device) - (centre - size // 2)[:, None]
        return (offset >= 0) & (offset < size)

    rows, columns = inside(x.shape[2], row), inside(x.shape[3], column)
    return x.masked_fill(rows[:, None, :, None] & columns[:, None, None, :], 0.0)


def _draw_color(count: int, height: int, width: int, generator: Generator) -> tuple[Tensor, ...]:
    del height, width
    return (
        _uniform(-BRIGHTNESS / 2, BRIGHTNESS / 2, count, generator),
        _uniform(0.0, SATURATION, count, generator),
        _uniform(CONTRAST, 1.0 + CONTRAST, count, generator),
    )


def _color(x: Tensor, brightness: Tensor, saturation: Tensor, contrast: Tensor) -> Tensor:
    """Brightness, then saturation about the pixel's mean, then contrast about the image's.

    The three are one affine map, because only the brightness changes the means that the later
    steps use: c·s·x + c·(1-s)·pixel mean + (1-c)·image mean + b.
    """
    b, s, c = (p.to(x.dtype).view(-1, 1, 1, 1) for p in (brightness, saturation, contrast))
    pixel_mean = x.mean(1, keepdim=True)
    image_mean = pixel_mean.mean((2, 3), keepdim=True)
    # One pass over the images: on the CPU a second temporary tensor takes ten times as long as the sums.
    return torch.addcmul(pixel_mean * (c * (1 - s)) + (image_mean * (1 - c) + b), x, c * s)


def _draw_scale(count: int, height: int, width: int, generator: Generator) -> tuple[Tensor, ...]:
    del height, width
    return tuple(_uniform(1 / SCALE, SCALE, count, generator) for _ in range(2))


def _scale(x: Tensor, across: Tensor, down: Tensor) -> Tensor:
    """Sample at ``across`` and ``down`` times the distance from the centre; factors above 1 shrink the picture."""
    i, j = _from_centre(x)
    rows = down.to(x.dtype)[:, None, None] * i
    columns = across.to(x.dtype)[:, None, None] * j
    return _sample(x, rows.expand(-1, -1, x.shape[3]), columns.expand(-1, x.shape[2], -1))


def _draw_rotate(count: int, height: int, width: int, generator: Generator) -> tuple[Tensor, ...]:
    del height, width
    most = math.radians(ROTATE_DEGREES)
    return (_uniform(-most, most, count, generator),)


def _rotate(x: Tensor, angle: Tensor) -> Tensor:
    """Turn about the centre; a positive angle (radians) turns the picture anticlockwise."""
    i, j = _from_centre(x)
    wide = angle.to(x.dtype)[:, None, None]
    cos, sin = wide.cos(), wide.sin()
    return _sample(x, rows=sin * j + cos * i, columns=cos * j - sin * i)


def _from_centre(x: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column of each pixel, counted from the image's centre: [H, 1] and [1, W]."""
    height, width = x.shape[2:]
    rows = torch.arange(height, dtype=x.dtype, device=x.device) - (height - 1) / 2
    columns = torch.arange(width, dtype=x.dtype, device=x.device) - (width - 1) / 2
    return rows[:, None], columns[None, :]


def _sample(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Bilinear samples at ``rows``, ``columns`` [N, H, W], counted from the centre; zero outside."""
    height, width = x.shape[2:]
    # One ring of zeros supplies every neighbour outside the image; positions beyond it are clamped to it.
    row = (rows + (height + 1) / 2).clamp(0, height + 1)
    column = (columns + (width + 1) / 2).clamp(0, width + 1)
    top, left = row.floor().clamp(max=height), column.floor().clamp(max=width)
    index = (top * (width + 2) + left).long().flatten(1)
    low, right = (row - top).flatten(1).unsqueeze(1), (column - left).flatten(1).unsqueeze(1)
    both = low * right
    padded = F.pad(x, (1, 1, 1, 1)).flatten(2)
    result = _take(padded, index) * (1 - low - right + both)
    for step, weight in ((1, right - both), (width + 2, low - both), (width + 3, both)):
        result = torch.addcmul(result, _take(padded, index + step), weight)
    return result.view_as(x)


@dataclass(frozen=True)
class _Strategy:
    draw: Callable[[int, int, int, Generator], tuple[Tensor, ...]]
    apply: Callable[..., Tensor]


_STRATEGIES = {
    "color": _Strategy(_draw_color, _color),
    "crop": _Strategy(_draw_crop, _crop),
    "cutout": _Strategy(_draw_cutout, _cutout),
    "flip": _Strategy(_draw_flip, _flip),
    "scale": _Strategy(_draw_scale, _scale),
    "rotate": _Strategy(_draw_rotate, _rotate),
}
