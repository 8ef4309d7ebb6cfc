"""Selection: the best crop of an image, the best images of a class."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rayddl.methods.patches.select import Best, CropRows, best_crop, best_of_class

# Few distinct scores, so that ties are common.
SCORES = st.sampled_from([-3.0, -2.5, -1.0, -0.25, 0.0, math.nan])


def _rows(found: list[tuple[int, float, int]]) -> CropRows:
    label, score, crop = zip(*found, strict=True) if found else ((), (), ())
    count = len(found)
    return CropRows(
        np.arange(count, dtype=np.int64),
        np.array(label, np.int32),
        np.array(score, np.float32),
        np.array(crop, np.int32),
        np.zeros((count, 3), np.int32),
    )


def _expected(found: list[tuple[int, float, int]], most: int) -> list[int]:
    """Brute force: sort each class's images in plain Python."""
    result = []
    for label in sorted({row[0] for row in found}):
        members = [(i, *row) for i, row in enumerate(found) if row[0] == label]
        members.sort(key=lambda m: (math.inf if math.isnan(m[2]) else -m[2], m[0]))
        result += [m[0] for m in members[:most]]
    return result


@given(st.lists(st.tuples(st.integers(0, 4), SCORES, st.integers(0, 4)), max_size=60), st.integers(1, 5))
def test_the_best_of_each_class_are_those_of_a_plain_sort(
    found: list[tuple[int, float, int]], most: int
) -> None:
    """Scores from high to low, ties by image, not-a-number last."""
    assert best_of_class(_rows(found), most).image.tolist() == _expected(found, most)


@given(
    st.lists(st.tuples(st.integers(0, 4), SCORES, st.integers(0, 4)), max_size=60),
    st.integers(1, 5),
    st.randoms(use_true_random=False),
)
def test_portions_and_order_of_arrival_change_nothing(found, most, random) -> None:  # type: ignore[no-untyped-def]
    """Rows that come shuffled and in uneven portions leave the same winners as all at once."""
    rows, best = _rows(found), Best(most, 5)
    order = list(range(len(found)))
    random.shuffle(order)
    while order:
        size = random.randint(1, len(order))
        best.add(rows.take(np.array(order[:size])))
        order = order[size:]
    assert best.rows().image.tolist() == _expected(found, most)


def test_what_is_held_stays_bounded() -> None:
    """A long stream never holds more than what is kept and as much again."""
    best, draws = Best(2, 3), np.random.default_rng(0)
    for portion in range(200):
        rows = _rows([(int(draws.integers(3)), float(draws.normal()), 0) for _ in range(4)])
        best.add(CropRows(rows.image + 4 * portion, *rows.columns()[1:]))
        # Counted in the arrays themselves: the class counts its rows, too.
        held = sum(part.score.size for part in [best._kept, *best._waiting])
        assert held <= 2 * 2 * 3


def test_the_best_crop_is_the_first_of_equals_and_never_nan() -> None:
    """Ties go to the earlier crop; a broken score loses against any other."""
    scores = np.array([[-2, -1, -1], [np.nan, -9, -9], [np.nan, np.nan, np.nan]], np.float32)
    assert best_crop(scores).tolist() == [1, 1, 0]


def test_nothing_joined_is_no_rows() -> None:
    """Of no parts there are no rows, and no winners."""
    assert len(CropRows.joined([])) == 0
    assert Best(2, 3).rows().box.shape == (0, 3)
