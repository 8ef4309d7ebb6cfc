"""Windows: drawn from the right range, on the right experts, replayable."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rayddl.methods.matching.settings import WindowRule
from rayddl.methods.matching.windows import cut, expert_at
from rayddl.methods.trajectories.convex import SnapshotTrajectory, convexify
from rayddl.seeds import generator

SNAPSHOTS = torch.randn(9, 6, generator=torch.Generator().manual_seed(0)).cumsum(0)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10**6), high=st.integers(1, 20), low=st.integers(0, 5))
def test_whole_starts_lie_in_the_half_open_range(seed: int, high: int, low: int) -> None:
    """MTT draws whole epochs from {T-, …, T+ - 1}."""
    rule = WindowRule(max_start_epoch=low + high, expert_epochs=2, continuous=False, min_start_epoch=low)
    start = rule.start(0, generator(seed))

    assert start == int(start)
    assert low <= start <= low + high - 1


def test_every_whole_start_occurs() -> None:
    """All epochs below max_start_epoch are drawn, none is favoured."""
    rule = WindowRule(max_start_epoch=4, expert_epochs=2, continuous=False)
    counts = torch.bincount(
        torch.tensor([int(rule.start(0, generator(1, i))) for i in range(4000)]), minlength=4
    )

    assert len(counts) == 4
    assert (counts - 1000).abs().max() < 120


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_continuous_starts_lie_in_the_closed_interval(seed: int) -> None:
    """MCT draws real epochs from [0, T+]."""
    assert (
        0
        <= WindowRule(max_start_epoch=3.5, expert_epochs=2, continuous=True).start(0, generator(seed))
        <= 3.5
    )


def test_range_grows_with_the_iterations() -> None:
    """The upper end goes linearly from its first value to T+ and stays there."""
    rule = WindowRule(
        max_start_epoch=10, expert_epochs=2, continuous=True, first_start_epoch=2, grow_iterations=100
    )

    assert [rule.upper(i) for i in (0, 50, 100, 1000)] == [2, 6, 10, 10]
    assert WindowRule(max_start_epoch=10, expert_epochs=2, continuous=True).upper(0) == 10


def test_target_is_clipped_to_the_end() -> None:
    """A window that would reach beyond E ends at E."""
    trajectory = convexify(SNAPSHOTS, (4, 2))
    window = cut(
        trajectory,
        0,
        WindowRule(max_start_epoch=8, expert_epochs=6, continuous=True, min_start_epoch=7),
        0,
        generator(0),
    )

    assert window.epoch >= 7
    assert torch.equal(window.target_P, SNAPSHOTS[-1])


def test_snapshots_window() -> None:
    """MTT's start and target are the snapshots themselves."""
    window = cut(
        SnapshotTrajectory(SNAPSHOTS),
        3,
        WindowRule(max_start_epoch=5, expert_epochs=2, continuous=False),
        0,
        generator(0),
    )

    assert window.expert == 3
    assert torch.equal(window.start_P, SNAPSHOTS[int(window.epoch)])
    assert torch.equal(window.target_P, SNAPSHOTS[int(window.epoch) + 2])
    assert not window.still


def test_a_standing_expert_is_still() -> None:
    """Where start and target are the same point there is nothing to match."""
    standing = SNAPSHOTS[:1].expand(9, -1)

    assert cut(
        SnapshotTrajectory(standing),
        0,
        WindowRule(max_start_epoch=5, expert_epochs=2, continuous=False),
        0,
        generator(0),
    ).still


def test_every_pass_uses_every_expert_once() -> None:
    """Each pass over the experts is a permutation, and passes differ."""
    passes = [[expert_at(p * 7 + i, 7, seed=3) for i in range(7)] for p in range(4)]

    assert all(sorted(order) == list(range(7)) for order in passes)
    assert len({tuple(order) for order in passes}) > 1
