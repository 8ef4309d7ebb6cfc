"""Windows: start and target parameters on an expert's trajectory (MTT, section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rayddl.methods.matching.settings import WindowRule
from rayddl.methods.trajectories.convex import Trajectory
from rayddl.seeds import generator

STILL = 1e-8
"""Smallest squared distance of start and target, relative to the parameters' squared norm, for matching."""


@dataclass(frozen=True)
class Window:
    """One match: the student starts at ``start_P`` and is trained to reach ``target_P``."""

    expert: int
    epoch: float
    start_P: Tensor
    target_P: Tensor

    @property
    def still(self) -> bool:
        """True if the expert hardly moved, so that the normalised loss is meaningless."""
        moved = (self.target_P - self.start_P).square().sum()
        return bool(moved <= STILL * self.start_P.square().sum())


def cut(
    trajectory: Trajectory, expert: int, rule: WindowRule, iteration: int, draws: torch.Generator
) -> Window:
    """The window on ``trajectory`` drawn for ``iteration``."""
    epoch = rule.start(iteration, draws)
    target = min(epoch + rule.expert_epochs, float(trajectory.last))
    return Window(expert, epoch, trajectory.at(epoch), trajectory.at(target))


def expert_at(iteration: int, count: int, seed: int) -> int:
    """Index of the expert of ``iteration``: each of ``count`` experts once per pass, in a new order each pass."""
    order = torch.randperm(count, generator=generator(seed, "pass", iteration // count))
    return int(order[iteration % count])


Kind = Literal["convex", "snapshots"]
