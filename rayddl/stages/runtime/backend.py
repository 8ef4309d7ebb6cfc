"""Where a stage's work is done: by Ray's workers, or in this process.

A stage asks its context's backend for workers and never Ray itself, so the same code runs in both. Importing this
imports neither torch nor Ray.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from rayddl.stages.runtime import cluster, workers
from rayddl.stages.runtime.capacity import Capacity
from rayddl.stages.runtime.progress import RayTally, Tally
from rayddl.stages.runtime.sizes import Ask, Resources, Share
from rayddl.stages.runtime.workers import Work, Workers

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from rayddl.stages.runtime.streams import Block, Steps

Note: TypeAlias = Callable[[str], None]


def quiet(text: str) -> None:
    """Takes a note and shows it to nobody."""
    del text


class Backend(Protocol):
    """What a stage asks for."""

    def start(self) -> None:
        """Make workers available. Called by every stage first."""

    def sized(self, ask: Callable[[Capacity], Ask]) -> Share:
        """What each worker gets. Raises :class:`StageError` where it can never be placed."""

    def spread(
        self, asked: Resources, *, units: int, gpu: bool = True, fill: bool = False, key: str = "resources"
    ) -> Share:
        """What each worker gets of ``units`` independent units of work: see :func:`sizes.spread`."""

    def opened(
        self, share: Share, what: str, *, need: Work | None = None, note: Note = quiet
    ) -> AbstractContextManager[Workers]:
        """Workers for the block: see :func:`workers.opened`."""

    def put(self, value: Any) -> Any:
        """``value`` as an argument of many units of work, which get the value itself."""

    def tally(self, heard: Callable[[], None]) -> Tally:
        """A new tally of progress. ``heard`` is called after every report that is made in this process."""

    def stream(
        self, rows: NDArray[np.int64], steps: Steps, asks: Callable[[Capacity], Sequence[Ask]], note: Note
    ) -> Iterator[Block]:
        """The outcome of ``rows``, in any order and any portions.

        ``asks`` says what a judge asks for, and a cutter where cutters are apart from judges.
        """


class OnRay:
    """Workers of the Ray cluster that runs, or is to be started."""

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

    def tally(self, heard: Callable[[], None]) -> Tally:
        del heard
        return RayTally.open()

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
        return streams.stream(rows, steps, judges, cutters[0] if cutters else None, note)
