"""Progress of units of work while they run: workers report it, the stage reads it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol


class Tally(Protocol):
    """Progress of all workers together. What is sent to workers is the tally itself."""

    def say(self, who: str, done: float, metric: str) -> None:
        """Report that ``who`` has done so many units; ``metric`` is its last figure."""

    def read(self) -> tuple[float, str]:
        """Units done by all, and the last reported figure; zero and nothing while it cannot be reached."""

    def done(self) -> float:
        """Units done by all, as far as is known without waiting."""


class LocalTally:
    """A tally in this process. ``heard`` is called after every report."""

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
    """A tally in an actor, which needs no CPU of its own. Lost with its node, it is started again empty."""

    def __init__(self, handle: Any) -> None:
        self._handle, self._done = handle, 0.0
        self._asked: Any = None

    def __reduce__(self) -> tuple[Any, ...]:
        return RayTally, (self._handle,)

    @classmethod
    def open(cls) -> RayTally:
        """A new one."""
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
            with suppress(ray.exceptions.RayError):  # lost with its node, and restarting
                self._done = float(ray.get(self._asked)[0])
            self._asked = None
        return self._done
