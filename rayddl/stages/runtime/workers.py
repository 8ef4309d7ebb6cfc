"""Runs a stage's work on the Ray cluster: units are given to free workers, which are tasks on CPUs, long-lived
processes on GPUs, or teams.

Stages request workers from their context's :class:`Backend`, never from Ray: the same code runs on the cluster
(:class:`OnRay`) and in one process (:class:`rayddl.stages.runtime.in_process.InProcess`). A unit whose worker is lost
is retried a bounded number of times. Importing this module imports neither torch nor Ray.
"""

from __future__ import annotations

import sys
import time
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from rayddl.stages.runtime import cluster, failures, metrics, plugin_code, room
from rayddl.stages.runtime.capacity import Capacity
from rayddl.stages.runtime.progress import ProgressCounter, RayCounter
from rayddl.stages.runtime.sizes import Ask, Resources, Share
from rayddl.stages.runtime.slots import Slots, Work
from rayddl.stages.runtime.teams import Teams

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from rayddl.stages.runtime.streams import Block, StreamSteps

Note: TypeAlias = Callable[[str], None]

POLL_SECONDS = 0.5
LOOK_SECONDS = 5.0
"""Seconds between two looks at whether the cluster still has a node that can hold a task."""
SHORT_SECONDS = 1.0
"""Seconds that tasks are given to end by themselves before they are cancelled."""


class Places(Protocol):
    """The workers that run units."""

    def begin(self, work: Work, name: str) -> Any:
        """Submit a unit: the reference to its result, or ``None`` if no worker is free."""

    def end(self, ref: Any, *, lost: bool) -> None:
        """Mark the worker of ``ref`` as free, or as lost."""

    def thin(self) -> bool:
        """From now on, let no two units share a GPU; True if they may have shared one until now."""

    def close(self) -> None:
        """End the workers."""


@dataclass(frozen=True, eq=False)
class Task:
    """A unit with its work and its name."""

    unit: Any
    made: Callable[[Any], Work]
    name: str

    @property
    def work(self) -> Work:
        """The work of the unit; its arguments are created on access."""
        return self.made(self.unit)


class Workers(ABC):
    """Runs units of work."""

    def each(
        self,
        units: Iterable[Any],
        work: Callable[[Any], Work],
        name: Callable[[Any], str],
        idle: Callable[[], None] = lambda: None,
    ) -> Iterator[tuple[Any, Any]]:
        """Yield ``(unit, result)`` of every unit, in the order in which they finish.

        ``name`` returns a unit's name for display. ``idle`` is called while waiting for other processes.
        """
        return self.results([Task(unit, work, name(unit)) for unit in units], idle)

    @abstractmethod
    def results(self, tasks: Sequence[Task], idle: Callable[[], None]) -> Iterator[tuple[Any, Any]]:
        """Yield ``(unit, result)`` of every task: see :meth:`each`."""

    def one(self, work: Work, name: str) -> Any:
        """The result of a single unit."""
        ((_, result),) = self.each([name], lambda _: work, lambda _: name)
        return result


class RayWorkers(Workers):
    """Runs units on the cluster's resources, in ``places``.

    Ray's dashboard and the process list show units' names. ``idle`` is called twice a second while no unit finishes.
    A failure other than a lost worker, or too many lost workers, ends the work: see :func:`failures.explain`.
    """

    def __init__(
        self, places: Places, most: Callable[[], int], lacking: Callable[[], None] = lambda: None
    ) -> None:
        """``lacking`` is called while units run: where no node is left for them, it says so, and raises an error in
        the end.
        """
        self._places, self._most, self._lacking = places, most, lacking

    def results(self, tasks: Sequence[Task], idle: Callable[[], None]) -> Iterator[tuple[Any, Any]]:
        import ray

        waiting, running = deque(tasks), dict[Any, Task]()
        losses: Counter[tuple[str, bool]] = Counter()
        try:
            while waiting or running:
                while waiting and len(running) < self._most():
                    ref = self._places.begin(plugin_code.carried(waiting[0].work), waiting[0].name)
                    if ref is None:
                        break
                    running[ref] = waiting.popleft()
                metrics.depth(len(running), len(waiting))
                done = _finished(running)
                idle()
                if not done:
                    self._lacking()
                for ref in done:
                    task = running.pop(ref)
                    try:
                        result = ray.get(ref)
                    except ray.exceptions.RayError as error:
                        full, lost = failures.out_of_memory(error), failures.lost(error)
                        if failures.gpu_out_of_memory(error):
                            full = self._places.thin()
                        self._places.end(ref, lost=full or lost)
                        losses[task.name, full] += 1
                        most = failures.OOM_RETRIES if full else failures.RETRIES
                        if not (full or lost) or losses[task.name, full] > most:
                            failures.explain(error, task.name)
                        waiting.appendleft(task)
                        continue
                    self._places.end(ref, lost=False)
                    yield task.unit, result
        finally:
            cancel(list(running))


