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
    places = found[free, :2] / (400 - found[free, 2:])
    for place in places.T:
        assert np.quantile(place, [0.25, 0.5, 0.75]) == pytest.approx([0.25, 0.5, 0.75], abs=0.03)
    # Of the three numbers of a crop none follows from another.
    together = np.corrcoef(np.column_stack([places, found[free, 2]]).T)
    assert np.abs(together - np.eye(3)).max() < 0.05


def test_every_place_of_a_crop_occurs() -> None:
    """On 3 x 4 pixels a square of 2 stands at all of its six places, at the last row and column, too."""
    found = np.concatenate([crops(2, str(k), 3, 4, 5) for k in range(400)])
    assert {(int(t), int(x)) for t, x, side in found if side == 2} == {
        (t, x) for t in range(2) for x in range(3)
    }
    assert set(found[:, 2].tolist()) == {1, 2, 3}


def test_a_square_that_does_not_fit_is_drawn_again() -> None:
    """On a wide image shares of the area are those that fit a square, spread as torchvision's are."""
    found = np.concatenate([crops(1, str(k), 100, 200, 5) for k in range(1000)]).astype(float)
    area = found[:, 2] ** 2 / (100 * 200)
    expected = np.quantile(np.random.default_rng(0).uniform(SCALE[0], 0.5, 200_000), [0.1, 0.5, 0.9])
    assert np.quantile(area, [0.1, 0.5, 0.9]) == pytest.approx(expected, abs=0.02)
    assert found[:, 2].max() == 100


def test_crops_of_a_known_image_are_known() -> None:
    """Boxes follow from seed and name on any machine: changing them makes everybody's sets void."""
    assert SCALE == (0.08, 1.0)
    assert crops(3, "cat/1.jpg", 200, 300, 2).tolist() == [[45, 115, 143], [65, 98, 105]]
    assert ranks(3, ["cat/1.jpg", "cat/2.jpg"]).tolist() == [7470676417003241884, 30327745046085497]


def test_a_very_long_image_falls_back_to_its_centre() -> None:
    """Where no drawn square fits, the largest centred square is taken, of a tall image as of a wide one."""
    assert (crops(0, "strip", 1, 1000, 5) == np.array([0, 499, 1])).all()
    assert (crops(0, "strip", 1000, 1, 5) == np.array([499, 0, 1])).all()
    assert (crops(0, "strip", 3, 1000, 5) == np.array([0, 498, 3])).all()


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
