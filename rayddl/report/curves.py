"""Shortens and smooths long series for drawing. Values that are not finite are ignored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Summary:
    """For each x, the mean, minimum, maximum, standard deviation and count of the finite values. Shapes ``[N]``."""

    x: Floats
    mean: Floats
    low: Floats
    high: Floats
    std: Floats
    count: Floats


def by_value(x: npt.ArrayLike, y: npt.ArrayLike) -> Summary:
    """Summarise the values of ``y`` at each distinct ``x``."""
    xs, ys = np.asarray(x, np.float64), _finite(y)
    distinct, where = np.unique(xs, return_inverse=True)
    return _summarise(distinct, where, ys)


def by_bin(x: npt.ArrayLike, y: npt.ArrayLike, edges: Floats) -> Summary:
    """Summarise the values of ``y`` in bins of ``x``; the result's x are the centres of the bins."""
    xs, ys = np.asarray(x, np.float64), _finite(y)
    inside = np.isfinite(xs) & (xs >= edges[0]) & (xs <= edges[-1])
    xs, ys = xs[inside], ys[inside]
    where = np.clip(np.searchsorted(edges, xs, side="right") - 1, 0, len(edges) - 2)
    return _summarise((edges[:-1] + edges[1:]) / 2, where, ys)


def thinned(x: npt.ArrayLike, y: npt.ArrayLike, at_most: int = 160) -> Summary:
    """Summarise at most ``at_most`` segments of a series, each at its mean x."""
    xs, ys = np.asarray(x, np.float64), _finite(y)
    buckets = min(at_most, len(xs))
    where = np.arange(len(xs)) * buckets // max(1, len(xs))
    centres = _summarise(np.zeros(buckets), where, xs).mean
    return _summarise(centres, where, ys)


def smoothed(y: npt.ArrayLike, window: int) -> Floats:
    """Return the moving average over ``window`` values, half of them on each side; fewer at the ends."""
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
    """Return at most ``at_most`` evenly spaced items, including the first and the last."""
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
