"""Convexified trajectories (MCT, section 3): two end points and a table instead of every snapshot.

The path of each parameter tensor over training is replaced by the line segment between its ends, with
the expert's relative speed: after epoch i, the point is at the fraction beta_i of the segment, where
beta_i is the length of the path up to epoch i divided by the length of the whole path.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class ConvexTrajectory:
    """A trajectory of straight segments through K waypoints, defined at every real epoch in [0, E]."""

    waypoints: Tensor
    """Parameters at the waypoints, ``[K, P]``."""
    epochs: tuple[int, ...]
    """The K epochs of the waypoints: 0 first, E last."""
    lengths: Tensor
    """L2 norm of the change of each of the L tensors in each epoch, float64 ``[E, L]``."""
    sizes: tuple[int, ...]
    """Elements of each tensor; they sum to P."""

    @property
    def last(self) -> int:
        """E, the last epoch."""
        return self.epochs[-1]

    @cached_property
    def _tables(self) -> tuple[Tensor, ...]:
        return tuple(
            progress(self.lengths[start:end])
            for start, end in zip(self.epochs, self.epochs[1:], strict=False)
        )

    @cached_property
    def _owner(self) -> Tensor:
        # For each of the P elements, the index of its tensor.
        return torch.repeat_interleave(torch.arange(len(self.sizes)), torch.tensor(self.sizes))

    def progress(self, t: float) -> tuple[int, Tensor]:
        """The index of the segment that contains epoch ``t``, and beta(t) on it, float64 ``[L]``.

        A waypoint belongs to the segment that begins there; E belongs to the last segment. Between
        epochs beta is interpolated linearly. Raises ``ValueError`` outside [0, E].
        """
        if not 0 <= t <= self.last:
            raise ValueError(f"epoch {t} lies outside the trajectory's 0 to {self.last}")
        segment = min(sum(e <= t for e in self.epochs) - 1, len(self.epochs) - 2)
        table = self._tables[segment]
        local = t - self.epochs[segment]
        low = min(int(local), len(table) - 2)
        return segment, torch.lerp(table[low], table[low + 1], local - low)

    def at(self, t: float) -> Tensor:
        """The convexified parameters at epoch ``t``, float32 ``[P]``."""
        segment, beta = self.progress(t)
        start, end = self.waypoints[segment].float(), self.waypoints[segment + 1].float()
        return torch.lerp(start, end, beta.float()[self._owner])


def progress(lengths: Tensor) -> Tensor:
    """beta of one segment: ``lengths`` ``[n, L]`` to float64 ``[n + 1, L]``, from 0 to exactly 1.

    For a tensor that never changed, beta is 0 until the end and 1 at the end.
    """
    walked = torch.cumsum(lengths.double(), 0)
    total = walked[-1]
    beta = torch.where(total > 0, walked / total.clamp(min=torch.finfo(torch.float64).tiny), 0.0)
    beta[-1] = 1.0
    return torch.cat([torch.zeros_like(total)[None], beta])


def step_lengths(snapshots: Tensor, sizes: Sequence[int]) -> Tensor:
    """L2 norm of each tensor's change in each epoch: ``[E + 1, P]`` to float64 ``[E, L]``."""
    steps = [(b.double() - a.double()).split(list(sizes)) for a, b in itertools.pairwise(snapshots)]
    return torch.stack([torch.stack([part.norm() for part in step]) for step in steps])


def convexify(
    snapshots: Tensor, sizes: Sequence[int], epochs: Sequence[int] | None = None
) -> ConvexTrajectory:
    """Convexify ``snapshots`` ``[E + 1, P]`` with waypoints at ``epochs`` (default: 0 and E).

    With more than two waypoints, an interior one is the mean of the snapshots before and after it, and
    the last one is the mean of the last two snapshots, as in MCT's code: it averages out the noise of
    single epochs. The table of lengths is that of the snapshots.
    """
    last = len(snapshots) - 1
    points = tuple(epochs) if epochs is not None else (0, last)
    if len(points) < 2 or (points[0], points[-1]) != (0, last) or list(points) != sorted(set(points)):
        raise ValueError(f"waypoints {list(points)} must rise from 0 to {last}")
    ends = [snapshots[e] for e in points]
    if len(points) > 2:
        ends[1:-1] = [(snapshots[e - 1] + snapshots[e + 1]) / 2 for e in points[1:-1]]
        ends[-1] = (snapshots[last - 1] + snapshots[last]) / 2
    return ConvexTrajectory(
        torch.stack(ends), points, step_lengths(snapshots, sizes), tuple(int(s) for s in sizes)
    )


@dataclass(frozen=True)
class SnapshotTrajectory:
    """A trajectory with a snapshot per epoch (MTT, section 3.1), defined at integer epochs."""

    snapshots: Tensor
    """``[E + 1, P]``, or any sequence that gives a ``[P]`` tensor per index."""

    @property
    def last(self) -> int:
        """E, the last epoch."""
        return int(self.snapshots.shape[0]) - 1

    def at(self, t: float) -> Tensor:
        """The snapshot after epoch ``t``, float32 ``[P]``. Raises ``ValueError`` between epochs."""
        if t != int(t) or not 0 <= t <= self.last:
            raise ValueError(f"there is no snapshot of epoch {t}: they are of whole epochs 0 to {self.last}")
        return self.snapshots[int(t)].float()


Trajectory = ConvexTrajectory | SnapshotTrajectory
