"""Windows: where a student starts on an expert's trajectory, and what it is to reach."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rayddl.methods.matching.settings import WindowRule
from rayddl.methods.trajectories.convex import Trajectory
from rayddl.seeds import generator

STILL = 1e-8
"""Squared share of the parameters' norm that an expert must move over a window to be matched."""


@dataclass(frozen=True)
class Window:
    """One match: from ``start_P`` the student is to reach ``target_P``."""

    expert: int
    epoch: float
    start_P: Tensor
    target_P: Tensor

    @property
    def still(self) -> bool:
        """Whether the expert hardly moved, so that the normalised loss means nothing."""
        moved = (self.target_P - self.start_P).square().sum()
        return bool(moved <= STILL * self.start_P.square().sum())


def cut(
    trajectory: Trajectory, expert: int, rule: WindowRule, iteration: int, draws: torch.Generator
) -> Window:
    """The window on ``trajectory`` for ``iteration``."""
    epoch = rule.start(iteration, draws)
    target = min(epoch + rule.expert_epochs, float(trajectory.last))
    return Window(expert, epoch, trajectory.at(epoch), trajectory.at(target))


def expert_at(iteration: int, count: int, seed: int) -> int:
    """Which expert ``iteration`` uses: every expert once per pass, each pass in a new order."""
    order = torch.randperm(count, generator=generator(seed, "pass", iteration // count))
    return int(order[iteration % count])


Kind = Literal["convex", "snapshots"]
