"""Axes."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from rayddl.report import scales
from rayddl.report.scales import Scale

finite = st.floats(-1e9, 1e9, allow_nan=False)


@given(finite, st.floats(1e-6, 1e9))
def test_ticks_are_few_round_and_inside(low: float, width: float) -> None:
    """Ticks lie in the range, evenly, and there are enough and not too many of them."""
    high = low + width
    assume(high > low and width > 1e-6 * abs(low))

    found = scales.ticks(low, high)

    slack = 1e-6 * width
    steps = [b - a for a, b in pairwise(found)]
    assert 2 <= len(found) <= 9
    assert low - slack <= found[0] <= found[-1] <= high + slack
    assert max(steps) == pytest.approx(min(steps), rel=1e-3)


@given(st.floats(-12, 6), st.floats(1.0, 12))
def test_log_ticks_are_few_and_inside(low: float, decades: float) -> None:
    """A logarithmic axis has some ticks whatever its span, and never a crowd."""
    found = scales.log_ticks(10**low, 10 ** (low + decades))

    assert 1 <= len(found) <= 9
    assert found == sorted(found)


@given(finite, st.floats(0.001, 1e6), st.floats(0, 1))
def test_scale_maps_its_ends_to_its_ends(low: float, width: float, share: float) -> None:
    """The range's ends fall on the drawing's ends, and what lies between falls between."""
    scale = Scale(low, low + width, 10, 110)

    assert scale(low) == pytest.approx(10)
    assert scale(low + width) == pytest.approx(110)
    assert 10 - 1e-3 <= scale(low + share * width) <= 110 + 1e-3


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_value_without_a_place_on_a_log_axis_is_nan(value: float) -> None:
    """Zero, negative and non-finite values are left out rather than drawn wrongly."""
    assert math.isnan(Scale(0.1, 10, 0, 100, log=True)(value))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.3, 1.2], False),
        ([0.001, 1.0], True),
        ([-1.0, 1000.0], False),
        ([0.0, 1000.0], False),
        ([5.0], False),
    ],
)
def test_log_axis_is_for_positive_values_over_decades(values: list[float], expected: bool) -> None:
    """Only positive values that span decades ask for a logarithmic axis."""
    assert scales.spans_decades(values) is expected


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True, min_value=None), max_size=6), st.booleans())
def test_padded_range_is_never_empty(values: list[float], log: bool) -> None:
    """Any values, also none, equal or not finite, give a range that can be drawn."""
    assume(all(not math.isfinite(v) or (1e-30 < abs(v) < 1e30) for v in values))

    low, high = scales.padded(values, log)

    assert low < high
    assert not log or low > 0
    assert all(low <= v <= high for v in values if math.isfinite(v) and (not log or v > 0))


@given(st.lists(st.floats(0, 300), max_size=8), st.floats(1, 40))
def test_labels_are_moved_apart_no_further_than_they_must(places: list[float], room: float) -> None:
    """No two overlap, their order stays, and where nothing overlaps nothing moves."""
    found = scales.apart(places, room)

    order = sorted(range(len(places)), key=lambda i: places[i])
    moved = [found[i] for i in order]
    assert all(b - a >= room - 1e-6 for a, b in pairwise(moved))
    assert sum(found) == pytest.approx(sum(places), abs=1e-6)
    if all(b - a >= room for a, b in pairwise(sorted(places))):
        assert found == pytest.approx(places)
