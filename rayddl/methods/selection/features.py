"""Features for comparing images: pixels in model space, or the input of a network's last layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from rayddl.methods.training.feeding import lane_to, through

BATCH = 128
"""Fixed batch size of the network, because its last bits can depend on the batch size."""


@dataclass(frozen=True, eq=False)
class Features:
    """A function from uint8 images ``[n, C, H, W]`` to float32 features ``[n, D]`` on the CPU."""

    encode: Callable[[Tensor], Tensor]
    """Maps uint8 images to the network's input; without a network, to the features."""
    module: nn.Module | None = None
    """A network in eval mode; the input of its last linear layer is the feature vector."""
    device: torch.device = torch.device("cpu")  # noqa: RUF009 - a constant
    outputs: bool = False
    """Return the network's logits, not the input of its last layer."""

    def on(self, device: torch.device) -> Features:
        """The same features, computed on ``device``."""
        return replace(self, module=None if self.module is None else self.module.to(device), device=device)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """The features of any number of ``images``, computed ``BATCH`` at a time."""
        parts = ((self._filled(part),) for part in images.split(BATCH))
        return torch.cat(list(through(parts, self._batch, lane_to(self.device))))[: len(images)]

    def width(self, shape: tuple[int, int, int]) -> int:
        """D for images of ``shape``."""
        return int(self(torch.zeros(1, *shape, dtype=torch.uint8)).shape[1])

    def _filled(self, images: Tensor) -> Tensor:
        """``images``; for a network repeated up to :data:`BATCH`."""
        missing = 0 if self.module is None else BATCH - len(images)
        return torch.cat([images, images[-1:].expand(missing, *images.shape[1:])]) if missing else images

    def _batch(self, images: Tensor) -> Tensor:
        x = self.encode(images)
        if self.module is None:
            return x.flatten(1).float()
        network = self.module if self.outputs else partial(before_last, self.module)
        return network(x).float()


def before_last(module: nn.Module, x: Tensor) -> Tensor:
    """The input of the last linear layer of ``module`` for ``x``: ``[B, D]``."""
    last = [part for part in module.modules() if isinstance(part, nn.Linear)][-1]
    caught: list[Tensor] = []

    def catch(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        caught.append(given[0])

    handle = last.register_forward_pre_hook(catch)
    try:
        module(x)
    finally:
        handle.remove()
    return caught[0].flatten(1)
