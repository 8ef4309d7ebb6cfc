"""Long-lived workers on GPUs.

They run in a slot, a placement group of one bundle, and end with their stage: the next unit reuses their data on the
GPU, which is freed before the next stage begins.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from rayddl.stages.runtime import cluster, devices, failures
from rayddl.stages.runtime.sizes import Share

SETTLE_SECONDS = 20.0
"""Seconds with one process per GPU before a second one is started: short stages do not repay its start, and further
GPUs may become free or be added meanwhile.
"""

Work: TypeAlias = tuple[Any, ...]
"""A unit of work: a module-level function and its arguments."""


class Worker:
    """A process that runs one unit after another. Its caches and its device are kept for the next unit."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __repr__(self) -> str:
        # The name on Ray's dashboard.
        return self._name

    def place(self) -> tuple[str, ...]:
        """The GPUs that Ray assigned; the first answer shows that the process has started."""
        return devices.assigned()

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Return ``function(*args)``."""
        return function(*args)


@dataclass
class Held:
    """A worker of a slot."""

    actor: Any
    arriving: Any
    """The reference to its first answer; ``None`` after it has started."""
    work: Any = None
    """The reference to the result of its current unit; ``None`` if it is free."""
    started: bool = False
    """True after its first answer, also while it is asked again."""


@dataclass
class Slot:
    """GPUs of one node that are reserved for the stage, and their workers."""

    group: Any
    workers: list[Held] = field(default_factory=list)
    failed: int = 0
    """Failed starts since a worker last answered. Counted here: a lost node fails the starts of all its slots."""

    @property
    def ready(self) -> list[Held]:
        """The workers that have started."""
        return [worker for worker in self.workers if worker.arriving is None]

    @property
    def busy(self) -> int:
        """The number of workers that run a unit."""
        return sum(worker.work is not None for worker in self.workers)


class Slots:
    """Workers on GPUs: one on each, then further ones on each, as far as units and memory allow."""

    def __init__(
        self,
        share: Share,
        what: str,
        need: Work | None,
        note: Callable[[str], None],
        limit: Callable[[], int],
    ) -> None:
        self._share, self._what, self._need, self._note = share, what, need, note
        self._limit = limit
        """Returns the current limit of slots."""
        self._per_slot = 1
        """The current limit of workers per slot."""
        self._trial: tuple[Slot, Held] | None = None
        """The slot and the worker that measures memory."""
        self._alone = False
        """True after a unit lacked memory beside others: from then on, each has a GPU for itself."""
        self._count = 0
        self._began: float | None = None
        """The time at which the first worker had started."""
        self._waiting = cluster.Waiting(share.needs, note)
        self._slots: list[Slot] = []
        self._reserve()

    def begin(self, work: Work, name: str) -> Any:
        self._poll()
        free = [
            (slot.busy, k, worker)
            for k, slot in enumerate(self._slots)
            for worker in slot.ready
            if worker.work is None and not (self._alone and slot.busy)
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
                if lost or (self._alone and len(slot.workers) > 1):
                    self._drop(slot, worker)
        if lost:
            # What was there until now has not been waited for.
            self._waiting.over()
            self._ask_again()

    def thin(self) -> bool:
        shared = self._share.per_slot > 1
        if shared and not self._alone:
            self._note(f"{self._what}: one on a GPU from now on: several do not fit into its memory")
            self._alone = True
            trial = self._trial[1] if self._trial is not None and self._need is not None else None
            for slot in self._slots:
                # Those at work end with their units.
                surplus = [w for k, w in enumerate(slot.workers) if w is trial or (k and w.work is None)]
                for worker in surplus:
                    self._drop(slot, worker)
        return shared

    def close(self) -> None:
        import ray
        from ray.util.placement_group import remove_placement_group

        for slot in self._slots:
            for worker in slot.workers:
                ray.kill(worker.actor)
            remove_placement_group(slot.group)

    def _poll(self) -> None:
        """Update the state of started and lost workers, and start missing ones."""
        self._reserve()
        self._arrivals()
        self._start(1)
        if not any(slot.ready for slot in self._slots):
            self._waiting.poll()
            return
        self._waiting.over()
        self._began = self._began or time.monotonic()
        settled = time.monotonic() - self._began > SETTLE_SECONDS
        if self._share.per_slot > 1 and settled and not self._alone:
            self._share_gpus()

    def _ask_again(self) -> None:
        """Ask the free workers whether they are still there: those of a lost node would each fail a unit at once."""
        for slot in self._slots:
            for worker in slot.ready:
                if worker.work is None:
                    worker.arriving = worker.actor.place.remote()

    def _reserve(self) -> None:
        """Request the slots that the stage may have by now."""
        for needs in self._share.slots[len(self._slots) : self._limit()]:
            self._slots.append(Slot(cluster.held([needs], self._what)))

    def _start(self, per_slot: int) -> None:
        """Start workers in every placed slot: a first one in all slots, then further ones up to ``per_slot``."""
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
                    except ray.exceptions.RayError as error:
                        self._drop(slot, worker)
                        if not worker.started:
                            self._start_failed(slot, error)
                    else:
                        worker.arriving, worker.started, slot.failed = None, True, 0

    def _start_failed(self, slot: Slot, error: Exception) -> None:
        """Raise the user's error, unless another start may succeed. No unit is handed out that would report it."""
        slot.failed += 1
        full = failures.out_of_memory(error)
        most = failures.OOM_RETRIES if full else failures.RETRIES
        if not (full or failures.lost(error)) or slot.failed > most:
            failures.explain(error, f"{self._what}: a unit")

    def _share_gpus(self) -> None:
        """Start further workers on each GPU; if possible, the first of them measures its memory."""
        if self._need is not None:
            if self._trial is None:
                self._begin_trial()
                return
            found = self._tried()
            if found is None:
                return
            self._need, self._per_slot = None, found
        elif self._trial is None:  # else the number that was found remains, one too
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
        """The number of workers that fit on a GPU; ``None`` while that is measured."""
        import ray

        assert self._trial is not None
        slot, worker = self._trial
        if not ray.wait([worker.work], timeout=0)[0]:
            return None
        planned = self._share.per_slot
        try:
            need, free = ray.get(worker.work)
        except ray.exceptions.RayError:
            # A second worker does not fit, or cannot be measured.
            self._note(f"{self._what}: one on a GPU, not {planned}: a second one failed beside it")
            if worker in slot.workers:
                self._drop(slot, worker)
            return 1
        worker.work = None
        # The free memory excludes the first worker's.
        fits = max(1, min(planned, 1 + int(free) // max(1, int(need))))
        if fits < planned:
            self._note(
                f"{self._what}: {fits} on a GPU, not {planned}: each takes {need / 2**30:.1f} GiB, and "
                f"{free / 2**30:.1f} GiB were free beside the first"
            )
        if fits == 1:
            self._drop(slot, worker)
        return fits

    def _started(self, slot: Slot) -> Held:
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
        return Held(actor, actor.place.remote())

    def _drop(self, slot: Slot, worker: Held) -> None:
        import ray

        slot.workers.remove(worker)
        ray.kill(worker.actor)
