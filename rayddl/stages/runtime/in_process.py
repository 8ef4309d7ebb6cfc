"""A backend within this process, for callers that are workers themselves: Ray's tasks would wait for the CPUs that
the caller holds. Units of work run one after another, on the caller's device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rayddl.stages.runtime import cores
from rayddl.stages.runtime.capacity import Capacity
from rayddl.stages.runtime.progress import LocalCounter, ProgressCounter
from rayddl.stages.runtime.sizes import Ask, Resources, Share
from rayddl.stages.runtime.slots import Work
from rayddl.stages.runtime.workers import Note, Task, Workers, quiet

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from rayddl.stages.runtime.streams import Block, StreamSteps


class InTurn(Workers):
    """Runs one unit after another. Errors of a unit are raised unchanged."""

    def results(self, tasks: Sequence[Task], idle: Callable[[], None]) -> Iterator[tuple[Any, Any]]:
        del idle
        for task in tasks:
            yield task.unit, done(task.work)


@dataclass(frozen=True)
class InProcess:
    """Workers of ``threads`` torch threads in this process, which use Ray's object store if Ray runs."""

    threads: int = 1

    def start(self) -> None:
        import torch

        torch.set_num_threads(self.threads)

    def sized(self, ask: Callable[[Capacity], Ask]) -> Share:
        del ask
        return self._share

    def spread(
        self, asked: Resources, *, units: int, gpu: bool = True, fill: bool = False, key: str = "resources"
    ) -> Share:
        del asked, units, gpu, fill, key
        return self._share

    def opened(
        self, share: Share, what: str, *, need: Work | None = None, note: Note = quiet, key: str = "resources"
    ) -> AbstractContextManager[Workers]:
        del share, what, need, note, key
        return nullcontext(InTurn())

    def put(self, value: Any) -> Any:
        return value

    def counter(self, on_report: Callable[[], None]) -> ProgressCounter:
        return LocalCounter(on_report)

    def stream(
        self,
        rows: NDArray[np.int64],
        steps: StreamSteps,
        asks: Callable[[Capacity], Sequence[Ask]],
        note: Note,
    ) -> Iterator[Block]:
        from rayddl.stages.runtime.streams import in_turn

        del asks, note
        return in_turn(rows, steps)

    @property
    def _share(self) -> Share:
        # The work finds the caller's GPU itself.
        return Share(float(self.threads), 0.0, None, 1)


def done(work: Work) -> Any:
    """Run ``work`` in this process and return its result. Restores the caller's number of torch threads, and the watch
    over them.
    """
    import torch

    threads, watched = torch.get_num_threads(), cores.watched()
    function, *args = work
    try:
        return function(*args)
    finally:
        torch.set_num_threads(threads)
        cores.watch(watched)
