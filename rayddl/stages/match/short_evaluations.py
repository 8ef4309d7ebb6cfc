"""Short evaluations: students trained on the set of some iterations, in parallel to the matching loop."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rayddl.methods.training.hard import Protocol
from rayddl.stages import parquet as tables
from rayddl.stages.context import Context
from rayddl.stages.evaluate import worker as students
from rayddl.stages.evaluate.student_data import Shared, Student, TrainingData
from rayddl.stages.match import worker as matcher
from rayddl.stages.match.settings import SHORT_EVALUATIONS
from rayddl.stages.runtime import cluster, failures, plugin_code, room, slots, workers
from rayddl.stages.runtime.groups import Group

BACKLOG = 8
"""Most evaluations in the queue. If they become due faster than they finish, the oldest are dropped."""


GRACE_SECONDS = 30.0
"""Least time limit for evaluations after the last iteration; extended until the last iteration's are done."""
LEFT = ("snapshot-", "student-")
"""Prefixes of the names of files that are deleted at the stage's end."""


@dataclass(frozen=True)
class _Due:
    iteration: int
    seed: int

    @property
    def file(self) -> str:
        """The name of its result file."""
        return f"student-{self.iteration:06d}-{self.seed}.json"


@dataclass(frozen=True)
class _Beside:
    """A CPU of a worker of the loop while that waits."""

    strategy: Any


def _is_of_a_task(place: Any) -> bool:
    return place is None or isinstance(place, _Beside)


