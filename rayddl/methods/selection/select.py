"""Greedy selections from the features of one class.

Features are float32 ``[n, D]``; distances are Euclidean, computed in float64, some rows at a time. Of
rows that are equally good the first is taken.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROWS = 4096
"""Rows that are held in float64 at a time."""


def herding(features: Tensor, count: int, *, rows: int = ROWS) -> list[int]:
    """``count`` different rows, in the order taken, whose mean follows the mean of all (Welling 2009).

    Each step takes the row that brings the mean of those taken closest to the mean of all, as iCaRL and
    the distillation literature use it.
    """
    mean = _mean(features, rows)
    total = torch.zeros_like(mean)
    free = torch.ones(len(features), dtype=torch.bool)
    taken: list[int] = []
    for step in range(1, min(count, len(features)) + 1):
        # |mean - (total + row) / step| is least where the row is nearest to this point.
        distances = _squared(features, step * mean - total, rows)
        distances[~free] = torch.inf
        taken.append(_first(distances == distances.min()))
        free[taken[-1]] = False
        total += features[taken[-1]].double()
    return taken


def k_center(features: Tensor, count: int, *, rows: int = ROWS) -> list[int]:
    """``count`` different rows, in the order taken, each the farthest from those before it (Gonzalez 1985).

    The first is the row nearest to the mean, so that nothing is left to chance.
    """
    to_mean = _squared(features, _mean(features, rows), rows)
    taken = [_first(to_mean == to_mean.min())]
    nearest = torch.full_like(to_mean, torch.inf)
    free = torch.ones(len(features), dtype=torch.bool)
    while len(taken) < min(count, len(features)):
        free[taken[-1]] = False
        nearest = torch.minimum(nearest, _squared(features, features[taken[-1]].double(), rows))
        # Copies of a row that is taken are at distance 0, and still come after all that are farther.
        distances = torch.where(free, nearest, -1.0)
        taken.append(_first(distances == distances.max()))
    return taken


def _mean(features: Tensor, rows: int) -> Tensor:
    total = torch.zeros(features.shape[1], dtype=torch.float64)
    for part in features.split(rows):
        total += part.double().sum(0)
    return total / len(features)


def _squared(features: Tensor, point: Tensor, rows: int) -> Tensor:
    # Differences keep their digits where the expanded square would cancel them.
    return torch.cat([(part.double() - point).square_().sum(1) for part in features.split(rows)])


def _first(found: Tensor) -> int:
    return int(found.nonzero()[0])
