"""Convexified trajectories against a brute-force evaluation, tensor by tensor."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rayddl.methods.trajectories.convex import ConvexTrajectory, SnapshotTrajectory, convexify, progress

SIZES = (3, 1, 4)
EPOCHS = 9


def path(seed: int = 0, epochs: int = EPOCHS) -> Tensor:
    """A random walk of snapshots whose second tensor never moves."""
    draws = torch.Generator().manual_seed(seed)
    walk = torch.randn(epochs + 1, sum(SIZES), generator=draws, dtype=torch.float64).cumsum(0).float()
    walk[:, 3] = 0.5
    return walk


def brute(snapshots: Tensor, points: list[int], t: float) -> list[float]:
    """The convexified point by plain loops over tensors and elements."""
    snaps = [[float(v) for v in row] for row in snapshots.double()]
    ends = {p: list(snaps[p]) for p in points}
    if len(points) > 2:
        for p in points[1:-1]:
            ends[p] = [(a + b) / 2 for a, b in zip(snaps[p - 1], snaps[p + 1], strict=True)]
        last = points[-1]
        ends[last] = [(a + b) / 2 for a, b in zip(snaps[last - 1], snaps[last], strict=True)]
    segment = max(i for i in range(len(points) - 1) if points[i] <= t)
    a, b = points[segment], points[segment + 1]
    out, offset = [], 0
    for size in SIZES:
        here = range(offset, offset + size)
        steps = [
            math.sqrt(sum((snaps[i][j] - snaps[i - 1][j]) ** 2 for j in here)) for i in range(a + 1, b + 1)
        ]
        total = sum(steps)

        def beta(i: int, steps: list[float] = steps, total: float = total, a: int = a, b: int = b) -> float:
            if total == 0:
                return 1.0 if i >= b else 0.0
            return sum(steps[: i - a]) / total

        low = min(math.floor(t), b - 1)
        share = beta(low) + (t - low) * (beta(low + 1) - beta(low))
        out += [ends[a][j] + share * (ends[b][j] - ends[a][j]) for j in here]
        offset += size
    return out


@settings(max_examples=60, deadline=None)
@given(
    t=st.floats(0, EPOCHS),
    points=st.sampled_from([[0, 9], [0, 4, 9], [0, 1, 2, 9], [0, 3, 8, 9]]),
    seed=st.integers(0, 5),
)
def test_equals_brute_force(t: float, points: list[int], seed: int) -> None:
    """Any real epoch, any waypoints: the point is the one that loops over the definition give."""
    snapshots = path(seed)
    actual = convexify(snapshots, SIZES, points).at(t)

    expected = torch.tensor(brute(snapshots, points, t))
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("points", [[0, 9], [0, 4, 9], [0, 1, 8, 9]])
def test_waypoints_are_met_exactly(points: list[int]) -> None:
    """At a waypoint, at 0 and at E the trajectory is the stored waypoint, bit for bit."""
    trajectory = convexify(path(), SIZES, points)

    for k, epoch in enumerate(points):
        assert torch.equal(trajectory.at(epoch), trajectory.waypoints[k])
    assert trajectory.last == EPOCHS


@pytest.mark.parametrize("points", [[0, 9], [0, 4, 9]])
def test_continuous_across_epochs_and_waypoints(points: list[int]) -> None:
    """Approaching an epoch from below leads to the point at the epoch."""
    trajectory = convexify(path(), SIZES, points)

    for epoch in range(1, EPOCHS + 1):
        torch.testing.assert_close(
            trajectory.at(math.nextafter(epoch, 0)), trajectory.at(epoch), rtol=1e-5, atol=1e-5
        )


def test_two_waypoints_are_the_ends_unsmoothed() -> None:
    """With two waypoints the line goes from the first snapshot to the last one itself."""
    snapshots = path()
    trajectory = convexify(snapshots, SIZES)

    assert torch.equal(trajectory.at(0), snapshots[0])
    assert torch.equal(trajectory.at(EPOCHS), snapshots[-1])


def test_progress_rises_from_zero_to_one() -> None:
    """Beta starts at 0, never falls and ends at exactly 1; a tensor that stood still ends at 1 too."""
    lengths = torch.tensor([[1.0, 0.0], [0.3, 0.0], [2.0, 0.0]])
    beta = progress(lengths)

    assert torch.equal(beta[0], torch.zeros(2, dtype=torch.float64))
    assert torch.equal(beta[-1], torch.ones(2, dtype=torch.float64))
    assert (beta.diff(dim=0) >= 0).all()
    torch.testing.assert_close(beta[:, 0], torch.tensor([0, 1 / 3.3, 1.3 / 3.3, 1.0], dtype=torch.float64))
    # However small the steps are.
    torch.testing.assert_close(progress(lengths * 1e-9), beta)


@pytest.mark.parametrize("t", [-0.01, EPOCHS + 0.01, math.nan])
def test_outside_is_refused(t: float) -> None:
    """An epoch outside the trajectory is an error that names its range."""
    with pytest.raises(ValueError, match="outside the trajectory's 0 to 9"):
        convexify(path(), SIZES).at(t)


@pytest.mark.parametrize("points", [[0], [1, 9], [0, 8], [0, 5, 5, 9], [0, 6, 3, 9]])
def test_waypoints_must_rise_from_start_to_end(points: list[int]) -> None:
    """Waypoints that do not span the trajectory are refused."""
    with pytest.raises(ValueError, match="must rise from 0 to 9"):
        convexify(path(), SIZES, points)


def test_snapshots_are_defined_at_whole_epochs() -> None:
    """A snapshot trajectory gives its rows and nothing between them."""
    snapshots = path()
    trajectory = SnapshotTrajectory(snapshots)

    assert torch.equal(trajectory.at(3), snapshots[3])
    for t in (2.5, -1, EPOCHS + 1):
        with pytest.raises(ValueError, match="whole epochs 0 to 9"):
            trajectory.at(t)


def test_stored_in_half_precision_still_interpolates_in_float32() -> None:
    """bfloat16 waypoints come out as float32, within their rounding."""
    whole = convexify(path(), SIZES)
    half = ConvexTrajectory(whole.waypoints.bfloat16(), whole.epochs, whole.lengths, whole.sizes)

    assert half.at(4.5).dtype == torch.float32
    torch.testing.assert_close(half.at(4.5), whole.at(4.5), rtol=0.01, atol=0.05)
