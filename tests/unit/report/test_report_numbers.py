"""Numbers as the page writes them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayddl.report import numbers

NAN = math.nan


def plain(text: str) -> str:
    """The text with ordinary spaces."""
    return text.replace("\u00a0", " ")


@pytest.mark.parametrize(
    ("got", "expected"),
    [
        (numbers.percent(0.7118), "71.2 %"),
        (numbers.percent(1.0), "100.0 %"),
        (numbers.spread(0.7118, 0.0134), "71.2 ± 1.3 %"),
        (numbers.spread(0.7118, 0.0, several=False), "71.2 %"),
        (numbers.spread(0.7118, NAN), "71.2 %"),
        (numbers.points(0.2291), "+22.9"),
        (numbers.points(-0.0312), "−3.1"),
        (numbers.points(0.0001), "0.0"),
        (numbers.count(1437), "1,437"),
        (numbers.counted(1, "image"), "1 image"),
        (numbers.counted(10, "class"), "10 classes"),
        (numbers.counted(2, "batch"), "2 batches"),
        (numbers.counted(2, "epoch"), "2 epochs"),
        (numbers.duration(0.42), "0.42 s"),
        (numbers.duration(41.26), "41.3 s"),
        (numbers.duration(59.97), "1 min 00 s"),
        (numbers.duration(134), "2 min 14 s"),
        (numbers.duration(3 * 3600 + 300), "3 h 05 min"),
        (numbers.size(512), "512 B"),
        (numbers.size(48_213_000), "48.2 MB"),
        (numbers.size(999_999), "1.0 MB"),
        (numbers.factor(8.04), "8.0×"),
        (numbers.factor(25.3), "25×"),
        (numbers.figure(0), "0"),
        (numbers.figure(0.371248), "0.371"),
        (numbers.figure(123456), "123,456"),
        (numbers.figure(0.0000123), "1.23×10⁻⁵"),
        (numbers.figure(-2.5), "−2.50"),
        (numbers.figure(1e9), "10⁹"),
    ],
)
def test_number_reads_as_a_person_writes_it(got: str, expected: str) -> None:
    """Each kind of number has its unit, its decimals and its thousands."""
    assert plain(got) == expected


@pytest.mark.parametrize(
    "write",
    [
        numbers.percent,
        numbers.points,
        numbers.count,
        numbers.duration,
        numbers.size,
        numbers.factor,
        numbers.figure,
    ],
)
@pytest.mark.parametrize("value", [NAN, math.inf])
def test_what_is_not_finite_is_a_dash(write: object, value: float) -> None:
    """No writer shows ``nan`` or ``inf``."""
    assert callable(write)
    assert write(value) == numbers.ABSENT


@given(st.lists(st.integers(-40, 40), min_size=2, max_size=8, unique=True), st.integers(-9, 9))
def test_tick_labels_tell_ticks_apart(multiples: list[int], exponent: int) -> None:
    """Different ticks never read the same."""
    values = [m * 10.0**exponent for m in sorted(multiples)]

    labels = numbers.tick_labels(values)

    assert len(set(labels)) == len(values)


def test_power_labels_use_digits_in_the_middle_and_powers_outside() -> None:
    """Ticks of a logarithmic axis each have just the digits they need."""
    assert numbers.power_labels([1e-5, 0.001, 0.5, 1, 100, 1e6]) == [
        "10⁻⁵",
        "0.001",
        "0.5",
        "1",
        "100",
        "10⁶",
    ]
