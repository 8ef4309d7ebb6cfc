"""Crops of uint8 images: decode at the lowest sufficient resolution, crop, resize."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from rayddl.data.pixels.decode import open_image, pil_warnings, plain, read_image, upright

Boxes = NDArray[np.int32]
"""``[K, 3]``: top, left, side in pixels of the whole image."""


@dataclass(frozen=True)
class Opened:
    """An image whose header was read: its size in pixels, and a function that decodes it."""

    height: int
    width: int
    pixels: Callable[[int], tuple[Tensor, int]]
    """``pixels(reduce)`` decodes at 1/``reduce`` of the size if the format supports it; it returns uint8
    ``[C, H, W]`` and the actual reduction."""


def opened(blob: bytes | NDArray[np.uint8], channels: int) -> Opened:
    """The image ``blob``, encoded or uint8 ``[C, H, W]``, converted to ``channels`` (1 or 3).

    Raises PIL's errors for bytes that are not an image and for decompression bombs, and
    ``ValueError`` for modes whose values are not bytes.
    """
    if isinstance(blob, np.ndarray):
        whole = with_channels(torch.from_numpy(np.array(blob)), channels)
        return Opened(int(whole.shape[1]), int(whole.shape[2]), lambda _: (whole, 1))
    with pil_warnings(), open_image(blob) as head:
        if head.format == "JPEG" and upright(head):
            width, height = head.size
            return Opened(height, width, lambda reduce: _jpeg(blob, channels, reduce))
    with pil_warnings():
        whole = _from_pil(read_image(blob), channels)
    return Opened(int(whole.shape[1]), int(whole.shape[2]), lambda _: (whole, 1))


def _jpeg(data: bytes, channels: int, reduce: int) -> tuple[Tensor, int]:
    with pil_warnings(), open_image(data) as image:
        width, height = image.size
        if reduce > 1:
            image.draft(None, (-(-width // reduce), -(-height // reduce)))
        return _from_pil(np.asarray(plain(image)), channels), round(width / image.size[0])


def _from_pil(pixels: NDArray[np.uint8], channels: int) -> Tensor:
    grey = pixels.ndim == 2
    writable = torch.from_numpy(np.array(pixels[:, :, None] if grey else pixels))
    return with_channels(writable.permute(2, 0, 1), channels)


def with_channels(image: Tensor, channels: int) -> Tensor:
    """uint8 ``[C, H, W]`` as ``[channels, H, W]``, 1 or 3: RGB becomes grey by the weights of ITU-R 601."""
    if image.shape[0] == channels:
        return image
    if channels == 3:
        return image.expand(3, -1, -1)
    weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)  # as in PIL's mode L
    return (image.float() * weights).sum(0, keepdim=True).round().to(torch.uint8)


def reduction(boxes: Boxes, size: int) -> int:
    """The largest reduction of 1, 2, 4, 8 at which every crop is still at least ``size`` pixels wide."""
    narrowest = int(boxes[:, 2].min())
    return next((r for r in (8, 4, 2) if narrowest >= size * r), 1)


def cut(image: Opened, boxes: Boxes, size: tuple[int, int] | int, *, reduced: bool) -> Tensor:
    """The crops at ``boxes``, each resized to ``size`` (bilinear, antialiased): uint8 ``[K, C, h, w]``.

    ``reduced`` allows decoding a JPEG at a reduced scale if no crop has to be enlarged afterwards; the
    pixels then differ slightly from those at full scale.
    """
    height, width = (size, size) if isinstance(size, int) else size
    factor = reduction(boxes, max(height, width)) if reduced else 1
    pixels, factor = image.pixels(factor)
    return torch.cat([_resized(_box(pixels, box, factor), height, width) for box in boxes])


def as_jpeg(image: Tensor, quality: int) -> Tensor:
    """The uint8 ``image`` ``[C, H, W]`` after writing and reading a JPEG file of ``quality``, as PIL writes it."""
    pixels, stream = image.permute(1, 2, 0).numpy(), io.BytesIO()
    Image.fromarray(pixels[..., 0] if len(image) == 1 else pixels).save(stream, "JPEG", quality=quality)
    return _from_pil(np.asarray(open_image(stream.getvalue())), len(image))


def _box(pixels: Tensor, box: NDArray[np.int32], factor: int) -> Tensor:
    top, left, side = (int(v) for v in box)
    if factor > 1:
        top, left, side = round(top / factor), round(left / factor), max(1, round(side / factor))
    return pixels[None, :, top : top + side, left : left + side]


def _resized(crop: Tensor, height: int, width: int) -> Tensor:
    if crop.shape[2:] == (height, width):
        return crop
    return F.interpolate(crop, size=(height, width), mode="bilinear", antialias=True)
