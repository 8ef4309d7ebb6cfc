"""LeNet-5 and the multi-layer perceptron of the cross-architecture tables."""

from __future__ import annotations

import itertools

from torch import Tensor, nn

from rayddl.errors import NetError
from rayddl.nets.layers import Conv, MaxPool, channels_last, flattened


class LeNet(nn.Module):
    """LeNet-5 (LeCun et al. 1998) with ReLU and max pooling: ``[B, C, H, W]`` to ``[B, classes]``.

    Raises :class:`NetError` for sides below 16.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        channels, *sides = shape
        # The first convolution shrinks the side: padding 28 pixels by 2 gives the same output as 32 pixels.
        padding = 2 if sides == [28, 28] else 0
        rest = [((side + 2 * padding - 4) // 2 - 4) // 2 for side in sides]
        if min(rest) < 1:
            raise NetError(
                f"lenet leaves nothing of {shape[1]}x{shape[2]} images after two 5x5 convolutions and two "
                "poolings; it needs sides of at least 16",
                code="images-too-small-for-lenet",
            )
        self.features = nn.Sequential(
            Conv(channels, 6, padding, kernel=5), nn.ReLU(), MaxPool(),
            Conv(6, 16, 0, kernel=5), nn.ReLU(), MaxPool(),
        )  # fmt: skip
        self.classifier = _layers([16 * rest[0] * rest[1], 120, 84, classes])

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.classifier(flattened(self.features(channels_last(images))))
        return out


class Mlp(nn.Module):
    """``depth`` linear layers with ReLU between them on the flat image: ``[B, C, H, W]`` to ``[B, classes]``.

    The literature's network has three layers with 128 hidden units.
    """

    def __init__(
        self, shape: tuple[int, int, int], classes: int, *, depth: int = 3, width: int = 128
    ) -> None:
        super().__init__()
        channels, height, across = shape
        self.classifier = _layers([channels * height * across, *[width] * (depth - 1), classes])

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.classifier(images.flatten(1))
        return out


def _layers(widths: list[int]) -> nn.Sequential:
    pairs = itertools.pairwise(widths)
    linear = [part for pair in pairs for part in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(*linear[:-1])
