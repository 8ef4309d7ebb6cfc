"""Refinement against its formulas, written out for one image at a time in float64."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from rayddl.data.pixels import augment
from rayddl.methods.patches.stitch import stitched
from rayddl.methods.refinement.refine import FeatureExtractor, apart, draw, gaps, paired, refined, views
from rayddl.methods.refinement.settings import RefineSettings

SHAPE = (2, 6, 6)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def extractor(seed: int) -> FeatureExtractor:
    """An observer of two smooth layers, with a scaling of its own."""
    first, second = random(5, math.prod(SHAPE), seed=seed), random(4, 5, seed=seed + 1)
    return FeatureExtractor(
        lambda x: (x - 0.1 * seed) / (0.3 + 0.1 * seed),
        lambda x: torch.tanh(0.1 * x.flatten(1) @ first.T) @ second.T,
    )


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(100 + i) for i in range(count)]


def by_hand(
    image: Tensor, anchors: Tensor, settings: RefineSettings, seed: int, eyes: list[FeatureExtractor]
) -> Tensor:
    """One image of 2 x 2 tiles, refined by the formulas of CIM and of AdamW."""
    draws, names = torch.Generator().manual_seed(seed), settings.augmentations
    drawn = [augment.draw((name,), (settings.steps * 4, *SHAPE), draws) for name in names]
    change, mean, square = (torch.zeros_like(image) for _ in range(3))
    for step in range(settings.steps):
        own = change.clone().requires_grad_()
        loss = torch.zeros((), dtype=torch.float64)
        for k, (top, left) in enumerate(itertools.product((0, 3), (0, 3))):
            tile = (image + own)[None, :, top : top + 3, left : left + 3]
            view = torch.nn.functional.interpolate(tile, (6, 6), mode="bilinear")
            for one in eyes:
                shown = [one.scaled(view), one.scaled(anchors[k][None])]
                for d in drawn:
                    row = augment.Draw(d.name, tuple(p[step * 4 + k][None] for p in d.params))
                    shown = [augment.apply(x, row) for x in shown]
                off = one.features(shown[0]) - one.features(shown[1])
                loss = loss + (off.abs() if settings.distance == "l1" else off**2).mean() / len(eyes)
        (slope,) = torch.autograd.grad(loss, own)
        mean, square = 0.9 * mean + 0.1 * slope, 0.999 * square + 0.001 * slope**2
        rated = (mean / (1 - 0.9 ** (step + 1))) / ((square / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
        change = change * (1 - settings.lr * settings.weight_decay) - settings.lr * rated
        change = (image + change).clamp(0, 1) - image
    return image + change


@pytest.mark.parametrize("distance", ["l1", "l2"])
@pytest.mark.parametrize("augmented", ["none", "flip_crop_cutout"])
def test_images_follow_the_formula_one_by_one(distance: str, augmented: str) -> None:
    """Two observers; every image is refined as it is alone, and pixels stay in 0..1."""
    settings = RefineSettings(steps=6, lr=0.05, weight_decay=0.3, distance=distance, augment=augmented)
    start, anchors, eyes = random(3, *SHAPE), random(12, *SHAPE, seed=1), [extractor(1), extractor(3)]

    found = refined(start, anchors, eyes, settings, 2, draw(settings, SHAPE, 2, generators(3)))

    for i in range(3):
        expected = by_hand(start[i], anchors[4 * i : 4 * i + 4], settings, 100 + i, eyes)
        torch.testing.assert_close(found.images[i], expected, rtol=0, atol=1e-9)
    assert float(found.images.min()) >= 0
    assert float(found.images.max()) <= 1
    assert found.before.shape == found.after.shape == (12,)
    assert float(found.after.mean()) < float(found.before.mean())


def test_the_gap_is_the_unaugmented_distance_averaged_over_observers() -> None:
    """Of each view, before the first and after the last step."""
    settings = RefineSettings(steps=2, augment="flip_crop_cutout")
    start, anchors, eyes = random(2, *SHAPE), random(8, *SHAPE, seed=1), [extractor(1), extractor(3)]
    found = refined(start, anchors, eyes, settings, 2, draw(settings, SHAPE, 2, generators(2)))

    for images, gap in ((start, found.before), (found.images, found.after)):
        each = [
            (e.features(e.scaled(views(images, 2))) - e.features(e.scaled(anchors))).abs().mean(1)
            for e in eyes
        ]
        torch.testing.assert_close(gap, (each[0] + each[1]) / 2)


def test_views_are_the_tiles_resized() -> None:
    """Row by row, those of one image next to each other, also where a side does not divide."""
    patches = [torch.full((1, h, w), 10 * k, dtype=torch.uint8) for k, (h, w) in enumerate(SIZES, 1)]
    image = stitched(patches, 5, 2).float()
    shown = views(torch.stack([image, image + 1]), 2)

    assert shown.shape == (8, 1, 5, 5)
    values = torch.tensor([10.0, 20, 30, 40, 11, 21, 31, 41])
    torch.testing.assert_close(shown.flatten(1), values[:, None].expand(8, 25))
    assert torch.equal(views(image[None], 1)[0], image)


SIZES = [(3, 3), (3, 2), (2, 3), (2, 2)]
"""Of the tiles of 5 pixels a side."""


def test_anchors_are_dealt_with_the_smallest_sum() -> None:
    """No two views share one where there are enough, as trying all choices finds."""
    costs = random(4, 6)
    found = paired(costs)
    best = min(
        itertools.permutations(range(6), 4), key=lambda p: sum(float(costs[i, j]) for i, j in enumerate(p))
    )

    assert tuple(found.tolist()) == best


def test_few_anchors_are_dealt_evenly() -> None:
    """Five views of two anchors: at most three each, though all are nearest to the first."""
    costs = torch.stack([torch.zeros(5), torch.arange(5.0) + 1], 1)
    found = paired(costs).tolist()

    assert found == [1, 1, 0, 0, 0]


def test_distances_of_all_pairs_are_averaged_over_observers() -> None:
    """Against the formula, pair by pair."""
    seen, wanted = [random(3, 4), random(3, 7, seed=1)], [random(2, 4, seed=2), random(2, 7, seed=3)]
    found = apart(seen, wanted, "l2")

    for i, j in itertools.product(range(3), range(2)):
        mean = sum(float(((s[i] - w[j]) ** 2).mean()) for s, w in zip(seen, wanted, strict=True)) / 2
        assert float(found[i, j]) == pytest.approx(mean)
    assert torch.equal(gaps(seen[0], seen[0] + 2, "l1"), torch.full((3,), 2.0, dtype=torch.float64))
