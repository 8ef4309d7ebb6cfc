"""Scores that compare a set's accuracy with random images and with the whole data, among them DD-Ranking's.

DD-Ranking (Li et al. 2025, arXiv 2505.13300) removes the effect of soft labels and augmentation from an
accuracy. All accuracies are in 0..1.

- *Hard-label recovery*, HLR: accuracy of the whole data minus that of the set, with hard labels. 0 is perfect.
- *Improvement over random*, IOR: accuracy of the set minus that of as many random images, same protocol.
- *Label-robust score*: ``w IOR - (1 - w) HLR``, mapped from [-1, 1] to [0, 1] by :func:`normalised`.
- *Augmentation-robust score*: ``w`` times the IOR with augmentation plus ``1 - w`` times the IOR without,
mapped to [0, 1] in the same way.

The soft-label recovery is HLR with the observer's soft labels for both. It is not part of DD-Ranking's
published scores.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

WEIGHT = 0.5
"""DD-Ranking's weight of the first of a score's two parts."""

Accuracies = Mapping[str, Sequence[float]]
"""For each training data set, by name, the accuracies of all seeds, in order, in 0..1."""


def normalised(value: float) -> float:
    """``(e^value - e^-1) / (e - e^-1)``: 0 at -1, 1 at 1."""
    return (math.exp(value) - math.exp(-1)) / (math.e - math.exp(-1))


def label_robust(improvement: float, recovery: float, weight: float = WEIGHT) -> float:
    """The label-robust score of an improvement over random and a hard-label recovery, in 0..1."""
    return normalised(weight * improvement - (1 - weight) * recovery)


def augmentation_robust(augmented: float, bare: float, weight: float = WEIGHT) -> float:
    """The augmentation-robust score of the improvements over random with and without augmentation, in 0..1."""
    return normalised(weight * augmented + (1 - weight) * bare)


def scores(found: Accuracies, *, soft: bool) -> dict[str, dict[str, float]]:
    """All scores that can be computed from ``found``, each with ``mean`` and ``std`` over seeds.

    ``soft``: the names without suffix are students with soft labels; names ending in ``-hard`` are those
    with hard labels. A seed's score uses the students of that seed only.
    """
    hard = "-hard" if soft else ""
    taken = {
        "over_random": _less(found, "distilled", "random"),
        "of_whole": _share(found),
        "hlr": _less(found, f"whole{hard}", f"distilled{hard}"),
        "slr": _less(found, "whole", "distilled") if soft else [],
        "over_random_bare": _less(found, "distilled-bare", "random-bare"),
    }
    pairs = zip(taken["over_random"], taken["hlr"], strict=False)
    taken["lrs"] = [label_robust(improvement, recovery) for improvement, recovery in pairs]
    pairs = zip(taken["over_random"], taken["over_random_bare"], strict=False)
    taken["ars"] = [augmentation_robust(augmented, bare) for augmented, bare in pairs]
    return {
        name: {"mean": statistics.fmean(values), "std": statistics.pstdev(values)}
        for name, values in taken.items()
        if values
    }


def _less(found: Accuracies, first: str, second: str) -> list[float]:
    return [a - b for a, b in zip(found.get(first, ()), found.get(second, ()), strict=False)]


def _share(found: Accuracies) -> list[float]:
    pairs = zip(found.get("distilled", ()), found.get("whole", ()), strict=False)
    return [mine / whole for mine, whole in pairs if whole > 0]
