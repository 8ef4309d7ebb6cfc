"""AlexNet for small images, as in the cross-architecture tables of dataset distillation.

Five convolutions of 128 to 256 channels at stride 1, three poolings, one linear layer. The literature's
network has no norm layers; a norm, if chosen, is placed between convolution and ReLU.
"""

from __future__ import annotations

from torch import Tensor, nn

from rayddl.errors import NetError
from rayddl.nets.config import Norm
from rayddl.nets.layers import Conv, MaxPool, channels_last, flattened, make_norm, padding_of

PLAN = ((128, 5, True), (192, 5, True), (256, 3, False), (192, 3, False), (192, 3, True))
"""Channels, kernel, and whether a pooling follows."""


class AlexNet(nn.Module):
    """Maps images ``[B, C, H, W]`` to logits ``[B, classes]``.

    Raises :class:`NetError` for sides below 8.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, *, norm: Norm = "none") -> None:
        super().__init__()
        channels, *sides = shape
        padding, sides = padding_of(sides, usual=2)
        rest = [side >> sum(pooled for *_, pooled in PLAN) for side in sides]
        if min(rest) < 1:
            raise NetError(
                f"alexnet halves the side 3 times, which {shape[1]}x{shape[2]} images do not allow; it needs "
                "sides of at least 8",
                code="images-too-small-for-alexnet",
            )
        layers: list[nn.Module] = []
        for index, (width, kernel, pooled) in enumerate(PLAN):
            pad = padding if index == 0 else kernel // 2
            layers += [Conv(channels, width, pad, kernel=kernel, norm=norm)]
            layers += [make_norm(norm, width), nn.ReLU(), *([MaxPool()] if pooled else [])]
            channels = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels * rest[0] * rest[1], classes)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.classifier(flattened(self.features(channels_last(images))))
        return out
