"""Counters of progress: workers report the progress of running units, the stage reads the sum."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol


class Tally(Protocol):
    """Counts the progress of all workers. It is sent to workers as an argument."""

    def say(self, who: str, done: float, metric: str) -> None:
        """Report that ``who`` has finished ``done`` units; ``metric`` is its latest result, as text."""

    def read(self) -> tuple[float, str]:
        """The sum of units done, and the last reported metric; ``(0.0, "")`` while the counter is unreachable."""

    def done(self) -> float:
        """The sum of units done, as of the last answer: does not wait."""


class LocalTally:
    """A counter in this process. ``heard`` is called after every report."""

    def __init__(self, heard: Callable[[], None] = lambda: None) -> None:
        self._said: dict[str, tuple[float, str]] = {}
        self._heard = heard

    def say(self, who: str, done: float, metric: str) -> None:
        self._said[who] = (done, metric)
        self._heard()

    def read(self) -> tuple[float, str]:
        said = list(self._said.values())
        return sum(done for done, _ in said), said[-1][1] if said else ""

    def done(self) -> float:
        return self.read()[0]


class RayTally:
    """A counter in an actor, which reserves no CPU. After the loss of its node it restarts empty."""

    def __init__(self, handle: Any) -> None:
        self._handle, self._done = handle, 0.0
        self._asked: Any = None

    def __reduce__(self) -> tuple[Any, ...]:
        return RayTally, (self._handle,)

    @classmethod
    def open(cls) -> RayTally:
        """Start a new counter."""
        import ray

        options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": 3}
        return cls(ray.remote(LocalTally).options(**options).remote())

    def say(self, who: str, done: float, metric: str) -> None:
        self._handle.say.remote(who, done, metric)

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