class ShortEvaluations:
    """Runs the short evaluations of a match stage: on a share of its first GPU, or on CPUs that it does not use. Where
    it uses all CPUs, the loop waits for each evaluation.
    """

    def __init__(self, job: matcher.MatchTask, context: Context, group: Group) -> None:
        import ray

        config = job.config
        self._job, self._context, self._group = job, context, group
        self._waiting: deque[_Due] = deque()
        self._running: dict[Any, tuple[_Due, Any]] = {}
        """Student and place, by the reference to the result."""
        self._found: dict[_Due, float] = {}
        self._left_out: set[int] = set()
        self._data: dict[int, Any] = {}
        self._places = deque[Any]()
        self._pausing = False
        if config.evaluate_every:
            self._shared = ray.put(shared_by(job))
            self._task = ray.remote(max_retries=failures.RETRIES)(workers.run)
            self._places.extend(self._places_during())
            self._pausing = not self._places
            if self._pausing:
                self._places.extend(map(_Beside, group.idle()))

    def begin(self, worker: Any, iteration: int) -> None:
        """Queue the students of ``iteration``: the loop is at this iteration, or has written a snapshot of it."""
        config, out = self._job.config, self._context.out
        if not config.evaluate_every:
            return
        snapshot = _snapshot(iteration)
        if not out.has(snapshot):
            workers.get(worker.keep.remote(snapshot, iteration), "keeping a snapshot")
        for due in (_Due(iteration, seed) for seed in range(config.evaluate_seeds)):
            if out.has(due.file):
                self._found[due] = float(out.read_json(due.file)["accuracy"])
            else:
                self._waiting.append(due)
        begun = {due.iteration for due in (*self._under_way, *self._found)}
        idle = [i for i in dict.fromkeys(due.iteration for due in self._waiting) if i not in begun]
        if not self._pausing:
            self._leave_out(idle[: max(0, len(idle) - BACKLOG)])
        self._poll(0)
        while self._pausing and (self._waiting or self._running):
            self._poll(workers.POLL_SECONDS)

    def latest(self) -> str:
        """The accuracy of the latest iteration that has one, as text for the progress line."""
        self._poll(0)
        if not self._found:
            return ""
        rows = [(due.iteration, due.seed, value) for due, value in self._found.items()]
        return f"  accuracy {100 * newest(rows):.1f} %"

    def finish(self) -> list[tuple[int, int, float]]:
        """Write and return the rows of all evaluations: (iteration, seed, accuracy).

        The matching has ended. The last iteration's evaluation uses its resources; the others run until it ends, at
        least for :data:`GRACE_SECONDS`.
        """
        last = self._job.config.iterations
        if self._job.config.evaluate_every:
            self._places.extend(() if self._pausing else self._places_after())
            self._waiting = deque(sorted(self._waiting, key=lambda due: due.iteration != last))
            began = time.monotonic()
            while left := {due.iteration for due in (*self._waiting, *self._under_way)}:
                if last not in left and time.monotonic() - began > GRACE_SECONDS:
                    break
                self._poll(workers.POLL_SECONDS)
        self._leave_out(list({due.iteration for due in (*self._waiting, *self._under_way)}))
        self.close()
        if self._left_out:
            self._context.progress.note(
                f"{len(self._left_out)} short evaluations were left out: they take longer than the iterations between "
                "two of them. Raise evaluate_every, or lower evaluate_epochs or evaluate_seeds."
            )
        rows = sorted((due.iteration, due.seed, value) for due, value in self._found.items())
        columns = {name: [row[k] for row in rows] for k, name in enumerate(("iteration", "seed", "accuracy"))}
        types = {"iteration": "int64", "seed": "int64", "accuracy": "double"}
        tables.write(self._context.out, "accuracy.parquet", columns, types)
        return rows

    def close(self) -> None:
        """Cancel what runs, and release its places. May be called more than once."""
        import ray

        workers.cancel([ref for ref, (_, place) in self._running.items() if _is_of_a_task(place)])
        for place in (*self._places, *(place for _, place in self._running.values())):
            if not _is_of_a_task(place):
                ray.kill(place)
        # Cancelled ones would raise an error where they are collected.
        self._running.clear()
        self._places.clear()

    def _places_during(self) -> Iterator[Any]:
        """Yield places for students beside the matching: an actor on the GPU, or ``None`` for a task on a free CPU."""
        if self._group.share.gpus:
            yield self._actor()
            return
        taken = self._group.share.num_cpus * self._group.share.at_once
        free = int(sum(n.get("CPU", 0) for n in cluster.capacity_now().nodes) - taken)
        most = self._job.config.short_at_once
        yield from [None] * min(free, most, room.limit(SHORT_EVALUATIONS)())

    def _places_after(self) -> Iterator[Any]:
        """Yield places on the resources that the matching has released, for the last evaluation."""
        if self._group.share.gpus:
            if self._running:
                yield self._actor()
            return
        self._group.close()
        yield from [None] * max(1, int(self._group.share.num_cpus * self._group.share.at_once))

    def _actor(self) -> Any:
        import ray

        made = ray.remote(slots.Worker).options(
            **(self._group.beside() or {}), max_restarts=failures.RETRIES, max_task_retries=failures.RETRIES
        )
        return made.remote("match evaluation")

    @property
    def _under_way(self) -> list[_Due]:
        return [due for due, _ in self._running.values()]

    def _poll(self, timeout: float) -> None:
        """Collect finished students, and start queued ones on free places."""
        import ray

        if self._running:
            done, _ = ray.wait(list(self._running), num_returns=1, timeout=timeout)
            for ref in done:
                due, place = self._running.pop(ref)
                self._places.append(place)
                self._found[due] = float(workers.get(ref, _named(due))["accuracy"])
        while self._places and self._waiting:
            due, place = self._waiting.popleft(), self._places.popleft()
            self._running[self._started(due, place)] = due, place

    def _started(self, due: _Due, place: Any) -> Any:
        student = Student("short", self._job.net, due.seed, due.file)
        work = plugin_code.carried(
            (students.train_one, self._shared, self._sent_data(due.iteration), student)
        )
        if isinstance(place, _Beside):
            return self._task.options(
                num_cpus=0, name=_named(due), scheduling_strategy=place.strategy
            ).remote(*work)
        if place is None:
            return self._task.options(num_cpus=1, name=_named(due)).remote(*work)
        return place.run.options(name=_named(due)).remote(*work)

    def _sent_data(self, iteration: int) -> Any:
        import ray

        if iteration not in self._data:
            kept = matcher.read_snapshot(self._context.out, _snapshot(iteration))
            # Only students of the same evaluation share it.
            self._data = {iteration: ray.put(training_data_of(self._job, kept, f"iteration {iteration}"))}
        return self._data[iteration]

    def _leave_out(self, iterations: list[int]) -> None:
        self._left_out.update(iterations)
        self._waiting = deque(due for due in self._waiting if due.iteration not in self._left_out)


def newest(rows: Sequence[tuple[int, int, float]]) -> float:
    """The mean accuracy over the seeds of the latest iteration in ``rows`` (iteration, seed, accuracy)."""
    last = max(iteration for iteration, _, _ in rows)
    return statistics.fmean(value for iteration, _, value in rows if iteration == last)


def shared_by(job: matcher.MatchTask) -> Shared:
    """The arguments that the students of all evaluations share."""
    return Shared(job.source, job.space, job.out, job.seed, job.config.precision, job.compile, threads=1)


def training_data_of(job: matcher.MatchTask, kept: matcher.Snapshot, name: str) -> TrainingData:
    """The training data of a snapshot's students."""
    images, labels, lr = kept
    protocol = Protocol(epochs=job.config.evaluate_epochs, lr=lr, augment=job.config.augment)
    return TrainingData(name, images, labels, None, protocol)


def _snapshot(iteration: int) -> str:
    return f"snapshot-{iteration:06d}.safetensors"


def _named(due: _Due) -> str:
    return f"match evaluation at {due.iteration}, seed {due.seed}"
