"""ResNet-18 (He et al. 2016) for small images.

Up to 64 pixels the first layer is a 3x3 convolution at stride 1 without pooling, as in the literature
for CIFAR and Tiny ImageNet; above, it is the original 7x7 convolution at stride 2 with pooling.
Parameters have torchvision's names, so that state dicts can be exchanged; with batch norm they also have its
initial distribution. With the norms of trajectory matching they have torch's default one, as in MTT's code.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from rayddl.errors import NetError
from rayddl.nets.config import Norm
from rayddl.nets.layers import Conv, MaxPool, channels_last, make_norm

SMALL = 64
"""The largest side, in pixels, that gets the 3x3 convolution."""
WIDTHS = (64, 128, 256, 512)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, on ``[B, H, W, C]``."""

    def __init__(self, inputs: int, width: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = Conv(inputs, width, 1, stride=stride, bias=False)
        self.bn1 = make_norm(norm, width)
        self.conv2 = Conv(width, width, 1, bias=False)
        self.bn2 = make_norm(norm, width)
        self.downsample = (
            nn.Sequential(Conv(inputs, width, 0, kernel=1, stride=stride, bias=False), make_norm(norm, width))
            if stride != 1 or inputs != width
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(self.conv2.lowered(out + shortcut))


class ResNet18(nn.Module):
    """Maps images ``[B, C, H, W]`` to logits ``[B, classes]``, with global average pooling.

    Raises :class:`NetError` if instance norm would get single pixels, which it maps to a constant.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, *, norm: Norm = "instance") -> None:
        super().__init__()
        channels, *sides = shape
        small = max(sides) <= SMALL
        _refuse_single_pixels(sides, 8 if small else 32, norm)
        if small:
            self.conv1 = Conv(channels, WIDTHS[0], 1, bias=False)
        else:
            self.conv1 = Conv(channels, WIDTHS[0], 3, kernel=7, stride=2, bias=False)
        self.bn1 = make_norm(norm, WIDTHS[0])
        self.maxpool = nn.Identity() if small else MaxPool(3, stride=2, padding=1)
        inputs = WIDTHS[0]
        for index, width in enumerate(WIDTHS):
            first = BasicBlock(inputs, width, 1 if index == 0 else 2, norm)
            self.add_module(f"layer{index + 1}", nn.Sequential(first, BasicBlock(width, width, 1, norm)))
            inputs = width
        self.fc = nn.Linear(inputs, classes)
        if norm == "batch":
            self._initialise(keep=self.conv1 if small else None)

    def _initialise(self, keep: nn.Module | None) -> None:
        """Draw the convolutions as torchvision does (He et al. 2015, fan-out), except ``keep``.

        RDED's code replaces the first layer of torchvision's network for small images, with torch's default.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module is not keep:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        x = self.maxpool(F.relu(self.conv1.lowered(self.bn1(self.conv1(channels_last(images))))))
        for index in range(len(WIDTHS)):
            x = self.get_submodule(f"layer{index + 1}")(x)
        out: Tensor = self.fc(x.mean((1, 2), dtype=self.fc.weight.dtype))
        return out


def _refuse_single_pixels(sides: list[int], shrinks: int, norm: Norm) -> None:
    if norm == "instance" and max(sides) <= shrinks:
        raise NetError(
            f"resnet18 brings {sides[0]}x{sides[1]} images down to one pixel, and instance norm makes single "
            f"pixels constant; it needs a side above {shrinks}, or norm: batch or group",
            code="images-too-small-for-resnet",
        )
