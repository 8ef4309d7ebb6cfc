"""VGG-11 (Simonyan & Zisserman 2015, configuration A) with one linear layer, for small images."""

from __future__ import annotations

from torch import Tensor, nn

from rayddl.errors import NetError
from rayddl.nets.config import Norm
from rayddl.nets.layers import Conv, MaxPool, channels_last, flattened, make_norm, padding_of

STAGES = ((64,), (128,), (256, 256), (512, 512), (512, 512))
"""Channels of the convolutions before each pooling."""


class Vgg11(nn.Module):
    """Maps images ``[B, C, H, W]`` to logits ``[B, classes]``.

    The output of five poolings, 1x1 for 32 pixels, is flattened for the linear layer.
    Raises :class:`NetError` for sides below 32 (28 is padded to it).
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, *, norm: Norm = "instance") -> None:
        super().__init__()
        channels, *sides = shape
        padding, sides = padding_of(sides, usual=1)
        rest = [side >> len(STAGES) for side in sides]
        if min(rest) < 1:
            raise NetError(
                f"vgg11 halves the side 5 times, which {shape[1]}x{shape[2]} images do not allow; it needs "
                "sides of at least 32 (source.size=32 enlarges them)",
                code="images-too-small-for-vgg",
            )
        layers: list[nn.Module] = []
        for widths in STAGES:
            for width in widths:
                layers += [Conv(channels, width, padding, norm=norm)]
                layers += [make_norm(norm, width), nn.ReLU()]
                channels, padding = width, 1
            layers += [MaxPool()]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels * rest[0] * rest[1], classes)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.classifier(flattened(self.features(channels_last(images))))
        return out
