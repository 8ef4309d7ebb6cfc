"""What soft-label training shows, against the same done image by image with torchvision's functions."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.functional import hflip, resized_crop

from rayddl.methods.training import mixes
from rayddl.methods.training.mixes import Draws, draw, shown


def pixels(count: int, height: int, width: int, channels: int = 3, seed: int = 0) -> Tensor:
    return torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(seed))


def epoch(
    count: int, sides: tuple[int, int], into: tuple[int, int], *, batch: int, factor: int = 1, seed: int = 0
) -> Draws:
    draws = torch.Generator().manual_seed(seed)
    return draw(count, sides, into, batch=batch, factor=factor, cutmix=True, generator=draws)


def shuffled(image: Tensor, order: list[int], dim: int) -> Tensor:
    """The strips of an image along ``dim`` put in ``order``; the last one is the thickest."""
    factor, side = len(order), image.shape[dim]
    thick = side // factor
    ends = [k * thick for k in range(factor)] + [side]
    strips = [image.narrow(dim, ends[k], ends[k + 1] - ends[k]) for k in range(factor)]
    return torch.cat([strips[k] for k in order], dim)


def one_by_one(images: Tensor, draws: Draws, into: tuple[int, int]) -> Tensor:
    """The batch, an image at a time."""
    alone = []
    for n, image in enumerate(images):
        seen = shuffled(shuffled(image, draws.rows[n].tolist(), 1), draws.columns[n].tolist(), 2)
        seen = resized_crop(
            seen, *draws.boxes[n].tolist(), list(into), InterpolationMode.BILINEAR, antialias=True
        )
        alone.append(hflip(seen) if draws.flipped[n] else seen)
    mixed = [image.clone() for image in alone]
    top, left, bottom, right = draws.cuts[0].tolist()
    for n, partner in enumerate(draws.partners.tolist()):
        mixed[n][:, top:bottom, left:right] = alone[partner][:, top:bottom, left:right]
    return torch.stack(mixed)


@settings(deadline=None, max_examples=30)
@given(
    sides=st.tuples(st.integers(4, 40), st.integers(4, 40)),
    into=st.tuples(st.integers(4, 40), st.integers(4, 40)),
    factor=st.integers(1, 4),
    seed=st.integers(0, 10_000),
)
@example(sides=(4, 5), into=(6, 6), factor=4, seed=0)
def test_a_batch_equals_torchvision_image_by_image(
    sides: tuple[int, int], into: tuple[int, int], factor: int, seed: int
) -> None:
    """Order, crop, antialiased scaling up and down, flip and CutMix are those of the single operations."""
    images = pixels(5, *sides, seed=seed)
    draws = epoch(5, sides, into, batch=5, factor=factor, seed=seed)

    actual = shown(images[draws.picked], draws, into)
    torch.testing.assert_close(actual, one_by_one(images[draws.picked], draws, into), rtol=1e-4, atol=2e-5)


def test_strips_move_whole() -> None:
    """A 3 x 3 grid on 10 pixels: strips of 3, 3 and 4 rows, permuted alike in every column."""
    images = torch.arange(100.0).view(1, 1, 10, 10)
    draws = Draws(
        picked=torch.tensor([0]),
        rows=torch.tensor([[2, 0, 1]]),
        columns=torch.tensor([[0, 1, 2]]),
        boxes=torch.tensor([[0, 0, 10, 10]]),
        flipped=torch.tensor([False]),
        partners=torch.tensor([0]),
        cuts=torch.zeros(1, 4, dtype=torch.int64),
    )
    expected = images[:, :, [6, 7, 8, 9, 0, 1, 2, 3, 4, 5]]
    assert torch.equal(shown(images, draws, (10, 10)), expected)


def test_factor_one_leaves_images_whole() -> None:
    """At factor 1 nothing is shuffled or cropped: flip and CutMix are all, and no pixel's bits change."""
    images = pixels(40, 12, 12)
    draws = epoch(40, (12, 12), (12, 12), batch=40)
    assert torch.equal(draws.boxes, torch.tensor([[0, 0, 12, 12]]).expand(40, -1))
    actual = shown(images[draws.picked], draws, (12, 12))
    assert torch.equal(actual, one_by_one(images[draws.picked], draws, (12, 12)))


