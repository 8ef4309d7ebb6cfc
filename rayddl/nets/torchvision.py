"""Torchvision's networks, built and initialised by torchvision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rayddl.errors import NetError

SMALLEST = 32
"""The smallest side in pixels: torchvision's networks reduce it 32 times."""
PATCH = 16
"""Side of a ViT-B/16 patch in pixels."""


def make(name: str, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """The torchvision network ``name``, e.g. ``resnet50``, for images of ``shape``, without weights.

    Raises :class:`NetError` for images that are grey, too small, or, for ViT, not a square of whole
    patches.
    """
    from torchvision import models

    channels, *sides = shape
    if channels != 3:
        raise NetError(
            f"torchvision's {name} takes colour images (3 channels), these have {channels}; use one of the "
            "small networks, e.g. resnet18 instead of tv_resnet18",
            code="not-colour-images",
        )
    if min(sides) < SMALLEST:
        raise NetError(
            f"torchvision's {name} needs sides of at least {SMALLEST}, these images are {sides[0]}x{sides[1]}; "
            "use one of the small networks, e.g. resnet18, or a larger source.size",
            code="images-too-small-for-torchvision",
        )
    more: dict[str, Any] = {}
    if name == "vit_b_16":
        if sides[0] != sides[1] or sides[0] % PATCH:
            raise NetError(
                f"torchvision's vit_b_16 cuts square images into patches of {PATCH} pixels, these are "
                f"{sides[0]}x{sides[1]}; set source.size to a multiple of {PATCH}",
                code="images-not-whole-patches",
            )
        more = {"image_size": sides[0]}
    builder: Callable[..., nn.Module] = getattr(models, name)
    return builder(weights=None, num_classes=classes, **more)


def without_chance(net: nn.Module) -> None:
    """Turn off dropout and stochastic depth, so that a step on a flat vector is deterministic."""
    from torchvision.ops import StochasticDepth

    for module in net.modules():
        if isinstance(module, nn.Dropout | StochasticDepth):
            module.eval()


class Lowered(nn.Conv2d):
    """A convolution of ``[B, C, H, W]`` computed in another type; input and output keep their type."""

    compute: torch.dtype

    def forward(self, input: Tensor) -> Tensor:
        if input.dtype != torch.float32:
            return super().forward(input)
        bias = None if self.bias is None else self.bias.to(self.compute)
        out: Tensor = self._conv_forward(input.to(self.compute), self.weight.to(self.compute), bias)
        return out.float()


def lower(net: nn.Module, compute: torch.dtype) -> None:
    """Replace each convolution of ``net`` by a :class:`Lowered` one with the same parameters."""
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Conv2d:
                setattr(parent, name, _lowered(child, compute))


def _lowered(conv: nn.Conv2d, compute: torch.dtype) -> Lowered:
    made = Lowered(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]  # a pair, declared as a longer tuple
        conv.stride,  # type: ignore[arg-type]  # likewise
        conv.padding,  # type: ignore[arg-type]  # likewise
        conv.dilation,  # type: ignore[arg-type]  # likewise
        conv.groups,
        bias=conv.bias is not None,
        # No random numbers are drawn for parameters that are replaced at once.
        device="meta",
    )
    made.weight, made.bias, made.compute = conv.weight, conv.bias, compute
    return made
