"""Greedy selections from the features of one class.

Features are float32 ``[n, D]``; distances are Euclidean, computed in float64 in portions of rows. The
first of several equally good rows is selected.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROWS = 4096
"""Rows converted to float64 at a time."""


def herding(features: Tensor, count: int, *, rows: int = ROWS) -> list[int]:
    """Indices of ``count`` different rows, in order of selection, whose mean is close to the mean of all
    (Welling 2009). Each step selects the row that brings the mean of the selected rows closest to the mean
    of all, as in iCaRL and the distillation literature.
    """
    mean = _mean(features, rows)
    total = torch.zeros_like(mean)
    free = torch.ones(len(features), dtype=torch.bool)
    taken: list[int] = []
    for step in range(1, min(count, len(features)) + 1):
        # |mean - (total + row) / step| is smallest for the row nearest to this point.
        distances = _squared(features, step * mean - total, rows)
        distances[~free] = torch.inf
        taken.append(_first(distances == distances.min()))
        free[taken[-1]] = False
        total += features[taken[-1]].double()
    return taken


def k_center(features: Tensor, count: int, *, rows: int = ROWS) -> list[int]:
    """Indices of ``count`` different rows, in order, each the farthest from those before it (Gonzalez 1985).

    The first is the row nearest to the mean, so that the result is deterministic.
    """
    to_mean = _squared(features, _mean(features, rows), rows)
    taken = [_first(to_mean == to_mean.min())]
    nearest = torch.full_like(to_mean, torch.inf)
    free = torch.ones(len(features), dtype=torch.bool)
    while len(taken) < min(count, len(features)):
        free[taken[-1]] = False
        nearest = torch.minimum(nearest, _squared(features, features[taken[-1]].double(), rows))
        # Selected rows get -1, so that copies of them, at distance 0, can still be selected, last.
        distances = torch.where(free, nearest, -1.0)
        taken.append(_first(distances == distances.max()))
    return taken


def _mean(features: Tensor, rows: int) -> Tensor:
    total = torch.zeros(features.shape[1], dtype=torch.float64)
    for part in features.split(rows):
        total += part.double().sum(0)
    return total / len(features)


def _squared(features: Tensor, point: Tensor, rows: int) -> Tensor:
    # Differences are accurate; the expanded square would lose digits by cancellation.
    return torch.cat([(part.double() - point).square_().sum(1) for part in features.split(rows)])


def _first(found: Tensor) -> int:
    return int(found.nonzero()[0])
