"""Networks by name, and a network as a function of one flat parameter vector."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from rayddl.nets.config import NetConfig
from rayddl.nets.convnet import BatchNorm, Conv, ConvNet

Shape = tuple[int, int, int]
"""Channels, height, width."""

COMPUTE = {"fp32": None, "tf32": None, "bf16": torch.bfloat16}
"""The type that a precision computes convolutions in, if not the parameters' own."""

BUILDERS: dict[str, Callable[[NetConfig, Shape, int], nn.Module]] = {
    "convnet": lambda config, shape, classes: ConvNet(
        shape, classes, depth=config.depth, width=config.width, norm=config.norm
    ),
}


def build(config: NetConfig, shape: Shape, classes: int, *, seed: int, precision: str = "fp32") -> nn.Module:
    """A freshly initialised network. The same seed gives the same parameters; no global state changes.

    Raises ``ValueError`` where the network does not fit the images.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = BUILDERS[config.name](config, shape, classes)
    for module in net.modules():
        if isinstance(module, Conv):
            module.compute = COMPUTE[precision]
    return net


@dataclass(frozen=True)
class FlatNet:
    """A network as a pure function of a vector ``theta_P`` that holds all its parameters.

    Trajectories, windows and meta-gradients work on such vectors: an SGD step is one fused operation.
    Batch norm uses the batch's statistics and keeps none of its own.
    """

    net: nn.Module
    """The skeleton; its own parameters are not used."""
    names: tuple[str, ...]
    """The parameters' names, in the vector's order."""
    shapes: tuple[torch.Size, ...]
    """Their shapes."""
    sizes: tuple[int, ...]
    """Their numbers of elements; they sum to P."""

    @classmethod
    def of(cls, net: nn.Module) -> FlatNet:
        """``net`` as a function of a vector."""
        # Plain fields: a cached property holds a lock, which ends a compiler's trace.
        named = list(net.requires_grad_(False).named_parameters())
        shapes = tuple(p.shape for _, p in named)
        return cls(net, tuple(n for n, _ in named), shapes, tuple(s.numel() for s in shapes))

    def unflatten(self, theta_P: Tensor) -> dict[str, Tensor]:
        """Views into ``theta_P`` by parameter name."""
        parts = theta_P.split(list(self.sizes))
        return {n: p.view(s) for n, p, s in zip(self.names, parts, self.shapes, strict=True)}

    def __call__(self, theta_P: Tensor, images: Tensor) -> Tensor:
        """Logits ``[B, K]`` of ``images`` ``[B, C, H, W]``."""
        out: Tensor = functional_call(self.net, self.unflatten(theta_P), (images,))
        return out


def flat(config: NetConfig, shape: Shape, classes: int, *, precision: str = "fp32") -> FlatNet:
    """The network as a function of a flat vector; take initial vectors from :func:`initial`."""
    net = build(config, shape, classes, seed=0, precision=precision)
    for module in net.modules():
        if isinstance(module, BatchNorm):
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None
    return FlatNet.of(net)


def initial(config: NetConfig, shape: Shape, classes: int, *, seed: int) -> Tensor:
    """A fresh network's parameters as a float32 vector ``[P]``."""
    net = build(config, shape, classes, seed=seed)
    return torch.cat([p.detach().reshape(-1) for p in net.parameters()])
