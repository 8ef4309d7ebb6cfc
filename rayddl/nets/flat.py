"""A network as a function of one flat parameter vector and of batch norm's running statistics."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from rayddl.errors import NetError


@dataclass(frozen=True)
class Statistics:
    """The running means and variances of a network's batch norm layers, as one vector ``[S]``."""

    names: tuple[str, ...]
    """Names of the buffers, in the vector's order."""
    sizes: tuple[int, ...]
    """Their numbers of elements; they sum to S."""
    start_S: Tensor
    """Values of a new network: means 0, variances 1."""
    training: nn.Module
    """The module that normalises by the batch's statistics and updates the running ones."""
    testing: nn.Module
    """The module that normalises by the running ones."""

    @classmethod
    def of(cls, net: nn.Module) -> Statistics | None:
        """The statistics of a newly built ``net``; ``None`` if it has no batch norm."""
        norms = [(name, m) for name, m in net.named_modules() if isinstance(m, nn.BatchNorm2d)]
        if not norms:
            return None
        # Copies of the structure around the same parameters.
        training = copy.deepcopy(net, {id(p): p for p in net.parameters()})
        for module in _batch_norms(training):
            # The number of batches is needed only for a cumulative average.
            module.num_batches_tracked = None
        testing = copy.deepcopy(training, {id(p): p for p in net.parameters()}).eval()
        named = {
            f"{name}.{kind}".lstrip("."): getattr(m, kind)
            for name, m in norms
            for kind in ("running_mean", "running_var")
        }
        start = torch.cat([t.detach().clone() for t in named.values()])
        return cls(tuple(named), tuple(t.numel() for t in named.values()), start, training, testing)

    def unflatten(self, statistics_S: Tensor) -> dict[str, Tensor]:
        """Views into ``statistics_S`` by buffer name."""
        return dict(zip(self.names, statistics_S.split(list(self.sizes)), strict=True))


@dataclass(frozen=True)
class FlatNet:
    """A network as a pure function of a vector ``theta_P`` that holds all its parameters.

    Trajectories, windows and meta-gradients use such vectors: an SGD step is one fused operation.
    With batch norm, a vector ``[P]`` normalises by the statistics of the current batch, as in training;
    a vector ``[P + S]``, the parameters followed by the running statistics, normalises by these, as
    in testing.
    """

    net: nn.Module
    """The module that is called; its own parameters are not used."""
    names: tuple[str, ...]
    """Names of the parameters, in the vector's order."""
    shapes: tuple[torch.Size, ...]
    """Their shapes."""
    sizes: tuple[int, ...]
    """Their numbers of elements; they sum to P."""
    statistics: Statistics | None = None
    """``None`` for a network without batch norm."""

    @classmethod
    def of(cls, net: nn.Module) -> FlatNet:
        """``net`` as a function of a vector."""
        # Plain fields: a cached property uses a lock, which torch.compile cannot trace.
        named = list(net.requires_grad_(False).named_parameters())
        shapes = tuple(p.shape for _, p in named)
        statistics = Statistics.of(net)
        for module in _batch_norms(net):
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None
        return cls(net, tuple(n for n, _ in named), shapes, tuple(s.numel() for s in shapes), statistics)

    def unflatten(self, theta_P: Tensor) -> dict[str, Tensor]:
        """Views into ``theta_P`` by parameter name."""
        parts = theta_P.split(list(self.sizes))
        return {n: p.view(s) for n, p, s in zip(self.names, parts, self.shapes, strict=True)}

    def before_layer(self, layer: int) -> int:
        """The number of parameters before those of ``layer``, counted from 0.

        A layer begins with its weights, of two or more dimensions; biases and norms after them belong to it. Raises
        :class:`NetError` for a network of fewer layers.
        """
        starts = [sum(self.sizes[:k]) for k, shape in enumerate(self.shapes) if len(shape) > 1]
        if layer >= len(starts):
            raise NetError(
                f"the network has {len(starts)} layers with weights, and {layer} of them are left out of the matching "
                f"loss; set skip_layers to at most {len(starts) - 1}",
                code="too-few-layers-to-skip",
            )
        return starts[layer] if layer else 0

    def __call__(self, theta_P: Tensor, images: Tensor) -> Tensor:
        """Logits ``[B, K]`` of ``images`` ``[B, C, H, W]``; ``theta_P`` is ``[P]`` or ``[P + S]``."""
        parameters = sum(self.sizes)
        if self.statistics is None or len(theta_P) == parameters:
            out: Tensor = functional_call(self.net, self.unflatten(theta_P), (images,))
            return out
        known = self.statistics.unflatten(theta_P[parameters:])
        both = {**self.unflatten(theta_P[:parameters]), **known}
        tested: Tensor = functional_call(self.statistics.testing, both, (images,))
        return tested

    def track(self, theta_P: Tensor, statistics_S: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``[B, K]`` in training, and the running statistics ``[S]`` after this batch.

        As in torch: 0.1 times the batch's means and unbiased variances plus 0.9 times the previous ones.
        """
        assert self.statistics is not None
        # Copies, because the layers update their buffers in place.
        known = {name: part.clone() for name, part in self.statistics.unflatten(statistics_S).items()}
        both = {**self.unflatten(theta_P), **known}
        logits: Tensor = functional_call(self.statistics.training, both, (images,))
        return logits, torch.cat([known[name] for name in self.statistics.names]).detach()


def _batch_norms(net: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
