"""Many units of work, a bounded number in flight, results taken as they finish."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn

from rayddl.errors import RayddlError, StageError
from rayddl.stages.runtime import metrics

POLL_SECONDS = 0.5


def as_they_finish(
    units: Iterable[Any],
    submit: Callable[[Any], Any],
    at_once: int,
    idle: Callable[[], None] = lambda: None,
) -> Iterator[tuple[Any, Any]]:
    """``(unit, result)`` of every unit, in the order in which they finish.

    ``submit`` gives the reference of a unit's task; ``idle`` runs twice a second while nothing
    finishes. The first failed unit ends it: see :func:`explain`.
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
    """The value of ``ref``; a failure is told as :func:`explain` tells it."""
    import ray

    try:
        return ray.get(ref)
    except ray.exceptions.RayError as error:
        explain(error, what)


def explain(error: BaseException, what: str) -> NoReturn:
    """Raise what a failed task means to the user.

    An error that rayddl raised on purpose comes out as it went in; a worker that died for lack of
    memory, or too often, becomes a :class:`StageError` that says what to change.
    """
    import ray

    cause = getattr(error, "cause", None)
    if isinstance(cause, RayddlError):
        raise cause from None
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        raise StageError(
            f"{what} was stopped because its node ran out of memory: {_short(error)} "
            "Lower the stage's resources.at_once, or give it a node with more memory."
        ) from error
    if isinstance(error, ray.exceptions.WorkerCrashedError | ray.exceptions.ActorDiedError):
        raise StageError(
            f"{what} lost its worker too often: {_short(error)} What was finished is kept; "
            "run the same command to go on."
        ) from error
    raise error


def _short(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".")[:300] + "." if lines else type(error).__name__ + "."
