"""What a failed task means: whether it is worth another try, and what the user is told."""

from __future__ import annotations

from typing import NoReturn

from rayddl.errors import RayddlError, StageError


def lost(error: BaseException) -> bool:
    """True if a worker, its actor or its node died: the unit is worth another try."""
    import ray

    gone = (
        ray.exceptions.WorkerCrashedError,
        ray.exceptions.ActorDiedError,
        ray.exceptions.ActorUnavailableError,
        ray.exceptions.NodeDiedError,
        ray.exceptions.ObjectLostError,
    )
    return isinstance(error, gone)


def out_of_memory(error: BaseException) -> bool:
    """True if Ray's memory monitor killed the worker."""
    import ray

    return isinstance(error, ray.exceptions.OutOfMemoryError)


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
