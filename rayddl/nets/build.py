"""Builds networks by name."""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch
from torch import Tensor, nn

from rayddl import plugins
from rayddl.errors import NetError, PluginError
from rayddl.nets import torchvision as tv
from rayddl.nets.alexnet import AlexNet
from rayddl.nets.config import NetConfig
from rayddl.nets.convnet import ConvNet
from rayddl.nets.flat import FlatNet
from rayddl.nets.layers import Conv
from rayddl.nets.lenet_mlp import LeNet, Mlp
from rayddl.nets.resnet import ResNet18
from rayddl.nets.vgg import Vgg11

Shape = tuple[int, int, int]
"""Channels, height, width."""

COMPUTE = {"fp32": None, "tf32": None, "bf16": torch.bfloat16}
"""The type in which convolutions are computed; ``None`` for the type of the parameters."""

TORCHVISION = "tv_"

BUILDERS: dict[str, Callable[[NetConfig, Shape, int], nn.Module]] = {
    "convnet": lambda config, shape, classes: ConvNet(
        shape, classes, depth=config.depth, width=config.width, norm=config.norm
    ),
    "alexnet": lambda config, shape, classes: AlexNet(shape, classes, norm=config.norm),
    "vgg11": lambda config, shape, classes: Vgg11(shape, classes, norm=config.norm),
    "resnet18": lambda config, shape, classes: ResNet18(shape, classes, norm=config.norm),
    "lenet": lambda config, shape, classes: LeNet(shape, classes),
    "mlp": lambda config, shape, classes: Mlp(shape, classes, depth=config.depth, width=config.width),
}
"""Builders of the small networks. Torchvision's and plugins' networks are built elsewhere."""


_DRAWING = threading.RLock()
"""Held while torch's global generator, which all threads share, draws a network's parameters."""


def build(config: NetConfig, shape: Shape, classes: int, *, seed: int, precision: str = "fp32") -> nn.Module:
    """A newly initialised network. The same seed gives the same parameters; global random state is unchanged.

    Raises :class:`~rayddl.errors.NetError` if the network cannot take images of this shape.
    """
    compute = COMPUTE[precision]
    with _DRAWING, torch.random.fork_rng(devices=[]):
        # Weights are drawn on the CPU. `torch.manual_seed` would also seed every GPU, which is not restored.
        torch.default_generator.manual_seed(seed)
        if config.name in BUILDERS:
            net = BUILDERS[config.name](config, shape, classes)
        elif plugins.owner("nets", config.name):
            net = _of_plugin(config.name, shape, classes)
        else:
            net = tv.make(config.name.removeprefix(TORCHVISION), shape, classes)
    if compute is not None:
        tv.lower(net, compute)
    for module in net.modules():
        if isinstance(module, Conv):
            module.compute = compute
    return net


def flat(config: NetConfig, shape: Shape, classes: int, *, precision: str = "fp32") -> FlatNet:
    """The network as a function of a flat parameter vector; :func:`initial` gives initial vectors.

    Dropout is turned off: the only randomness of a training is in its batches and augmentation.
    """
    net = build(config, shape, classes, seed=0, precision=precision)
    if config.name not in BUILDERS:
        tv.without_chance(net)
    return FlatNet.of(net)


def initial(config: NetConfig, shape: Shape, classes: int, *, seed: int) -> Tensor:
    """The parameters of a newly initialised network as a float32 vector ``[P]``."""
    net = build(config, shape, classes, seed=seed)
    return torch.cat([p.detach().reshape(-1) for p in net.parameters()])


def has_batch_norm(config: NetConfig, shape: Shape, classes: int) -> bool:
    """True if the network has batch norm. A plugin's network is built to find out."""
    if plugins.owner("nets", config.name) is None:
        return config.norm == "batch"
    net = build(config, shape, classes, seed=0)
    return any(isinstance(module, nn.BatchNorm2d) for module in net.modules())


def _of_plugin(name: str, shape: Shape, classes: int) -> nn.Module:
    plugin, (channels, height, width) = plugins.owner("nets", name), shape
    if height != width:
        raise NetError(
            f"network {name!r} of plugin {plugin} takes square images, these are {height}x{width}; set source.size",
            code="images-not-square",
        )
    with plugins.called("nets", name, f"{classes} classes of {channels}x{height}x{width} images"):
        net = plugins.find("nets", name)(classes, channels, height)  # type: ignore[misc]
        with torch.no_grad():
            logits = net.eval()(torch.zeros(2, *shape))
        net.train()
    if getattr(logits, "shape", None) != (2, classes):
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise PluginError(
            f"network {name!r} of plugin {plugin} returns {found} for 2 images, and logits (2, {classes}) are expected",
            code="plugin-network-output",
        )
    made: nn.Module = net
    return made