def test_boxes_are_those_of_random_resized_crop() -> None:
    """Area, aspect and place of the boxes are distributed as torchvision's."""
    side, count = 64, 2000
    mine = epoch(count, (side, side), (side, side), batch=100, factor=2).boxes.double()
    torch.manual_seed(0)
    image = torch.zeros(3, side, side)
    drawn = [RandomResizedCrop.get_params(image, [0.5, 1.0], [3 / 4, 4 / 3]) for _ in range(count)]
    theirs = torch.tensor(drawn).double()

    def measures(boxes: Tensor) -> list[Tensor]:
        top, _, height, width = boxes.unbind(1)
        return [height * width / side**2, width / height, top / (side - height).clamp(min=1)]

    shares = torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9], dtype=torch.float64)
    for one, other in zip(measures(mine), measures(theirs), strict=True):
        torch.testing.assert_close(one.quantile(shares), other.quantile(shares), rtol=0, atol=0.06)


def test_boxes_of_a_ribbon_fall_back_to_its_middle() -> None:
    """Where no box of the allowed aspect was found, the largest in the middle is taken."""
    wide, tall = (epoch(50, sides, (8, 8), batch=10).boxes for sides in ((8, 64), (64, 8)))
    assert torch.equal(wide, torch.tensor([[0, 26, 8, 11]]).expand(50, -1))
    assert torch.equal(tall, torch.tensor([[26, 0, 11, 8]]).expand(50, -1))


def test_boxes_of_tiny_images_have_a_pixel_at_least() -> None:
    """A single row or column is a crop; none is empty or sticks out."""
    own = torch.Generator().manual_seed(0)
    boxes = draw(
        500, (4, 3), (8, 8), batch=10, factor=1, cutmix=False, generator=own, least=0.001, within_patch=False
    ).boxes
    for axis, side in ((0, 4), (1, 3)):
        sizes = boxes[:, axis + 2]
        assert sizes.unique().tolist() == list(range(1, side + 1))
        assert boxes[:, axis].min() == 0
        assert (boxes[:, axis] + sizes).max() == side


def test_without_cutmix_boxes_are_empty() -> None:
    """One for each batch."""
    own = torch.Generator().manual_seed(0)
    draws = draw(5, (8, 8), (8, 8), batch=2, factor=1, cutmix=False, generator=own)
    assert draws.cuts.tolist() == [[0, 0, 0, 0]] * 3


def test_cuts_have_uniform_area_and_stay_inside() -> None:
    """CutMix's box with alpha 1: its side is the root of a uniform share, cut off at the edges."""
    side = 32
    draws = torch.Generator().manual_seed(3)
    cuts = np.array([mixes._cut((side, side), draws).tolist() for _ in range(3000)])
    rng = np.random.default_rng(0)
    expected = []
    for _ in range(3000):
        half = int(side * math.sqrt(rng.beta(1, 1))) // 2
        y, x = rng.integers(side), rng.integers(side)
        box = np.clip([y - half, x - half, y + half, x + half], 0, side)
        expected.append((box[2] - box[0]) * (box[3] - box[1]))
    areas = (cuts[:, 2] - cuts[:, 0]) * (cuts[:, 3] - cuts[:, 1])

    assert cuts[:, :2].min(0).tolist() == [0, 0]
    assert cuts[:, 2:].max(0).tolist() == [side, side]
    assert (areas >= 0).all()
    for share in (0.25, 0.5, 0.75, 0.95):
        assert np.quantile(areas, share) == pytest.approx(np.quantile(expected, share), abs=20)


