"""Long series made short."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayddl.report import curves

series = st.lists(st.floats(-1e6, 1e6) | st.just(math.nan) | st.just(math.inf), min_size=1, max_size=60)


def test_by_value_summarises_equal_x_by_hand() -> None:
    """Mean, range, deviation and count of the finite values at each x."""
    found = curves.by_value([2, 1, 2, 1, 3], [4.0, 1.0, 8.0, np.nan, np.inf])

    assert found.x.tolist() == [1, 2, 3]
    assert found.mean.tolist()[:2] == [1.0, 6.0]
    assert (found.low[1], found.high[1], found.std[1]) == (4.0, 8.0, 2.0)
    assert found.count.tolist() == [1, 2, 0]
    assert math.isnan(found.mean[2])


def test_by_bin_puts_the_last_edge_into_the_last_bin() -> None:
    """Bins are closed on the left; the range's end belongs to the last one; the rest is left out."""
    found = curves.by_bin([0.0, 1.0, 2.0, 5.0, np.nan], [1.0, 2.0, 3.0, 9.0, 9.0], np.array([0.0, 1.0, 2.0]))

    assert found.x.tolist() == [0.5, 1.5]
    assert found.mean.tolist() == [1.0, 2.5]


@given(series, st.integers(1, 20))
def test_thinned_keeps_the_extremes(ys: list[float], at_most: int) -> None:
    """However short the summary, the least and greatest finite values survive."""
    finite = [y for y in ys if math.isfinite(y)]

    found = curves.thinned(np.arange(len(ys)), ys, at_most)

    assert len(found.x) == min(at_most, len(ys))
    if finite:
        assert np.nanmin(found.low) == min(finite)
        assert np.nanmax(found.high) == max(finite)


@given(series, st.integers(1, 15))
def test_smoothed_equals_the_mean_of_finite_neighbours(ys: list[float], window: int) -> None:
    """The running mean is what averaging the neighbours one by one gives."""
    half = window // 2

    found = curves.smoothed(ys, window)

    for i, value in enumerate(found):
        near = [y for y in ys[max(0, i - half) : i + half + 1] if math.isfinite(y)]
        if near:
            assert value == pytest.approx(sum(near) / len(near), abs=1e-6)
        else:
            assert math.isnan(value)


@given(st.integers(1, 200), st.integers(2, 50))
def test_evenly_keeps_first_and_last(many: int, at_most: int) -> None:
    """The choice is bounded, rising, without repeats, and holds both ends."""
    found = curves.evenly(range(many), at_most)

    assert len(found) == min(many, at_most)
    assert found == sorted(set(found))
    assert (found[0], found[-1]) == (0, many - 1)
