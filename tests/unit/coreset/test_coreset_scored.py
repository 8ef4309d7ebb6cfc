"""Selections by scores and by patterns."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rayddl.methods.selection import select
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


def directions(*sizes: int) -> tuple[torch.Tensor, list[list[int]]]:
    """So many rows about each axis, in random order, and the rows of each axis from its centre outwards."""
    draws = torch.Generator().manual_seed(1)
    axis = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    axis = axis[torch.randperm(len(axis), generator=draws)]
    scatter = torch.rand(len(axis), len(sizes) + 2, generator=draws)
    rows = 9.0 * torch.nn.functional.one_hot(axis, len(sizes) + 2) + scatter
    rows *= torch.linspace(1, 5, len(axis))[:, None]  # length does not count
    unit = rows.double() / rows.double().norm(dim=1, keepdim=True)
    near = []
    for own in range(len(sizes)):
        members = (axis == own).nonzero().flatten()
        far = (unit[members] - unit[members].mean(0)).norm(dim=1)
        near.append(members[far.argsort()].tolist())
    return rows, near


@pytest.mark.parametrize(
    ("sizes", "count", "ranks"),
    [
        # The larger half are the nearest; the other half the farthest but for a tenth of the pattern.
        ((20,), 2, [[0, 17]]),
        ((20,), 3, [[0, 1, 17]]),
        ((9,), 3, [[0, 1, 8]]),
        ((30, 20, 10), 6, [[0, 1, 26], [0, 17], [0]]),
        # 3.5, 2.33 and 1.17 of seven: the largest remainder gets the seventh.
        ((30, 20, 10), 7, [[0, 1, 25, 26], [0, 17], [0]]),
        # Ten patterns at most. Nineteen of twenty leave one for the farthest tenth.
        ((20,) * 10, 190, [list(range(19))] * 10),
    ],
)
def test_patterns_worked_out_by_hand(sizes: tuple[int, ...], count: int, ranks: list[list[int]]) -> None:
    """Which rows of each pattern are taken, by their rank from its centre."""
    rows, near = directions(*sizes)
    expected = [own[rank] for own, some in zip(near, ranks, strict=True) for rank in some]
    assert sorted(balanced(rows, count)) == sorted(expected)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=10), st.data())
def test_patterns_are_apportioned_by_their_sizes(sizes: list[int], data: st.DataObject) -> None:
    """Hamilton's method: nobody is more than one off its quota, and the largest remainders are rounded up."""
    count = data.draw(st.integers(0, sum(sizes)))
    shares = select._shares(sizes, count)
    quotas = [size * count / sum(sizes) for size in sizes]

    assert sum(shares) == count
    assert all(
        quota - 1 < share < quota + 1 and share <= size
        for share, quota, size in zip(shares, quotas, sizes, strict=True)
    )
    up = [quota % 1 for share, quota in zip(shares, quotas, strict=True) if share > quota]
    down = [quota % 1 for share, quota in zip(shares, quotas, strict=True) if share < quota]
    assert min(up, default=1.0) >= max(down, default=0.0) - 1e-9
    alike = [share for share, size in zip(shares, sizes, strict=True) if size == sizes[0]]
    assert alike == sorted(alike, reverse=True)


def test_the_first_of_equal_scores_is_taken() -> None:
    """In both orders, as a definition's result must not depend on the sort."""
    scores = torch.tensor([0.5, 0.9, 0.5] + [0.5] * 40 + [0.1])
    assert easiest(scores, 4) == [1, 0, 2, 3]
    assert medium(scores, 42) == [0, *range(2, 43)]


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
