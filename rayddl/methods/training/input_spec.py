"""The input of a network: its shape, and the scaling of pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from rayddl.errors import ArtifactError
from rayddl.methods.training.settings import zoomed

if TYPE_CHECKING:
    from rayddl.data.pixels.space import PixelSpace

Shape = tuple[int, int, int]
BATCH = 256


@dataclass(frozen=True)
class InputSpec:
    """Shape and scaling of a network's input: (pixel - ``mean``) / ``std``."""

    shape: Shape
    """(C, H, W)."""
    mean: tuple[float, ...]
    """Mean per channel, of pixels in 0..1."""
    std: tuple[float, ...]

    def normalised(self, images: Tensor) -> Tensor:
        """The network's input, float32 ``[B, C, H, W]``, from ``images``, uint8 or float in 0..1."""
        mean, std = (_constants(values, images.device) for values in (self.mean, self.std))
        return in_unit(images).sub(mean).div_(std)

    def zoomed(self, images: Tensor) -> Tensor:
        """uint8 test ``images`` ``[N, C, H, W]`` as RDED's published code shows them.

        The shorter side is scaled to 8/7 of the input's and the centre is cropped, also if the images have the
        input's size already: at 64 pixels the central 57 are shown, at 32 pixels the image is unchanged.
        """
        _, height, width = self.shape
        if tuple(images.shape[1:]) == self.shape and zoomed(min(height, width)) != min(height, width):
            return torch.cat([_cut(part, height, width) for part in images.split(BATCH)])
        return self.fitted(images)

    def fitted(self, images: Tensor) -> Tensor:
        """uint8 ``images`` ``[N, C, H, W]``, resized to this shape if theirs differs.

        As RDED's published code prepares test images: the shorter side is scaled to 8/7 of the input's, then
        the centre is cropped; a grey channel is repeated. Raises :class:`ArtifactError` for colour images and
        a network with grey input.
        """
        channels, height, width = self.shape
        if tuple(images.shape[1:]) == self.shape:
            return images
        if images.shape[1] not in (1, channels):
            raise ArtifactError(
                f"the observer sees images of {channels} channel, and these have {images.shape[1]}. Take an "
                "observer that was trained on images like these.",
                code="observer-of-other-channels",
            )
        if tuple(images.shape[2:]) != (height, width):
            images = torch.cat([_cut(part, height, width) for part in images.split(BATCH)])
        return images.expand(-1, channels, -1, -1)


def _constants(values: Sequence[float], device: torch.device) -> Tensor:
    """float32 ``[1, C, 1, 1]``. Filled on the device: a copy from the CPU would wait for the work launched before."""
    filled = [torch.full((), value, dtype=torch.float32, device=device) for value in values]
    return torch.stack(filled).view(1, -1, 1, 1)


def in_unit(images: Tensor) -> Tensor:
    """uint8 images as float32 in 0..1; float images are assumed to be in 0..1."""
    return images.float().div_(255) if images.dtype == torch.uint8 else images.float()


def _cut(images: Tensor, height: int, width: int) -> Tensor:
    wanted = zoomed(min(height, width))
    # For an input that is not square, the image must also cover its longer side.
    scale = max(wanted / min(images.shape[2:]), height / images.shape[2], width / images.shape[3])
    sides = [max(round(images.shape[2] * scale), height), max(round(images.shape[3] * scale), width)]
    large = F.interpolate(images.float(), sides, mode="bilinear", antialias=True, align_corners=False)
    top, left = round((sides[0] - height) / 2), round((sides[1] - width) / 2)
    return large[:, :, top : top + height, left : left + width].round().clamp(0, 255).to(torch.uint8)


def moments(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of uint8 ``images`` ``[N, C, H, W]``, for pixels in 0..1."""
    from rayddl.data.pixels import space

    return moments_of(space.fit("normalise", images))


def moments_of(space: PixelSpace) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of the images that the space ``normalise`` was fitted on."""
    fitted = space.tensors()
    return _floats(fitted["mean"].tolist()), _floats(fitted["std"].tolist())


def _floats(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(float(v) for v in values)
