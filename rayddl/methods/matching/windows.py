"""Windows: where a student starts on an expert's trajectory, and what it is to reach."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rayddl.methods.trajectories.convex import Trajectory
from rayddl.seeds import generator

STILL = 1e-8
"""Squared share of the parameters' norm that an expert must move over a window to be matched."""


@dataclass(frozen=True)
class WindowRule:
    """How windows are drawn.

    MTT draws a whole start epoch from {0 .. max_start_epoch - 1}. MCT draws a real one from
    [0, max_start_epoch] (continuous sampling, section 3.3); with ``continuous`` off it draws whole
    ones, which is the paper's ablation. The target lies ``expert_epochs`` later, at E at most.

    ``grow_iterations`` widens the range with the iterations (DATM's curriculum; MCT's floating upper
    bound): the upper end goes linearly from ``first_start_epoch`` to ``max_start_epoch`` over that
    many iterations.
    """

    max_start_epoch: float
    expert_epochs: float
    continuous: bool
    min_start_epoch: float = 0.0
    first_start_epoch: float | None = None
    grow_iterations: int = 0

    def upper(self, iteration: int) -> float:
        """The upper end of the start range at ``iteration`` (counted from 0)."""
        if self.first_start_epoch is None or self.grow_iterations <= 0:
            return self.max_start_epoch
        share = min(iteration / self.grow_iterations, 1.0)
        return self.first_start_epoch + share * (self.max_start_epoch - self.first_start_epoch)

    def start(self, iteration: int, draws: torch.Generator) -> float:
        """A start epoch for ``iteration``."""
        low, high = self.min_start_epoch, self.upper(iteration)
        share = float(torch.rand((), generator=draws, dtype=torch.float64))
        if self.continuous:
            return low + share * (high - low)
        whole = max(int(high) - int(low), 1)
        return float(int(low) + min(int(share * whole), whole - 1))


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
