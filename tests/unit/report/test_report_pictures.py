"""Distilled images on the page."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rayddl.report.gallery import sets_gallery
from rayddl.report.pictures import data_uri, gallery, mosaic
from rayddl.report.values import Pictures


def decoded(uri: str) -> Any:
    """The pixels of a data URI."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",", 1)[1]))))


def test_few_images_are_tiles_with_their_exact_pixels() -> None:
    """Each image is there losslessly, under its class's name, enlarged by a whole factor."""
    images = np.arange(3 * 3 * 4 * 4, dtype=np.uint8).reshape(3, 3, 4, 4)

    shown = gallery(Pictures(images, np.array([1, 0, 1]), ("cat", "dog")), "d/set/images", 10**6)

    assert [(s.label, len(s.tiles)) for s in shown.groups] == [("cat", 1), ("dog", 2)]
    assert np.array_equal(decoded(shown.groups[1].tiles[1].src), images[2].transpose(1, 2, 0))
    assert shown.groups[1].tiles[1].alt == "dog, distilled image 2 of 2"
    assert shown.width % 4 == 0
    assert shown.pixelated
    assert shown.note == ""


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_any_number_of_channels_can_be_seen(make: Any, channels: int) -> None:
    """Grey and colour keep their pixels; other channel counts are averaged."""
    pictures = make.pictures(("a", "b"), 2, 8, channels)

    shown = gallery(pictures, "f", 10**6)

    expected = (
        pictures.images[0].mean(axis=0).round() if channels != 3 else pictures.images[0].transpose(1, 2, 0)
    )
    assert np.array_equal(decoded(shown.groups[0].tiles[0].src), expected)


def test_one_image_makes_a_gallery(make: Any) -> None:
    """A set of a single image of a single class is shown large."""
    shown = gallery(make.pictures(("only",), 1, 8, 1), "f", 10**6)

    assert shown.single
    assert shown.width == 96


def test_many_images_are_one_sheet_per_class() -> None:
    """A sheet holds the class's images in order, ten to a row."""
    images = np.repeat(np.arange(26, dtype=np.uint8) * 9, 16 * 13).reshape(26 * 13, 1, 4, 4)
    labels = np.arange(26 * 13) // 13

    shown = gallery(Pictures(images, labels, tuple("abcdefghijklmnopqrstuvwxyz")), "f", 10**7)

    first = shown.groups[2]
    assert (shown.sheets, first.columns, first.rows) == (True, 10, 2)
    sheet = decoded(first.tiles[0].src)
    assert sheet.shape == (8, 40)
    assert set(sheet[:4].ravel()) == {18}
    assert set(sheet[4:, 12:].ravel()) == {255}
    assert first.tiles[0].alt == "c, 13\u00a0distilled images"
    assert (len(shown.first), len(shown.rest)) == (24, 2)


def test_large_set_stays_within_its_budget(make: Any) -> None:
    """Pictures are reduced step by step until they fit, and the note says how and where the rest is."""
    pictures = make.pictures(tuple(f"class {i}" for i in range(40)), 20, 32, 3)

    for budget in (1_000_000, 300_000, 60_000):
        shown = gallery(pictures, "distill-1/set/images", budget)
        assert sum(len(t.src) for s in shown.groups for t in s.tiles) <= budget
        assert len(shown.groups) == 40
        assert shown.note.endswith("All images, lossless, lie in distill-1/set/images.")

    assert "the first 10 of up to 20 images of each class" in shown.note


def test_label_outside_the_classes_has_a_name() -> None:
    """A class without a name is shown under its number."""
    shown = gallery(Pictures(np.zeros((1, 1, 2, 2), np.uint8), np.array([7]), ("a",)), "f", 10**6)

    assert shown.groups[0].label == "class 7"


def test_mosaic_takes_one_image_of_evenly_spread_classes(make: Any) -> None:
    """At most twenty images, five to a row, the first and last class among them."""
    pictures = make.pictures(tuple(f"class {i}" for i in range(100)), 2, 8, 1)

    found = mosaic(pictures)

    assert found is not None
    assert (found.columns, found.rows) == (5, 4)
    pixels = decoded(found.tiles[0].src)
    assert np.array_equal(pixels[:8, :8], pictures.images[0, 0])
    assert np.array_equal(pixels[-8:, -8:], pictures.images[198, 0])


@pytest.mark.parametrize(
    ("classes", "grid"), [(1, (1, 1)), (2, (2, 1)), (6, (3, 2)), (7, (3, 2)), (11, (5, 2)), (16, (4, 4))]
)
def test_mosaic_has_full_rows(make: Any, classes: int, grid: tuple[int, int]) -> None:
    """Whatever the number of classes, no place is empty: it would be a white square."""
    pictures = make.pictures(tuple(f"class {i}" for i in range(classes)), 1, 8, 1)
    pictures.images[:] = 7

    found = mosaic(pictures)

    assert found is not None
    assert (found.columns, found.rows) == grid
    assert (decoded(found.tiles[0].src) == 7).all()


def test_same_pixels_give_the_same_bytes() -> None:
    """Nothing in a picture depends on when it is written."""
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)

    assert data_uri(pixels) == data_uri(pixels)
    assert data_uri(pixels, 80) == data_uri(pixels, 80)


def test_a_gallery_of_sets_of_other_classes_goes_by_name(make: Any) -> None:
    """A set of fewer classes has its pictures in the rows of their names, and none in others; equally many classes may
    have other names.
    """
    first, fewer = make.pictures(("a", "b", "c"), 1, 8, 1), make.pictures(("c", "d"), 1, 8, 1)
    alike = make.pictures(("x", "y", "z"), 1, 8, 1)
    found = sets_gallery([("first", first), ("fewer", fewer), ("alike", alike)], 10**6)

    assert found is not None
    assert [[cell is not None for cell in cells] for _, cells in found.rows] == [
        [True, False, True],
        [True, False, True],
        [True, True, True],
    ]
