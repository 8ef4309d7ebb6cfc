"""A stage's units of work, handed to whoever is free: tasks on CPUs, long-lived processes on GPUs.

A GPU's workers live in a slot, a placement group of one bundle, and end with their stage: what they keep on the GPU
is used again by the next unit, and is gone before the next stage begins. A unit whose worker is lost is done again by
another, a bounded number of times.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from rayddl.stages.runtime import cluster, devices, failures, metrics, plugin_code
from rayddl.stages.runtime.sizes import Share

POLL_SECONDS = 0.5
RETRIES = 5
"""Times that a unit of work may lose its worker before the run stops."""
SETTLE_SECONDS = 20.0
"""How long a stage works with a process on each GPU before a second one is started: units that are done sooner do not
pay for it, and GPUs that others hold, or that are yet to come, may be there by then.
"""

Work: TypeAlias = tuple[Any, ...]
"""A module-level function and its arguments."""


class Worker:
    """A process that does one unit after another. What functions cache in it, and its device, stay for the next."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __repr__(self) -> str:
        # What Ray's dashboard calls it.
        return self._name

    def place(self) -> tuple[str, ...]:
        """The GPUs that Ray assigned; the first answer says that the process is there."""
        return devices.assigned()

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """``function(*args)``."""
        return function(*args)


class Places(Protocol):
    """Where units are done."""

    def begin(self, work: Work, name: str) -> Any:
        """The reference of the result; ``None`` where nobody is free."""

    def end(self, ref: Any, *, lost: bool) -> None:
        """Its worker is free again, or lost."""

    def close(self) -> None:
        """End the workers."""


@dataclass(frozen=True, eq=False)
class Task:
    """A unit, and what people read of it."""

    unit: Any
    made: Callable[[Any], Work]
    name: str

    @property
    def work(self) -> Work:
        """The work that the unit is; its arguments are made when they are wanted."""
        return self.made(self.unit)


class Workers(ABC):
    """Does units of work."""

    def each(
        self,
        units: Iterable[Any],
        work: Callable[[Any], Work],
        name: Callable[[Any], str],
        idle: Callable[[], None] = lambda: None,
    ) -> Iterator[tuple[Any, Any]]:
        """``(unit, result)`` of every unit, in the order in which they finish.

        ``name`` is what people read of a unit. ``idle`` is called while workers of other processes are waited for.
        """
        return self.results([Task(unit, work, name(unit)) for unit in units], idle)

    @abstractmethod
    def results(self, tasks: Sequence[Task], idle: Callable[[], None]) -> Iterator[tuple[Any, Any]]:
        """``(unit, result)`` of every task: see :meth:`each`."""

    def one(self, work: Work, name: str) -> Any:
        """The result of a single unit."""
        ((_, result),) = self.each([name], lambda _: work, lambda _: name)
        return result


class RayWorkers(Workers):
    """Does them in the places that a share of the cluster stands for.

    Ray's dashboard and the process list show units' names. Twice a second, while nothing finishes, ``idle`` is called.
    A failure that is no loss, or one loss too many, ends the work: see :func:`failures.explain`.
    """

    def __init__(self, places: Places, most: int) -> None:
        self._places, self._most = places, most

    def results(self, tasks: Sequence[Task], idle: Callable[[], None]) -> Iterator[tuple[Any, Any]]:
        import ray

        waiting, running = deque(tasks), dict[Any, Task]()
        losses: Counter[tuple[str, bool]] = Counter()
        try:
            while waiting or running:
                while waiting and len(running) < self._most:
                    ref = self._places.begin(plugin_code.carried(waiting[0].work), waiting[0].name)
                    if ref is None:
                        break
                    running[ref] = waiting.popleft()
                metrics.depth(len(running), len(waiting))
                done = _finished(running)
                idle()
                for ref in done:
                    task = running.pop(ref)
                    try:
                        result = ray.get(ref)
                    except ray.exceptions.RayError as error:
                        full, lost = failures.out_of_memory(error), failures.lost(error)
                        self._places.end(ref, lost=full or lost)
                        losses[task.name, full] += 1
                        most = failures.OOM_RETRIES if full else RETRIES
                        if not (full or lost) or losses[task.name, full] > most:
                            failures.explain(error, task.name)
                        waiting.appendleft(task)
                        continue
                    self._places.end(ref, lost=False)
                    yield task.unit, result
        finally:
            for ref in running:
                # Interrupted in a write, a worker would close the file: object storage then has it, cut off, as whole.
                # Processes of actors, which Ray does not end this way, are killed with their places.
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
) -> Iterator[Workers]:
    """Workers of ``share`` for the block; those on GPUs are named for ``what`` they do.

    Where GPUs are to be shared and ``need`` is given, it is run once, and as many workers share a GPU as its peak of
    memory allows. ``note`` takes what a person should know.
    """
    need = None if need is None else plugin_code.carried(need)
    places: Places = _Slots(share, what, need, note) if share.gpus else _Tasks(share)
    if not share.gpus:
        cluster.wait_for(share.needs)
    try:
        yield RayWorkers(places, share.at_once)
    finally:
        places.close()


def run(function: Callable[..., Any], *args: Any) -> Any:
    """``function(*args)``, as a task of its own."""
    return function(*args)


def get(ref: Any, what: str) -> Any:
    """The value of ``ref``; a failure is told as :func:`failures.explain` tells it."""
    import ray

    try:
        return ray.get(ref)
    except ray.exceptions.RayError as error:
        failures.explain(error, what)


class _Tasks:
    """Ray tasks, whose processes Ray uses again: importing and compiling cost more than many units do."""

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

    def close(self) -> None:
        pass


