"""Several observers that label together: the mean of their logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor, nn

from rayddl.errors import ArtifactError
from rayddl.methods.training.input_spec import InputSpec
from rayddl.methods.training.observer import Observer, frozen


class MeanLogits(nn.Module):
    """The mean of the logits of several networks, for images normalised for the first of them."""

    def __init__(self, members: Sequence[Observer]) -> None:
        super().__init__()
        self.nets = nn.ModuleList(member.module for member in members)
        first = members[0].space
        for k, member in enumerate(members):
            own = member.space
            # (x * std + mean of the first) - mean, over std, in one product and one sum.
            self.register_buffer(f"scale_{k}", (first.std / own.std).float().view(1, -1, 1, 1))
            self.register_buffer(f"shift_{k}", ((first.mean - own.mean) / own.std).float().view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        parts = [
            net(torch.addcmul(self.get_buffer(f"shift_{k}"), images, self.get_buffer(f"scale_{k}")))
            if k
            else net(images)
            for k, net in enumerate(self.nets)
        ]
        return torch.stack([part.float() for part in parts]).mean(0)


@dataclass(frozen=True, eq=False)
class ObserverGroup:
    """Observers of the same classes, in the same order, and of one input size."""

    members: tuple[Observer, ...]

    @property
    def input_spec(self) -> InputSpec:
        """Shape and scaling of the first member's input, which :attr:`module` takes."""
        return self.members[0].input_spec

    @property
    def module(self) -> nn.Module:
        """Maps normalised images ``[B, C, H, W]`` to the mean of the members' logits ``[B, K]``."""
        device = next(self.members[0].module.parameters()).device
        return frozen(MeanLogits(self.members).to(device))

    def on(self, device: torch.device, precision: str = "fp32") -> ObserverGroup:
        """A copy on ``device``: see :meth:`Observer.on`."""
        return replace(self, members=tuple(member.on(device, precision) for member in self.members))


Labeller: TypeAlias = Observer | ObserverGroup
"""What gives soft labels."""


def together(members: Sequence[Observer]) -> Labeller:
    """One observer as it is, several as a group. Raises :class:`ArtifactError` for different input sizes."""
    if len(members) == 1:
        return members[0]
    other = next((member for member in members if member.shape != members[0].shape), None)
    if other is not None:
        raise ArtifactError(
            f"observers of {members[0].shape} and of {other.shape} (channels, height, width) cannot be averaged: they "
            "see the same crops. Take observers of one input size.",
            code="observers-of-other-sizes",
        )
    return ObserverGroup(tuple(members))
