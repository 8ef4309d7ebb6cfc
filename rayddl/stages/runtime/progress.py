"""How far workers are, told to the driver while they work."""

from __future__ import annotations

from contextlib import suppress
from typing import Any


class Tally:
    """An actor that holds the last word of every worker. It needs no CPU of its own."""

    def __init__(self) -> None:
        self._said: dict[str, tuple[float, str]] = {}

    def say(self, who: str, done: float, metric: str) -> None:
        """``who`` has done so many units; ``metric`` is its last figure."""
        self._said[who] = (done, metric)

    def read(self) -> tuple[float, str]:
        """Units done by all, and the figure said last."""
        said = list(self._said.values())
        return sum(done for done, _ in said), said[-1][1] if said else ""


def open_tally() -> Any:
    """A handle on a new tally; lost with its node, and started again empty."""
    import ray

    return ray.remote(Tally).options(num_cpus=0, max_restarts=-1, max_task_retries=3).remote()


def read(handle: Any) -> tuple[float, str]:
    """What the tally says, or nothing while it cannot be reached."""
    import ray

    try:
        done, metric = ray.get(handle.read.remote(), timeout=5)
    except ray.exceptions.RayError:
        return 0.0, ""
    return float(done), str(metric)


class Glance:
    """Units done by all, as far as a tally has told; never waits for it."""

    def __init__(self, handle: Any) -> None:
        self._handle, self._done = handle, 0.0
        self._asked: Any = None

    def done(self) -> float:
        """What the tally answered last."""
        import ray

        if self._asked is None:
            self._asked = self._handle.read.remote()
        answered, _ = ray.wait([self._asked], timeout=0)
        if answered:
            with suppress(ray.exceptions.RayError):  # lost with its node, and on its way back
                self._done = float(ray.get(self._asked)[0])
            self._asked = None
        return self._done
