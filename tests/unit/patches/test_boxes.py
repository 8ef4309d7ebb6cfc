"""Crop boxes and the pre-selected subset."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayddl.methods.patches.boxes import SCALE, crops, preselected, ranks


@given(st.integers(0, 2**40), st.text(max_size=20), st.integers(1, 300), st.integers(1, 300))
def test_every_crop_is_a_square_inside_the_image(seed: int, name: str, height: int, width: int) -> None:
    """No crop leaves the image, whatever its size, one pixel included."""
    found = crops(seed, name, height, width, 5)
    top, left, side = found.T
    assert found.shape == (5, 3)
    assert (side >= 1).all()
    assert (found >= 0).all()
    assert (top + side <= height).all()
    assert (left + side <= width).all()


def test_crops_depend_on_seed_and_name_alone() -> None:
    """The same image gets the same boxes again, another name or seed others."""
    once = crops(3, "cat/1.jpg", 200, 300, 5)
    assert np.array_equal(once, crops(3, "cat/1.jpg", 200, 300, 5))
    assert not np.array_equal(once, crops(3, "cat/2.jpg", 200, 300, 5))
    assert not np.array_equal(once, crops(4, "cat/1.jpg", 200, 300, 5))


def test_more_crops_begin_with_the_same_ones() -> None:
    """Asking for more crops does not move the first ones."""
    assert np.array_equal(crops(0, "a", 100, 120, 3), crops(0, "a", 100, 120, 8)[:3])


def test_areas_and_places_are_spread_evenly() -> None:
    """On a square image areas are uniform between 8 and 100 per cent, and so are free places."""
    found = np.concatenate([crops(1, str(k), 400, 400, 5) for k in range(2000)]).astype(float)
    area = found[:, 2] ** 2 / 400**2
    expected = np.quantile(np.random.default_rng(0).uniform(*SCALE, 200_000), [0.1, 0.5, 0.9])
    assert np.quantile(area, [0.1, 0.5, 0.9]) == pytest.approx(expected, abs=0.02)
    free = found[:, 2] < 350
    place = found[free, 0] / (400 - found[free, 2])
    assert np.quantile(place, [0.25, 0.5, 0.75]) == pytest.approx([0.25, 0.5, 0.75], abs=0.03)


def test_a_very_long_image_falls_back_to_its_centre() -> None:
    """Where no drawn square fits, the largest centred square is taken."""
    assert (crops(0, "strip", 1, 1000, 5) == np.array([0, 499, 1])).all()


def test_the_subset_has_mipc_of_each_class_and_is_the_same_in_any_order() -> None:
    """Which images are looked at follows from their names, not from the order of the listing."""
    names = [f"c{k % 7}/{k}.png" for k in range(400)]
    labels = np.array([k % 7 for k in range(400)], np.int32)
    picked = preselected(5, names, labels, 20)
    assert (np.bincount(labels[picked]) == 20).all()
    assert (np.diff(picked) > 0).all()
    order = np.random.default_rng(0).permutation(400)
    again = preselected(5, [names[k] for k in order], labels[order], 20)
    assert {names[k] for k in picked} == {names[order[k]] for k in again}
    assert {names[k] for k in preselected(6, names, labels, 20)} != {names[k] for k in picked}


def test_a_small_class_is_taken_whole() -> None:
    """Classes with fewer images than asked for give all they have."""
    labels = np.array([0] * 3 + [1] * 50, np.int32)
    picked = preselected(0, [str(k) for k in range(53)], labels, 10)
    assert np.bincount(labels[picked]).tolist() == [3, 10]


def test_ranks_have_no_duplicates_among_many_names() -> None:
    """Eight bytes of hash tell a hundred thousand names apart."""
    assert len(np.unique(ranks(0, (str(k) for k in range(100_000))))) == 100_000
