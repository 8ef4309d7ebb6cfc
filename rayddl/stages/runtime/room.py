"""Divides the cluster among the stages that run at the same time. Imports neither torch nor Ray.

Every stage asks for some *parts*, each placed on one node: a slot of GPUs, or a worker without one. A stage begins if
the parts that it needs at least fit next to those of the running stages: all workers of a gang, one worker of each
other request. A stage of independent units may take more parts: free ones are handed out in turns, first when stages
begin and again whenever one ends. A stage keeps its parts until it ends.

Ray's own bookkeeping still places every worker, so these figures never overload a node: a worker that has to wait,
for another run of the cluster or for a node that was lost, waits in Ray.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeAlias

from rayddl.stages.runtime.capacity import Capacity
from rayddl.stages.runtime.sizes import Ask

Part: TypeAlias = Mapping[str, float]
"""Resources on one node, by Ray's names."""
_SLACK = 1e-6


@dataclass
class Lease:
    """The parts that a running stage may take."""

    asks: Sequence[Ask]
    parts: list[int]
    """The number of parts of each request."""
    wanted: Sequence[int]
    """The largest useful number of each."""

    @property
    def taken(self) -> list[Part]:
        """All parts."""
        return [part for ask, count in zip(self.asks, self.parts, strict=True) for part in _parts(ask, count)]

    def most(self, key: str) -> int:
        """The current limit of parts of the request ``key``; ``sys.maxsize`` if it has as many as it can use.

        A request that was not made, such as decoders where the scoring workers decode, has the limit of the first.
        """
        if self.asks and all(ask.key != key for ask in self.asks):
            key = self.asks[0].key
        for ask, count, wanted in zip(self.asks, self.parts, self.wanted, strict=True):
            if ask.key == key and count < wanted:
                return count
        return sys.maxsize


class Room:
    """The cluster's resources, and the running stages' parts of them."""

    def __init__(self, capacity: Callable[[], Capacity]) -> None:
        self._capacity = capacity
        self._leases: dict[str, Lease] = {}
        self._lock = threading.Lock()

    def begin(self, stage: str, asks: Callable[[Capacity], Sequence[Ask]]) -> Lease | None:
        """The least lease of ``stage``; ``None`` if it does not fit now.

        With no other stage running it is always given: the work then waits in Ray for a node that was lost.
        """
        with self._lock:
            have = self._capacity()
            asked = asks(have)
            lease = Lease(asked, [_least(ask) for ask in asked], [_wanted(ask, have) for ask in asked])
            left = self._left(have)
            fits = all(_take(left, part) for part in _by_size(lease.taken))
            if not fits and self._leases:
                return None
            self._leases[stage] = lease
            return lease

    def end(self, stage: str) -> None:
        """Free the parts of ``stage``, if it has any."""
        with self._lock:
            self._leases.pop(stage, None)

    def hand_out(self) -> None:
        """Hand out free parts, one to each running stage in turn, until none fits or none is of use."""
        with self._lock:
            left = self._left(self._capacity())
            # Workers on GPUs first: others would take the CPUs next to a free GPU.
            for on_gpu in (True, False):
                growing = [
                    (lease, k)
                    for lease in self._leases.values()
                    for k, ask in enumerate(lease.asks)
                    if lease.parts[k] < lease.wanted[k] and ("GPU" in ask.share.needs) == on_gpu
                ]
                while growing:
                    growing = [entry for entry in growing if _grown(*entry, left)]

    def _left(self, have: Capacity) -> list[dict[str, float]]:
        left = [dict(node) for node in have.most]
        for part in _by_size([part for lease in self._leases.values() for part in lease.taken]):
            _take(left, part)
        return left


_current: ContextVar[Lease | None] = ContextVar("lease", default=None)


@contextmanager
def of_stage(lease: Lease | None) -> Iterator[None]:
    """The stage that this thread runs in the block has ``lease``; ``None``: it may take all of the cluster."""
    token = _current.set(lease)
    try:
        yield
    finally:
        _current.reset(token)


def limit(key: str = "resources") -> Callable[[], int]:
    """A function that returns the current limit of parts of this thread's stage: see :meth:`Lease.most`."""
    lease = _current.get()
    return (lambda: sys.maxsize) if lease is None else (lambda: lease.most(key))


def _least(ask: Ask) -> int:
    return len(tuple(ask.placed)) if ask.together else ask.least


def _wanted(ask: Ask, have: Capacity) -> int:
    if ask.together:
        return _least(ask)
    fits = have.fits(ask.share.needs)
    return max(ask.least, fits if ask.units is None else min(ask.units, fits))


def _parts(ask: Ask, count: int) -> list[Part]:
    return list(ask.placed) if ask.together else [ask.share.needs] * count


def _by_size(parts: Sequence[Part]) -> list[Part]:
    """The parts, the ones that are hardest to place first."""
    return sorted(parts, key=lambda part: (-part.get("GPU", 0.0), -part.get("CPU", 0.0)))


def _grown(lease: Lease, k: int, left: list[dict[str, float]]) -> bool:
    """Give the lease one more part of its request ``k``, and return whether it can use a further one."""
    if not _take(left, lease.asks[k].share.needs):
        return False
    lease.parts[k] += 1
    return lease.parts[k] < lease.wanted[k]


def _take(left: list[dict[str, float]], part: Part) -> bool:
    """Subtract ``part`` from one node of ``left``: the one with the fewest GPUs, then CPUs. False if none fits."""
    fitting = [n for n in left if all(n.get(name, 0.0) + _SLACK >= value for name, value in part.items())]
    if not fitting:
        return False
    node = min(fitting, key=lambda n: (n.get("GPU", 0.0), n.get("CPU", 0.0)))
    for name, value in part.items():
        node[name] = node.get(name, 0.0) - value
    return True
