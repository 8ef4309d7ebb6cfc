"""Selections by scores and by patterns."""

from __future__ import annotations

import pytest
import torch

from rayddl.methods.selection.features import Features
from rayddl.methods.selection.select import balanced, easiest, medium
from rayddl.nets.build import build
from rayddl.nets.config import NetConfig
from rayddl.stages.coreset.settings import CoresetConfig
from rayddl.stages.coreset.worker import bytes_per_image, kept


def clusters() -> torch.Tensor:
    """Three directions with 60, 30 and 10 rows, each scattered by rising amounts around it."""
    draws = torch.Generator().manual_seed(0)
    parts = []
    for axis, size in enumerate((60, 30, 10)):
        centre = torch.zeros(5)
        centre[axis] = 10.0
        parts.append(centre + torch.linspace(0.01, 3, size)[:, None] * torch.randn(size, 5, generator=draws))
    return torch.cat(parts)


def test_balanced_takes_centres_and_margins_of_every_pattern() -> None:
    """By size; near rows and far ones, without the farthest tenth; no row twice, and any number of them."""
    rows = clusters()
    taken = balanced(rows, 20)
    assert len(set(taken)) == len(taken) == 20
    by_cluster = [sum(low <= i < high for i in taken) for low, high in ((0, 60), (60, 90), (90, 100))]
    assert by_cluster[0] > by_cluster[1] > by_cluster[2] >= 1
    # Of six rows, three patterns are made, and the largest one gets two near rows and two far ones.
    first = torch.nn.functional.normalize(rows[:60].double(), dim=1)
    ranks = (first - first.mean(0)).norm(dim=1).argsort().argsort()
    mine = sorted(ranks[[i for i in balanced(rows, 6) if i < 60]].tolist())
    assert len(mine) == 4
    assert mine[1] < 10
    assert 40 < mine[2] < mine[3] < 58
    for count in (1, 2, 7, 99, 100, 150):
        assert len(set(balanced(rows, count))) == min(count, 100)
    assert balanced(rows, 20) == taken


def test_a_single_image_is_nearest_to_the_centre() -> None:
    """With one image of a class there is one pattern, and no margin."""
    rows = clusters()[:60]
    unit = torch.nn.functional.normalize(rows.double(), dim=1)
    assert balanced(rows, 1) == [int((unit - unit.mean(0)).norm(dim=1).argmin())]


def test_easiest_and_medium_are_ends_and_middle_of_the_scores() -> None:
    """The highest scores first; as many above the median as below it."""
    scores = torch.tensor([0.3, 0.9, 0.1, 0.7, 0.5])
    assert easiest(scores, 2) == [1, 3]
    assert medium(scores, 3) == [3, 4, 0]
    assert medium(scores, 9) == [1, 3, 4, 0, 2]


def test_features_can_be_the_networks_outputs() -> None:
    """For selections by a teacher's scores."""
    module = build(NetConfig(depth=1, width=4), (1, 8, 8), 3, seed=0).eval()
    images = torch.randint(256, (5, 1, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    encode = lambda x: x.float() / 255  # noqa: E731
    found = Features(encode, module, outputs=True)(images)
    torch.testing.assert_close(found, module(encode(images)).detach())
    assert Features(encode, module)(images).shape != found.shape


@pytest.mark.parametrize("method", ["easiest", "medium"])
def test_selections_by_scores_need_a_teacher(method: str) -> None:
    """Pixels and experts have none."""
    config = CoresetConfig(kind="coreset", method=method, ipc=1)
    assert "set features to the name of a teacher" in config.check({})[0]
    assert not CoresetConfig(kind="coreset", method="balanced", ipc=1).check({})


@pytest.mark.parametrize("method", ["easiest", "medium"])
def test_selections_by_scores_hold_one_number_of_each_image(method: str) -> None:
    """The log-probability of the class, in memory of its own; other selections need all features."""
    logits = torch.randn(6, 1000, generator=torch.Generator().manual_seed(0))
    scores = kept(method, 7)(logits)
    torch.testing.assert_close(scores, logits[:, 7] - logits.double().exp().sum(1).log().float())
    assert scores.untyped_storage().nbytes() == 6 * bytes_per_image(method, 1000) == 24
    assert kept("balanced", 7)(logits) is logits
    assert bytes_per_image("balanced", 1000) == 4000
    assert bytes_per_image("random", 1000) == 0
