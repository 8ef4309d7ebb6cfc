"""Counters of progress: workers report the progress of running units, the stage reads the sum."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol


class ProgressCounter(Protocol):
    """Counts the progress of all workers. It is sent to workers as an argument."""

    def report(self, who: str, done: float, metric: str) -> None:
        """Report that ``who`` has finished ``done`` units; ``metric`` is its latest result, as text."""

    def read(self) -> tuple[float, str]:
        """The sum of units done, and the last reported metric; ``(0.0, "")`` while the counter is unreachable."""

    def done(self) -> float:
        """The sum of units done, as of the last answer: does not wait."""


class LocalCounter:
    """A counter in this process. ``on_report`` is called after every report."""

    def __init__(self, on_report: Callable[[], None] = lambda: None) -> None:
        self._reports: dict[str, tuple[float, str]] = {}
        self._on_report = on_report

    def report(self, who: str, done: float, metric: str) -> None:
        self._reports.pop(who, None)  # so that the latest report is the last one
        self._reports[who] = (done, metric)
        self._on_report()

    def read(self) -> tuple[float, str]:
        reports = list(self._reports.values())
        return sum(done for done, _ in reports), reports[-1][1] if reports else ""

    def done(self) -> float:
        return self.read()[0]


class RayCounter:
    """A counter in an actor, which reserves no CPU. After the loss of its node it restarts empty."""

    def __init__(self, handle: Any) -> None:
        self._handle, self._done = handle, 0.0
        self._asked: Any = None

    def __reduce__(self) -> tuple[Any, ...]:
        return RayCounter, (self._handle,)

    @classmethod
    def open(cls) -> RayCounter:
        """Start a new counter."""
        import ray

        options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": 3}
        return cls(ray.remote(LocalCounter).options(**options).remote())

    def report(self, who: str, done: float, metric: str) -> None:
        self._handle.report.remote(who, done, metric)

    def read(self) -> tuple[float, str]:
        import ray

        try:
            done, metric = ray.get(self._handle.read.remote(), timeout=5)
        except ray.exceptions.RayError:
            return 0.0, ""
        return float(done), str(metric)

    def done(self) -> float:
        import ray

        if self._asked is None:
            self._asked = self._handle.read.remote()
        answered, _ = ray.wait([self._asked], timeout=0)
        if answered:
            with suppress(ray.exceptions.RayError):  # restarting after the loss of its node
                self._done = float(ray.get(self._asked)[0])
            self._asked = None
        return self._done
