"""Networks as text: functions in plain PyTorch that others can read and run without rayddl.

They have the parameters of :mod:`rayddl.nets`, with the same names, shapes, initial distributions and outputs. The
text uses ``CHANNELS`` and ``CLASSES``, and the modules ``collections``, ``nn`` and ``torchvision``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from rayddl.nets.alexnet import PLAN
from rayddl.nets.build import TORCHVISION, Shape
from rayddl.nets.config import NORMS, NetConfig, Norm
from rayddl.nets.layers import padding_of
from rayddl.nets.resnet import SMALL
from rayddl.nets.vgg import STAGES


class Plain(NamedTuple):
    """A network as text."""

    function: str
    """The definition of a function that builds it."""
    call: str
    """The call of that function."""


_NORMS: dict[Norm, str] = {
    "instance": "lambda width: nn.GroupNorm(width, width)",
    "group": "lambda width: nn.GroupNorm(4, width)",
    "batch": "nn.BatchNorm2d",
    "none": "lambda width: nn.Identity()",
}
_CONVNET = """\
def convnet(depth, width, norm, padding, features):
    blocks = [nn.Sequential(collections.OrderedDict(
        conv=nn.Conv2d(width if d else CHANNELS, width, 3, padding=1 if d else padding),
        norm=norm(width), relu=nn.ReLU(), pool=nn.AvgPool2d(2))) for d in range(depth)]
    return nn.Sequential(collections.OrderedDict(
        blocks=nn.Sequential(*blocks), flat=nn.Flatten(), classifier=nn.Linear(features, CLASSES)))
"""
_STACKED = """\
def stacked(plan, norm, features):
    layers, channels = [], CHANNELS
    for width, kernel, padding, pooled in plan:
        layers += [nn.Conv2d(channels, width, kernel, padding=padding), norm(width), nn.ReLU()]
        layers, channels = layers + [nn.MaxPool2d(2)] * pooled, width
    return nn.Sequential(collections.OrderedDict(
        features=nn.Sequential(*layers), flat=nn.Flatten(), classifier=nn.Linear(features, CLASSES)))
"""
_MLP = """\
def mlp(*widths):
    layers = [layer for pair in zip(widths, widths[1:]) for layer in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(collections.OrderedDict(flat=nn.Flatten(), classifier=nn.Sequential(*layers[:-1])))
"""
_LENET = """\
def lenet(padding, *widths):
    features = nn.Sequential(nn.Conv2d(CHANNELS, 6, 5, padding=padding), nn.ReLU(), nn.MaxPool2d(2),
                             nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2))
    layers = [layer for pair in zip(widths, widths[1:]) for layer in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(collections.OrderedDict(
        features=features, flat=nn.Flatten(), classifier=nn.Sequential(*layers[:-1])))
"""
_RESNET = """\
def resnet18(norm, small, he):
    net = torchvision.models.resnet18(num_classes=CLASSES, norm_layer=norm)
    net.conv1 = nn.Conv2d(CHANNELS, 64, *((3, 1, 1) if small else (7, 2, 3)), bias=False)
    net.maxpool = nn.Identity() if small else net.maxpool
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d) and not he:
            layer.reset_parameters()
    if he and not small:
        nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
    return net
"""
_TORCHVISION = """\
def published(name, dropout, **more):
    net = getattr(torchvision.models, name)(num_classes=CLASSES, **more)
    for layer in net.modules():
        if not dropout and isinstance(layer, (nn.Dropout, torchvision.ops.StochasticDepth)):
            layer.p = 0.0
    return net
"""


def plain(config: NetConfig, shape: Shape, *, dropout: bool) -> Plain | None:
    """The network for images of ``shape`` as text; ``None`` for a plugin's, whose code is not rayddl's.

    ``dropout``: torchvision's networks keep theirs.
    """
    if config.name in _MAKERS:
        return _MAKERS[config.name](config, shape)
    if config.name not in NORMS:
        return None
    name = config.name.removeprefix(TORCHVISION)
    more = f", image_size={shape[1]}" if name == "vit_b_16" else ""
    return Plain(_TORCHVISION, f"published({name!r}, {dropout}{more})")


def _of_convnet(config: NetConfig, shape: Shape) -> Plain:
    padding, (height, width) = padding_of(list(shape[1:]), usual=1)
    features = config.width * (height >> config.depth) * (width >> config.depth)
    values = f"{config.depth}, {config.width}, {_NORMS[config.norm]}, {padding}, {features}"
    return Plain(_CONVNET, f"convnet({values})")


def _of_mlp(config: NetConfig, shape: Shape) -> Plain:
    widths = [math.prod(shape), *[config.width] * (config.depth - 1)]
    return Plain(_MLP, f"mlp({', '.join(map(str, widths))}, CLASSES)")


def _of_lenet(_: NetConfig, shape: Shape) -> Plain:
    padding = 2 if shape[1:] == (28, 28) else 0
    rest = [((side + 2 * padding - 4) // 2 - 4) // 2 for side in shape[1:]]
    return Plain(_LENET, f"lenet({padding}, {16 * math.prod(rest)}, 120, 84, CLASSES)")


def _of_vgg(config: NetConfig, shape: Shape) -> Plain:
    # A pooling follows the last convolution of each stage.
    plan = [(width, 3, i == len(widths) - 1) for widths in STAGES for i, width in enumerate(widths)]
    return _stacked(plan, config, shape)


def _stacked(kernels: Sequence[tuple[int, int, bool]], config: NetConfig, shape: Shape) -> Plain:
    first, sides = padding_of(list(shape[1:]), usual=kernels[0][1] // 2)
    plan = [
        (width, kernel, kernel // 2 if index else first, pooled)
        for index, (width, kernel, pooled) in enumerate(kernels)
    ]
    poolings = sum(pooled for *_, pooled in plan)
    features = kernels[-1][0] * math.prod(side >> poolings for side in sides)
    return Plain(_STACKED, f"stacked({plan}, {_NORMS[config.norm]}, {features})")


def _of_resnet(config: NetConfig, shape: Shape) -> Plain:
    small, he = max(shape[1:]) <= SMALL, config.norm == "batch"
    return Plain(_RESNET, f"resnet18({_NORMS[config.norm]}, {small}, {he})")


_MAKERS: dict[str, Callable[[NetConfig, Shape], Plain]] = {
    "convnet": _of_convnet,
    "alexnet": lambda config, shape: _stacked(PLAN, config, shape),
    "vgg11": _of_vgg,
    "resnet18": _of_resnet,
    "lenet": _of_lenet,
    "mlp": _of_mlp,
}
