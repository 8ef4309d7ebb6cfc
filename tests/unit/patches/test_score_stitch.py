"""The realism score, and patches on an image."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from rayddl.methods.patches.score import Scorer, padded
from rayddl.methods.patches.stitch import places, stitched, tiles


def _net(side: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * side**2, 5)
    ).eval()


def _numbers(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


MEAN, STD = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.3])


def test_a_score_is_the_log_probability_of_the_own_class_of_the_padded_patch() -> None:
    """Patch by patch by the formula: normalise, zeros around, softmax, minus cross-entropy."""
    net, patches, labels = _net(12), _numbers(7, 3, 6, 6), torch.tensor([0, 1, 2, 3, 4, 0, 1])
    found = Scorer(net, MEAN, STD, size=12, pad=True, batch=4)(patches, labels)
    with torch.no_grad():
        for patch, label, score in zip(patches, labels, found, strict=True):
            canvas = torch.zeros(1, 3, 12, 12)
            canvas[:, :, 3:9, 3:9] = (patch.double() / 255 - MEAN.view(-1, 1, 1)) / STD.view(-1, 1, 1)
            expected = torch.log(torch.softmax(net(canvas)[0].double(), 0)[label])
            assert float(score) == pytest.approx(float(expected), rel=1e-5, abs=1e-6)


def test_a_patch_has_one_score_whatever_it_is_scored_with() -> None:
    """Company, place and count change no bit, for every batch has one shape."""
    patches, labels = _numbers(11, 3, 6, 6), torch.arange(11) % 5
    score = Scorer(_net(12), MEAN, STD, size=12, pad=True, batch=4)
    together = score(patches, labels)
    alone = torch.cat([score(patches[k : k + 1], labels[k : k + 1]) for k in range(11)])
    backwards = score(patches.flip(0), labels.flip(0)).flip(0)
    assert torch.equal(together, alone)
    assert torch.equal(together, backwards)


def test_native_scoring_shows_the_patch_as_it_is() -> None:
    """Without padding the observer sees patch-sized images."""
    net, patches = _net(6), _numbers(3, 3, 6, 6)
    found = Scorer(net, MEAN, STD, size=12, pad=False, batch=2)(patches, torch.tensor([0, 1, 2]))
    with torch.no_grad():
        x = (patches.float() / 255 - MEAN.view(-1, 1, 1)) / STD.view(-1, 1, 1)
        expected = torch.log_softmax(net(x), 1)[torch.arange(3), torch.arange(3)]
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(("side", "size"), [(4, 8), (3, 8), (5, 5), (1, 4)])
def test_padding_centres_the_patch(side: int, size: int) -> None:
    """Everything around is zero; a row too many goes below and right."""
    canvas = padded(torch.ones(1, 1, side, side), size)
    assert canvas.shape == (1, 1, size, size)
    assert float(canvas.sum()) == side**2
    top = (size - side) // 2
    assert float(canvas[0, 0, top : top + side, top : top + side].sum()) == side**2


@given(st.integers(4, 70), st.integers(1, 4))
def test_tiles_cover_the_side_without_gap_or_overlap(size: int, factor: int) -> None:
    """Lengths differ by one at most, longer ones first, as published."""
    spans = tiles(size, factor)
    assert [start for start, _ in spans] == [sum(n for _, n in spans[:k]) for k in range(factor)]
    assert sum(n for _, n in spans) == size
    lengths = [n for _, n in spans]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] - lengths[-1] <= 1


def test_images_take_ranks_in_rounds() -> None:
    """Place p of image i holds the patch of rank p times ipc plus i."""
    assert places(3, 2) == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]
    assert places(2, 1) == [[0], [1]]


def test_stitching_puts_each_patch_in_its_tile() -> None:
    """Row by row from the top left, also where the side does not divide evenly."""
    spans = tiles(9, 2)
    patches = [torch.full((3, spans[k // 2][1], spans[k % 2][1]), k + 1, dtype=torch.uint8) for k in range(4)]
    image = stitched(patches, 9, 2)
    assert [int(image[0, y, x]) for y in (0, 8) for x in (0, 8)] == [1, 2, 3, 4]
    assert [int((image[0] == k).sum()) for k in (1, 2, 3, 4)] == [25, 20, 20, 16]


def test_one_patch_is_the_whole_image() -> None:
    """At factor 1 the patch fills the image, and no pixel changes."""
    patch = _numbers(3, 5, 5)
    assert torch.equal(stitched([patch], 5, 1), patch)
