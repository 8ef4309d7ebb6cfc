"""Long noisy series made short enough to draw and to read. What is not finite is left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Summary:
    """For each x: mean, least and greatest of the finite values there, and their deviation."""

    x: Floats
    mean: Floats
    low: Floats
    high: Floats
    std: Floats
    count: Floats


def by_value(x: npt.ArrayLike, y: npt.ArrayLike) -> Summary:
    """The values of ``y`` summarised at each distinct ``x``."""
    xs, ys = np.asarray(x, np.float64), _finite(y)
    distinct, where = np.unique(xs, return_inverse=True)
    return _summarise(distinct, where, ys)


def by_bin(x: npt.ArrayLike, y: npt.ArrayLike, edges: Floats) -> Summary:
    """The values of ``y`` summarised in bins of ``x``; x becomes the bins' centres."""
    xs, ys = np.asarray(x, np.float64), _finite(y)
    inside = np.isfinite(xs) & (xs >= edges[0]) & (xs <= edges[-1])
    xs, ys = xs[inside], ys[inside]
    where = np.clip(np.searchsorted(edges, xs, side="right") - 1, 0, len(edges) - 2)
    return _summarise((edges[:-1] + edges[1:]) / 2, where, ys)


def thinned(x: npt.ArrayLike, y: npt.ArrayLike, at_most: int = 160) -> Summary:
    """A series cut into at most ``at_most`` runs of neighbours, each summarised at its mean x."""
    xs, ys = np.asarray(x, np.float64), _finite(y)
    buckets = min(at_most, len(xs))
    where = np.arange(len(xs)) * buckets // max(1, len(xs))
    centres = _summarise(np.zeros(buckets), where, xs).mean
    return _summarise(centres, where, ys)


def smoothed(y: npt.ArrayLike, window: int) -> Floats:
    """The mean over ``window`` neighbours, half to each side, fewer at the ends."""
    ys = _finite(y)
    half = window // 2
    known = np.isfinite(ys)
    totals = np.concatenate([[0.0], np.cumsum(np.where(known, ys, 0.0))])
    counts = np.concatenate([[0], np.cumsum(known)])
    first = np.maximum(np.arange(len(ys)) - half, 0)
    last = np.minimum(np.arange(len(ys)) + half + 1, len(ys))
    n = counts[last] - counts[first]
    means: Floats = np.where(n > 0, (totals[last] - totals[first]) / np.maximum(n, 1), np.nan)
    return means


def evenly(items: Sequence[int], at_most: int) -> list[int]:
    """At most ``at_most`` of the items, evenly spread, first and last among them."""
    if len(items) <= at_most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (at_most - 1))] for i in range(at_most)]


def _finite(values: npt.ArrayLike) -> Floats:
    array = np.asarray(values, np.float64)
    return np.where(np.isfinite(array), array, np.nan)


def _summarise(x: Floats, where: npt.NDArray[np.intp], y: Floats) -> Summary:
    order = np.argsort(where, kind="stable")
    bounds = np.searchsorted(where[order], np.arange(len(x) + 1)).tolist()
    groups = [y[order[a:b]] for a, b in pairwise(bounds)]
    known = [group[np.isfinite(group)] for group in groups]

    def each(statistic: Callable[[Floats], float]) -> Floats:
        return np.array([statistic(group) if len(group) else np.nan for group in known], np.float64)

    sizes = np.array([len(group) for group in known], np.float64)
    return Summary(np.asarray(x, np.float64), each(np.mean), each(np.min), each(np.max), each(np.std), sizes)