def cancel(refs: Sequence[Any]) -> None:
    """Cancel tasks, at once where they are long.

    Ray's library ends this process where a task ends just as it is cancelled (a check in its task manager), as short
    ones do that began together with one that has ended: these are let end by themselves.
    """
    import ray

    left = refs
    if refs:
        with suppress(ray.exceptions.RayError, ValueError):
            _, left = ray.wait(list(refs), num_returns=len(refs), timeout=SHORT_SECONDS)
    for ref in left:
        # A worker interrupted during a write would close the file, and object storage would keep the truncated file as
        # complete. Ray does not end actors this way: they are killed with their places.
        with suppress(ray.exceptions.RayError, ValueError):
            ray.cancel(ref, force=True)


def _finished(running: Mapping[Any, Any]) -> list[Any]:
    import ray

    if not running:
        time.sleep(POLL_SECONDS)
        return []
    done, _ = ray.wait(list(running), num_returns=1, timeout=POLL_SECONDS)
    return list(done)


@contextmanager
def opened(
    share: Share,
    what: str,
    *,
    need: Work | None = None,
    note: Callable[[str], None] = lambda text: None,
    key: str = "resources",
) -> Iterator[Workers]:
    """Workers of ``share`` for the block; workers on GPUs are named after ``what``. A team runs one unit at a time.

    If GPUs are shared and ``need`` is given, it is run once, and its peak memory limits the number of workers per GPU.
    ``note`` receives messages for the user. The number of workers is limited to the stage's :mod:`room` for its request
    ``key``.
    """
    limit = room.limit(key)
    need = None if need is None else plugin_code.carried(need)
    places: Places = Slots(share, what, need, note, limit) if share.gpus else _Tasks(share)
    if share.team:
        places = Teams(share)
    if share.team:
        cluster.wait_for(share.needs, note, share.range[0] if share.range else share.at_once)
    elif not share.gpus:
        cluster.wait_for(share.needs)

    def most() -> int:
        if share.team:
            return 1
        return share.at_once if share.gpus else min(share.at_once, limit())

    waiting, looked = cluster.Waiting(share.needs, note), time.monotonic()

    def lacking() -> None:
        nonlocal looked
        if share.gpus or share.team or time.monotonic() < looked + LOOK_SECONDS:  # slots wait for themselves
            return
        looked = time.monotonic()
        if cluster.capacity_now().holds(share.needs):
            waiting.over()
        else:
            waiting.poll()

    try:
        yield RayWorkers(places, most, lacking)
    finally:
        places.close()


def run(function: Callable[..., Any], *args: Any) -> Any:
    """Return ``function(*args)``: the function of a task."""
    return function(*args)


def get(ref: Any, what: str) -> Any:
    """The value of ``ref``; errors are raised by :func:`failures.explain`."""
    import ray

    # Outside the main thread, an interrupt does not end a wait inside Ray.
    while not ray.wait([ref], timeout=POLL_SECONDS)[0]:
        pass
    try:
        return ray.get(ref)
    except ray.exceptions.RayError as error:
        failures.explain(error, what)


class _Tasks:
    """Ray tasks, whose processes Ray reuses: imports and compilation take longer than many units."""

    def __init__(self, share: Share) -> None:
        self._options = {**share.options, "max_retries": 0}
        self._made: dict[Any, Any] = {}

    def begin(self, work: Work, name: str) -> Any:
        import ray

        function, *args = work
        if function not in self._made:
            self._made[function] = ray.remote(max_calls=0)(function)
        return self._made[function].options(name=name, **self._options).remote(*args)

    def end(self, ref: Any, *, lost: bool) -> None:
        del ref, lost

    def thin(self) -> bool:
        return False

    def close(self) -> None:
        pass


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
        self, share: Share, what: str, *, need: Work | None = None, note: Note = quiet, key: str = "resources"
    ) -> AbstractContextManager[Workers]:
        """Workers for the block: see :func:`opened`."""

    def put(self, value: Any) -> Any:
        """A reference to ``value``, as an argument of many units of work, which receive the value."""

    def counter(self, on_report: Callable[[], None]) -> ProgressCounter:
        """A new counter of progress. ``on_report`` is called after every report made in this process."""

    def stream(
        self,
        rows: NDArray[np.int64],
        steps: StreamSteps,
        asks: Callable[[Capacity], Sequence[Ask]],
        note: Note,
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
        self, share: Share, what: str, *, need: Work | None = None, note: Note = quiet, key: str = "resources"
    ) -> AbstractContextManager[Workers]:
        return opened(share, what, need=need, note=note, key=key)

    def put(self, value: Any) -> Any:
        import ray

        return ray.put(value)

    def counter(self, on_report: Callable[[], None]) -> ProgressCounter:
        del on_report
        return RayCounter.open()

    def stream(
        self,
        rows: NDArray[np.int64],
        steps: StreamSteps,
        asks: Callable[[Capacity], Sequence[Ask]],
        note: Note,
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