@dataclass
class _Held:
    """A worker of a slot."""

    actor: Any
    arriving: Any
    """The reference of its first answer; ``None`` once it has come."""
    work: Any = None
    """The reference of what it is doing."""


@dataclass
class _Slot:
    """GPUs of one node that are held for the stage, and their workers."""

    group: Any
    workers: list[_Held] = field(default_factory=list)

    @property
    def ready(self) -> list[_Held]:
        """The workers that have answered."""
        return [worker for worker in self.workers if worker.arriving is None]

    @property
    def busy(self) -> int:
        """How many of them are at work."""
        return sum(worker.work is not None for worker in self.workers)


class _Slots:
    """Workers on GPUs: one on each, then a second on each, as far as units and memory go."""

    def __init__(self, share: Share, what: str, need: Work | None, note: Callable[[str], None]) -> None:
        self._share, self._what, self._need, self._note = share, what, need, note
        self._per_slot = 1
        """Workers that a slot may have by now."""
        self._trial: tuple[_Slot, _Held] | None = None
        """The worker that measures what one takes."""
        self._count = 0
        self._began: float | None = None
        """When the first worker had come."""
        self._waiting = cluster.Waiting(share.needs, note)
        self._slots = [_Slot(cluster.held([needs], what)) for needs in share.slots]

    def begin(self, work: Work, name: str) -> Any:
        self._look()
        free = [
            (slot.busy, k, worker)
            for k, slot in enumerate(self._slots)
            for worker in slot.ready
            if worker.work is None
        ]
        if not free:
            return None
        _, _, worker = min(free, key=lambda entry: entry[:2])
        worker.work = worker.actor.run.options(name=name).remote(*work)
        return worker.work

    def end(self, ref: Any, *, lost: bool) -> None:
        for slot in self._slots:
            for worker in [w for w in slot.workers if w.work == ref]:
                worker.work = None
                if lost:
                    self._drop(slot, worker)

    def close(self) -> None:
        import ray
        from ray.util.placement_group import remove_placement_group

        for slot in self._slots:
            for worker in slot.workers:
                ray.kill(worker.actor)
            remove_placement_group(slot.group)

    def _look(self) -> None:
        """Take in who has come and who is gone, and start whoever is missing."""
        self._arrivals()
        self._start(1)
        if not any(slot.ready for slot in self._slots):
            self._waiting.look()
            return
        self._waiting.over()
        self._began = self._began or time.monotonic()
        if self._share.per_slot > 1 and time.monotonic() - self._began > SETTLE_SECONDS:
            self._share_gpus()

    def _start(self, per_slot: int) -> None:
        """Have every slot that is there get its workers: a first one for all, then a second."""
        everyone = sum(len(slot.workers) for slot in self._slots)
        for round_ in range(per_slot):
            for slot in self._slots:
                if everyone < self._share.at_once and len(slot.workers) == round_ and slot.group.wait(0):
                    slot.workers.append(self._started(slot))
                    everyone += 1

    def _arrivals(self) -> None:
        import ray

        for slot in self._slots:
            for worker in [w for w in slot.workers if w.arriving is not None]:
                if ray.wait([worker.arriving], timeout=0)[0]:
                    try:
                        ray.get(worker.arriving)
                        worker.arriving = None
                    except ray.exceptions.RayError:  # its node went while it came
                        self._drop(slot, worker)

    def _share_gpus(self) -> None:
        """Start further workers on each GPU; a first one of them tries what it takes, where that can be tried."""
        if self._need is not None:
            if self._trial is None:
                self._begin_trial()
                return
            found = self._tried()
            if found is None:
                return
            self._need, self._per_slot = None, found
        elif self._per_slot == 1:
            self._per_slot = self._share.per_slot
        self._start(self._per_slot)

    def _begin_trial(self) -> None:
        slot = next((slot for slot in self._slots if slot.ready), None)
        if slot is not None:
            worker = self._started(slot)
            slot.workers.append(worker)
            worker.work = worker.actor.run.options(name=f"{self._what}: memory tried").remote(
                devices.taken, *(self._need or ())
            )
            self._trial = slot, worker

    def _tried(self) -> int | None:
        """How many workers a GPU holds; ``None`` while that is tried."""
        import ray

        assert self._trial is not None
        slot, worker = self._trial
        if not ray.wait([worker.work], timeout=0)[0]:
            return None
        planned = self._share.per_slot
        try:
            need, free = ray.get(worker.work)
        except ray.exceptions.RayError:
            # A second one does not fit, or cannot be tried.
            self._note(f"{self._what}: one on a GPU, not {planned}: a second one failed beside it")
            if worker in slot.workers:
                self._drop(slot, worker)
            return 1
        worker.work = None
        # One was at work there already.
        fits = max(1, min(planned, 1 + int(free) // max(1, int(need))))
        if fits < planned:
            self._note(
                f"{self._what}: {fits} on a GPU, not {planned}: each takes {need / 2**30:.1f} GiB, and "
                f"{free / 2**30:.1f} GiB were free beside the first"
            )
        if fits == 1:
            self._drop(slot, worker)
        return fits

    def _started(self, slot: _Slot) -> _Held:
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        self._count += 1
        actor: Any = (
            ray.remote(Worker)
            .options(
                **self._share.options,
                max_restarts=0,
                scheduling_strategy=PlacementGroupSchedulingStrategy(slot.group),
            )
            .remote(f"{self._what} {self._count}")
        )
        return _Held(actor, actor.place.remote())

    def _drop(self, slot: _Slot, worker: _Held) -> None:
        import ray

        slot.workers.remove(worker)
        ray.kill(worker.actor)
