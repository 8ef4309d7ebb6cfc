"""Search spaces: what entries give, when they count, and what lies at their ends."""

from __future__ import annotations

import math
from collections import Counter
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from rayddl.stages.tune.space import LAST, Entry, assemble, corners, draw, every, in_order

ENTRIES = [
    Entry(uniform=(-2.5, 7.25)),
    Entry(loguniform=(1e-5, 30.0)),
    Entry(randint=(-3, 11)),
    Entry(quniform=(0.0, 1.0, 0.1)),
    Entry(quniform=(1.0, 2.0, 0.3)),
    Entry(choice=("a", "b", "c")),
    Entry(grid=(1, 2.5, None)),
]
PLACES = st.floats(0, 1, exclude_max=True)


def nothing(key: str) -> Any:
    del key


@given(entry=st.sampled_from(ENTRIES), place=PLACES)
def test_a_value_has_the_place_that_gives_it(entry: Entry, place: float) -> None:
    """Going from a place to its value and back to a place leads to the same value."""
    value = entry.at(place)
    back = entry.place(value)

    assert back is not None
    assert 0 <= back < 1
    assert entry.at(back) == (
        value if entry.ends is None or entry.randint else pytest.approx(value, rel=1e-3)
    )


@given(place=PLACES)
def test_ranges_are_kept(place: float) -> None:
    """Rounding to a few digits never leads out of a range, and steps are hit exactly."""
    assert -2.5 <= ENTRIES[0].at(place) <= 7.25
    assert 1e-5 <= ENTRIES[1].at(place) <= 30
    assert ENTRIES[2].at(place) in range(-3, 12)
    assert ENTRIES[3].at(place) in [float(f"{i / 10:.12g}") for i in range(11)]
    assert ENTRIES[4].at(place) in [1.0, 1.3, 1.6, 1.9]


def test_a_range_of_whole_numbers_has_both_ends() -> None:
    """``randint: [2, 4]`` gives 2, 3 and 4, each as often."""
    found = Counter(Entry(randint=(2, 4)).at(i / 300) for i in range(300))

    assert found == {2: 100, 3: 100, 4: 100}


def test_factors_are_equally_likely() -> None:
    """The middle of a logarithmic range is its geometric mean."""
    assert Entry(loguniform=(0.01, 100.0)).at(0.5) == 1.0


def test_values_outside_have_no_place() -> None:
    """What an entry cannot give has no place in it; true is no number."""
    assert Entry(uniform=(0.0, 1.0)).place(1.5) is None
    assert Entry(uniform=(0.0, 1.0)).place(True) is None
    assert Entry(uniform=(0.0, 1.0)).place("x") is None
    assert Entry(choice=("a", "b")).place("c") is None


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ({}, "expected exactly one of uniform, loguniform, randint, quniform, choice, grid; found none"),
        ({"uniform": (0, 1), "choice": (1,)}, "found uniform, choice"),
        ({"uniform": (1, 1)}, "uniform must go from a smaller to a larger value, not 1 to 1"),
        ({"loguniform": (0, 1)}, "loguniform must start above 0, not at 0"),
        ({"quniform": (0, 1, 2)}, "quniform's step must fit between its ends, 2 does not"),
    ],
)
def test_entries_that_cannot_be_are_refused(written: dict[str, Any], expected: str) -> None:
    """An entry is one form with sensible numbers; the message says what was found."""
    with pytest.raises(ValidationError) as error:
        Entry(**written)

    assert expected in str(error.value)


SPACE = {
    "rate": Entry(loguniform=(0.1, 10.0), when={"labels": "learned"}),
    "labels": Entry(choice=("hard", "learned")),
    "warm": Entry(choice=(True, False), when={"rate": [0.1, 1.0], "kind": "x"}),
}


def test_a_condition_decides_whether_a_setting_is_searched() -> None:
    """A conditional entry is asked for only where the settings it names are as it wants them."""
    picks = {"rate": 1.0, "labels": "learned", "warm": True}

    def settings(base: dict[str, Any], **changed: Any) -> dict[str, Any]:
        return assemble(SPACE, base.get, lambda key, _: {**picks, **changed}[key])

    assert settings({"kind": "x"}) == picks
    assert settings({"kind": "y"}) == {"rate": 1.0, "labels": "learned"}
    assert settings({"kind": "x"}, rate=3.0) == {"rate": 3.0, "labels": "learned"}
    assert settings({"kind": "x"}, labels="hard") == {"labels": "hard"}


def test_conditions_come_before_what_hangs_on_them() -> None:
    """Keys are asked for in an order in which conditions are known; a circle is refused."""
    assert in_order(SPACE) == ["labels", "rate", "warm"]
    circle = {k: Entry(choice=(1,), when={other: 1}) for k, other in (("a", "b"), ("b", "a"))}
    with pytest.raises(ValueError, match="conditions go round in a circle: a, b"):
        in_order(circle)


def test_a_draw_hangs_on_its_number_alone() -> None:
    """The same trial gets the same settings whoever asks, other trials get others."""
    space = {"a": Entry(uniform=(0.0, 1.0)), "b": Entry(randint=(0, 1000))}
    one, again, other = (draw(space, nothing, n, n) for n in (3, 3, 4))

    assert one == again
    assert one != other


def test_grids_take_turns() -> None:
    """Beside random settings, every combination of the grids comes equally often."""
    space = {"g": Entry(grid=(1, 2, 3)), "h": Entry(grid=("x", "y")), "r": Entry(uniform=(0.0, 1.0))}
    found = Counter((s["g"], s["h"]) for s in (draw(space, nothing, n, n) for n in range(12)))

    assert found == dict.fromkeys(product((1, 2, 3), ("x", "y")), 2)


def test_a_whole_grid_has_each_combination_once() -> None:
    """Conditional entries do not multiply where they are not in play."""
    space = {
        "labels": Entry(choice=("hard", "learned")),
        "rate": Entry(grid=(1, 2), when={"labels": "learned"}),
    }

    assert every(space, nothing) == [
        {"labels": "hard"}, {"labels": "learned", "rate": 1}, {"labels": "learned", "rate": 2},
    ]  # fmt: skip
    with pytest.raises(ValueError, match="a grid has lists of values only, and r is a range"):
        every({"r": Entry(uniform=(0.0, 1.0))}, nothing)


def test_corners_hold_every_end() -> None:
    """Every end of a range and every value of a list is among the corners, conditions or not."""
    found = list(corners(SPACE, {"kind": "x"}.get))

    assert {s["labels"] for s in found} == {"hard", "learned"}
    assert {0.1, 10.0} <= {s["rate"] for s in found if "rate" in s}
    assert {True, False} == {s["warm"] for s in found if "warm" in s}
    assert math.nextafter(LAST, 2) == 1.0
