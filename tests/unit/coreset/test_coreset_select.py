"""Greedy selections against their definitions tried out on every image."""

from __future__ import annotations

import itertools
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rayddl.methods.selection.select import herding, k_center

WHOLE = st.lists(
    st.lists(st.integers(-3, 3), min_size=2, max_size=2), min_size=1, max_size=9
)  # few values: many ties


def herded(rows: list[list[int]], count: int) -> list[int]:
    """Herding in exact arithmetic: at each step every free row is tried."""
    size = len(rows)
    mean = [Fraction(sum(column), size) for column in zip(*rows, strict=True)]
    taken: list[int] = []
    for step in range(1, min(count, size) + 1):

        def distance(index: int, step: int = step) -> Fraction:
            sums = [sum(rows[i][d] for i in [*taken, index]) for d in range(len(mean))]
            return sum(((m - Fraction(s, step)) ** 2 for m, s in zip(mean, sums, strict=True)), Fraction(0))

        taken.append(min((i for i in range(size) if i not in taken), key=distance))
    return taken


def farthest(rows: list[list[int]], count: int) -> list[int]:
    """Greedy k-center in exact arithmetic."""
    size = len(rows)
    mean = [Fraction(sum(column), size) for column in zip(*rows, strict=True)]

    def squared(a: list[int], b: list[int] | list[Fraction]) -> Fraction:
        return sum(((Fraction(x) - y) ** 2 for x, y in zip(a, b, strict=True)), Fraction(0))

    taken = [min(range(size), key=lambda i: squared(rows[i], mean))]
    while len(taken) < min(count, size):
        free = [i for i in range(size) if i not in taken]
        taken.append(max(free, key=lambda i: min(squared(rows[i], rows[j]) for j in taken)))
    return taken


@settings(max_examples=150, deadline=None)
@given(WHOLE, st.integers(1, 10), st.integers(1, 12))
def test_herding_equals_its_definition(rows: list[list[int]], count: int, at_once: int) -> None:
    """Each step takes the row, and of equal ones the first, that brings the mean closest."""
    # Multiples of n! leave no fraction in the mean, so that ties are ties in floating point, too.
    exact = torch.tensor(rows, dtype=torch.float32) * 2520
    scaled = [[2520 * v for v in row] for row in rows]

    assert herding(exact, count, rows=at_once) == herded(scaled, count)


@settings(max_examples=150, deadline=None)
@given(WHOLE, st.integers(1, 10), st.integers(1, 12))
def test_k_center_equals_its_definition(rows: list[list[int]], count: int, at_once: int) -> None:
    """The first row is nearest to the mean, each other one farthest from those before it."""
    exact = torch.tensor(rows, dtype=torch.float32) * 2520
    scaled = [[2520 * v for v in row] for row in rows]

    assert k_center(exact, count, rows=at_once) == farthest(scaled, count)


def random(count: int, width: int) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("select", [herding, k_center])
def test_portions_change_nothing(select) -> None:
    """However many rows are held at a time, the same are taken, each once."""
    features = random(101, 33) + 1000.0
    whole = select(features, 40, rows=1000)

    assert len(set(whole)) == 40
    for rows in (1, 7, 100):
        assert select(features, 40, rows=rows) == whole
    assert sorted(select(features, 500)) == list(range(101))


def test_herding_follows_the_mean_better_than_chance() -> None:
    """The mean of ten herded rows is far nearer to the mean of all than that of any ten in a row."""
    features = random(200, 8).double()
    mean = features.mean(0)
    herded_error = (features[herding(features.float(), 10)].mean(0) - mean).norm()
    others = [(part.mean(0) - mean).norm() for part in features.split(10)]

    assert float(herded_error) < 0.3 * float(min(others))


def test_k_center_is_at_most_twice_the_optimum() -> None:
    """The largest distance to a chosen row is at most twice that of the best possible choice."""
    features = random(12, 2)
    distances = torch.cdist(features, features)

    def radius(chosen: tuple[int, ...] | list[int]) -> float:
        return float(distances[:, list(chosen)].min(1).values.max())

    best = min(radius(c) for c in itertools.combinations(range(12), 3))
    assert radius(k_center(features, 3)) <= 2 * best
