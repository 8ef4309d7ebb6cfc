"""Backends that run a stage's work: Ray's workers, or this process.

Stages request workers from their context's backend, never from Ray, so the same code runs in both. Importing this
module imports neither torch nor Ray.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from rayddl.stages.runtime import cluster, room, workers
from rayddl.stages.runtime.capacity import Capacity
from rayddl.stages.runtime.progress import ProgressCounter, RayCounter
from rayddl.stages.runtime.sizes import Ask, Resources, Share
from rayddl.stages.runtime.slots import Work
from rayddl.stages.runtime.workers import Workers

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from rayddl.stages.runtime.streams import Block, Steps

Note: TypeAlias = Callable[[str], None]


def quiet(text: str) -> None:
    """Discard a note."""
    del text


class Backend(Protocol):
    """The interface that stages use to run work."""

    def start(self) -> None:
        """Make workers available. Every stage calls this first."""

    def sized(self, ask: Callable[[Capacity], Ask]) -> Share:
        """The resources of each worker. Raises :class:`StageError` if it can never be placed."""

    def spread(
        self, asked: Resources, *, units: int, gpu: bool = True, fill: bool = False, key: str = "resources"
    ) -> Share:
        """The resources of each worker for ``units`` independent units of work: see :func:`sizes.spread`."""

    def opened(
        self, share: Share, what: str, *, need: Work | None = None, note: Note = quiet
    ) -> AbstractContextManager[Workers]:
        """Workers for the block: see :func:`workers.opened`."""

    def put(self, value: Any) -> Any:
        """A reference to ``value``, as an argument of many units of work, which receive the value."""

    def counter(self, on_report: Callable[[], None]) -> ProgressCounter:
        """A new counter of progress. ``on_report`` is called after every report made in this process."""

    def stream(
        self, rows: NDArray[np.int64], steps: Steps, asks: Callable[[Capacity], Sequence[Ask]], note: Note
    ) -> Iterator[Block]:
        """The results of ``rows``, in blocks of any size and order.

        ``asks`` returns the resources of a scoring worker, and of a cropping worker if these are separate.
        """


class OnRay:
    """Workers of the Ray cluster, which is started if none runs."""

    def start(self) -> None:
        cluster.start()

    def sized(self, ask: Callable[[Capacity], Ask]) -> Share:
        return cluster.sized(ask)

    def spread(
        self, asked: Resources, *, units: int, gpu: bool = True, fill: bool = False, key: str = "resources"
    ) -> Share:
        return cluster.spread(asked, units=units, gpu=gpu, fill=fill, key=key)

    def opened(
        self, share: Share, what: str, *, need: Work | None = None, note: Note = quiet
    ) -> AbstractContextManager[Workers]:
        return workers.opened(share, what, need=need, note=note)

    def put(self, value: Any) -> Any:
        import ray

        return ray.put(value)

    def counter(self, on_report: Callable[[], None]) -> ProgressCounter:
        del on_report
        return RayCounter.open()

    def stream(
        self, rows: NDArray[np.int64], steps: Steps, asks: Callable[[Capacity], Sequence[Ask]], note: Note
    ) -> Iterator[Block]:
        from rayddl.stages.runtime import streams

        have = cluster.capacity_now()
        asked = asks(have)
        for ask in asked:
            cluster.refuse_unfit(ask, have)
        for ask in asked:
            cluster.wait_for(ask.share.needs, note)
        judges, *cutters = (ask.share for ask in asked)
        steps = replace(
            steps,
            judges_at_once=_limited(steps.judges_at_once, asked[0]),
            cutters_at_once=_limited(steps.cutters_at_once, asked[-1]),
        )
        return streams.stream(rows, steps, judges, cutters[0] if cutters else None, note)


def _limited(at_once: int | None, ask: Ask) -> int | None:
    """``at_once``, or the limit of the stage's room if that is lower; ``None``: as many as the cluster can run."""
    parts = room.limit(ask.key)()
    return at_once if parts == sys.maxsize else min(parts, at_once or parts)