@pytest.mark.parametrize(("count", "sizes"), [(11, [4, 4, 3]), (9, [4, 4, 1]), (8, [4, 4]), (3, [3])])
def test_an_epoch_shows_every_image_once_and_partners_stay_in_their_batch(
    count: int, sizes: list[int]
) -> None:
    """Batches partition the images; each has its own cut, and CutMix takes from the same batch."""
    draws = epoch(count, (8, 8), (8, 8), batch=4, factor=2)
    parts = list(draws.batches(4))

    assert [len(p.picked) for p in parts] == sizes
    assert sorted(torch.cat([p.picked for p in parts]).tolist()) == list(range(count))
    assert all(sorted(p.partners.tolist()) == list(range(len(p.picked))) for p in parts)
    assert [p.cuts.tolist() for p in parts] == [[cut] for cut in draws.cuts.tolist()]
    assert torch.equal(draws.rows.sort(1).values, torch.tensor([[0, 1]]).expand(count, -1))


def test_half_of_the_images_are_flipped() -> None:
    """Of 2000, within three standard deviations."""
    assert abs(int(epoch(2000, (8, 8), (8, 8), batch=100).flipped.sum()) - 1000) < 67


CUTS = ([2, 3, 7, 8], [0, 0, 8, 8], [3, 2, 3, 6], [3, 2, 6, 2], [0, 0, 0, 0])
"""Two boxes, and three empty ones."""


@pytest.mark.parametrize("rows", [slice(0, 2), slice(2, 5), slice(5, 6), slice(0, 6)])
@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_a_part_of_the_draws_shows_its_images_as_the_whole_does(rows: slice, cut: list[int]) -> None:
    """Images that CutMix copies from come along, from whichever part of the batch; without a box nothing does."""
    images = pixels(6, 8, 8)
    whole = replace(epoch(6, (8, 8), (8, 8), batch=6, factor=2, seed=1), cuts=torch.tensor([cut]))
    expected, size = shown(images[whole.picked], whole, (8, 8)), rows.stop - rows.start
    part = whole.of(rows)

    torch.testing.assert_close(shown(images[part.picked], part, (8, 8))[:size], expected[rows])
    assert len(part.picked) == (size if size == 6 or cut in CUTS[2:] else 2 * size)


@pytest.mark.parametrize(("count", "batch", "factor"), [(7, 3, 1), (8, 4, 2)])
def test_unmixed_shows_every_image_once_as_it_is(count: int, batch: int, factor: int) -> None:
    """Whole images in random order, on each of which the strips stay where they are."""
    images, sides = pixels(count, 6, 8), (6, 8)
    own = torch.Generator().manual_seed(3)
    draws = mixes.unmixed(count, sides, batch=batch, factor=factor, generator=own)
    seen = torch.cat([shown(images[part.picked], part, sides) for part in draws.batches(batch)])

    torch.testing.assert_close(seen, images[draws.picked])
    assert sorted(draws.picked.tolist()) == list(range(count))
    assert draws.cuts.tolist() == [[0, 0, 0, 0]] * -(-count // batch)
    assert draws.picked.tolist() != list(range(count))


def test_known_draws_are_known() -> None:
    """An epoch follows from the generator alone: changing it makes everybody's soft labels void."""
    found = epoch(3, (16, 16), (16, 16), batch=3, factor=2)
    assert found.boxes.tolist() == [[3, 0, 13, 13], [2, 4, 14, 11], [2, 0, 14, 16]]
    assert found.cuts.tolist() == [[5, 4, 16, 16]]
    assert (found.picked.tolist(), found.partners.tolist()) == ([2, 0, 1], [1, 0, 2])


def test_boxes_of_the_whole_height_fit() -> None:
    """They are taken as drawn, and not replaced by the middle of the image."""
    boxes = epoch(500, (8, 12), (8, 8), batch=10, factor=2).boxes
    assert boxes[boxes[:, 2] == 8][:, 3].unique().tolist() == [6, 7, 8, 9, 10, 11]
