"""Lanes that are advanced in turns, and how many of them to take."""

from __future__ import annotations

from collections.abc import Generator

import torch
from hypothesis import given
from hypothesis import strategies as st

from rayddl.methods.trajectories.expert import GAIN, Lanes, worthwhile

CPU = torch.device("cpu")


def lane(name: str, steps: int, said: list[str]) -> Generator[None, None, str]:
    """Says its name at every step, and returns it in capitals."""
    for _ in range(steps):
        said.append(name)
        yield
    return name.upper()


def test_every_lane_takes_one_step_a_turn_until_it_ends() -> None:
    """Steps alternate; a lane that ends hands its result over with its place, and the others go on."""
    said: list[str] = []
    lanes = Lanes([lane("a", 1, said), lane("b", 3, said), lane("c", 2, said)], CPU)
    turns = []
    while lanes:
        turns.append(lanes.turn())

    assert "".join(said) == "abcbcb"
    assert turns == [[], [(0, "A")], [(2, "C")], [(1, "B")]]


def test_no_lanes_are_over_at_once() -> None:
    """Nothing to do counts as done."""
    assert not Lanes([], CPU)


@given(st.lists(st.floats(0.1, 10), min_size=8, max_size=8), st.integers(1, 200))
def test_doubled_as_long_as_it_gains(gains: list[float], most: int) -> None:
    """The number is a power of two, within ``most``; every doubling up to it gained, and the next did not."""
    rates = [1.0]
    for gain in gains:
        rates.append(rates[-1] * gain)
    asked: list[int] = []

    def rate(count: int) -> float:
        asked.append(count)
        return rates[count.bit_length() - 1]

    best = worthwhile(rate, most)

    assert best <= most
    assert best & (best - 1) == 0
    taken = best.bit_length() - 1
    assert all(rates[i + 1] >= GAIN * rates[i] for i in range(taken))
    assert 2 * best > most or rates[taken + 1] < GAIN * rates[taken]
    assert len(set(asked)) == len(asked)


def test_as_many_as_allowed_where_every_doubling_gains() -> None:
    """Doubled up to the most itself, where that is a power of two."""
    assert [worthwhile(float, most) for most in (1, 2, 7, 8, 9)] == [1, 2, 4, 8, 8]
