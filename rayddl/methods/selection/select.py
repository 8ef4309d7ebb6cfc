"""Selections from the features, or from the observer's scores, of one class.

Features are float32 ``[n, D]``, in memory or mapped from a file; distances are Euclidean, computed in float64 in
portions of rows. Besides the features, a selection holds some numbers of each row, and
:data:`~rayddl.methods.selection.rows.PORTION` bytes. The first of several equally good rows is selected.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from rayddl.methods.selection.rows import HELD, FeatureRows, portion

PATTERNS = 10
"""Most patterns into which :func:`balanced` divides a class."""
OUTLIERS = 0.1
"""Share of a pattern's rows, the farthest from its centre, that :func:`balanced` takes last."""
ROWS = 4096
"""Most rows converted to float64 at a time."""


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


def balanced(features: Tensor, count: int, *, rows: int = ROWS, held: int = HELD) -> list[int]:
    """Indices of ``count`` different rows, half of them at the centres and half at the margins of the class's patterns.

    After BPS (CVPR 2026), which models patterns and margins otherwise: patterns are the k-means clusters of the rows of
    length 1, one for every two of ``count``, up to :data:`PATTERNS`. Each has a share of ``count`` by its size: of it
    the larger half are the rows nearest to the centre, the others the farthest, without the :data:`OUTLIERS` farthest.
    The rows of length 1 are in a file if they have more than ``held`` bytes.
    """
    count = min(count, len(features))
    patterns = min(max(1, count // 2), PATTERNS)
    pattern, centres = _clustered(features, patterns, rows, held)
    parts = zip(_unit(features, rows), pattern.split(portion(features.shape[1], rows)), strict=True)
    far = torch.cat([(part - centres[own]).square_().sum(1) for part, own in parts])
    taken: list[int] = []
    for own, share in enumerate(_shares(pattern.bincount(minlength=patterns).tolist(), count)):
        members = (pattern == own).nonzero().flatten()
        near = members[far[members].argsort(stable=True)].tolist()
        centre = near[: (share + 1) // 2]
        outliers = min(int(OUTLIERS * len(near)), len(near) - share)
        margin = near[len(near) - outliers - share // 2 : len(near) - outliers]
        taken += [*centre, *margin]
    return taken


def _clustered(features: Tensor, patterns: int, rows: int, held: int) -> tuple[Tensor, Tensor]:
    """The cluster of each row, int64 ``[n]``, and the centres, float64 ``[patterns, D]``."""
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    unit = FeatureRows(held)
    for part in _unit(features, rows):
        unit.add(part)
    # The last bits of a centre depend on the number of threads. Without a copy, rows in a file stay there.
    with threadpool_limits(1):
        found = KMeans(patterns, n_init=3, random_state=0, copy_x=False).fit(unit.joined().numpy())
    return torch.from_numpy(found.labels_).long(), torch.from_numpy(found.cluster_centers_)


def _unit(features: Tensor, rows: int) -> Iterator[Tensor]:
    """The rows with length 1, in float64, in portions."""
    for part in features.split(portion(features.shape[1], rows)):
        yield torch.nn.functional.normalize(part.double(), dim=1)


def _shares(sizes: list[int], count: int) -> list[int]:
    """``count`` divided by ``sizes``, of which each is at least its share; the largest remainders get one more."""
    exact = [size * count / sum(sizes) for size in sizes]
    shares = [int(share) for share in exact]
    order = sorted(range(len(sizes)), key=lambda i: (shares[i] - exact[i], i))
    for i in order[: count - sum(shares)]:
        shares[i] += 1
    return shares


def easiest(scores: Tensor, count: int) -> list[int]:
    """The ``count`` rows with the highest of ``scores`` ``[n]``: RDED's selection, of whole images."""
    return scores.argsort(descending=True, stable=True)[:count].tolist()


def medium(scores: Tensor, count: int) -> list[int]:
    """The ``count`` rows in the middle of the order of ``scores`` ``[n]``: neither easy nor mislabelled."""
    count = min(count, len(scores))
    first = (len(scores) - count) // 2
    return scores.argsort(descending=True, stable=True)[first : first + count].tolist()


def _mean(features: Tensor, rows: int) -> Tensor:
    total = torch.zeros(features.shape[1], dtype=torch.float64)
    for part in features.split(portion(features.shape[1], rows)):
        total += part.double().sum(0)
    return total / len(features)


def _squared(features: Tensor, point: Tensor, rows: int) -> Tensor:
    # Differences are accurate; the expanded square would lose digits by cancellation.
    parts = features.split(portion(features.shape[1], rows))
    return torch.cat([(part.double() - point).square_().sum(1) for part in parts])


def _first(found: Tensor) -> int:
    return int(found.nonzero()[0])
