"""Many units of work, a bounded number in flight, results taken as they finish."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from rayddl.stages.runtime import metrics
from rayddl.stages.runtime.failures import explain

POLL_SECONDS = 0.5


def as_they_finish(
    units: Iterable[Any],
    submit: Callable[[Any], Any],
    at_once: int,
    idle: Callable[[], None] = lambda: None,
) -> Iterator[tuple[Any, Any]]:
    """``(unit, result)`` of every unit, in the order in which they finish.

    ``submit`` gives the reference of a unit's task; ``idle`` runs twice a second while nothing
    finishes. The first failed unit ends it: see :func:`~rayddl.stages.runtime.failures.explain`.
    """
    import ray

    waiting = deque(units)
    running: dict[Any, Any] = {}
    try:
        while True:
            while waiting and len(running) < at_once:
                unit = waiting.popleft()
                running[submit(unit)] = unit
            metrics.depth(len(running), len(waiting))
            if not running:
                return
            done, _ = ray.wait(list(running), num_returns=1, timeout=POLL_SECONDS)
            idle()
            for ref in done:
                unit = running.pop(ref)
                yield unit, get(ref, f"unit {unit}")
    finally:
        for ref in running:
            ray.cancel(ref, force=False)


def get(ref: Any, what: str) -> Any:
    """The value of ``ref``; a failure is told as :func:`~rayddl.stages.runtime.failures.explain` tells it."""
    import ray

    try:
        return ray.get(ref)
    except ray.exceptions.RayError as error:
        explain(error, what)
