"""What the error of a stage says to the user."""

from __future__ import annotations

import errno
import traceback

from rayddl.credentials import scrub
from rayddl.errors import RayddlError, StageError
from rayddl.pipeline import artifacts
from rayddl.pipeline.plan import PlannedStage

_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}
_KEPT = "what was done so far is kept, and the same command continues from there"


def explained(planned: PlannedStage, error: Exception) -> RayddlError:
    """Return the error of a stage with a message for the user.

    The traceback of an unexpected error is written to ``error.txt`` in the stage's folder.
    """
    # Errors of Ray tasks arrive wrapped in another exception, with the remote traceback as text.
    cause = getattr(error, "cause", None)
    plain = cause if isinstance(cause, Exception) else error
    place, stage = scrub(str(planned.folder)), f"stage {planned.name!r}"
    if isinstance(plain, RayddlError):
        return type(plain)(f"{stage}: {plain}", code=plain.code)
    text = scrub(f"{type(plain).__name__}: {plain}")
    if getattr(plain, "errno", None) in _DISK_FULL or "No space left on device" in str(plain):
        return StageError(
            f"{stage}: no space left while writing {place} ({text}); free some: {_KEPT}", code="disk-full"
        )
    if isinstance(plain, PermissionError):
        return StageError(f"{stage}: not allowed to write ({text}); {_KEPT}", code="write-not-permitted")
    trace = scrub("".join(traceback.format_exception(error)))
    try:
        planned.folder.write(artifacts.ERROR, trace.encode())
    except OSError:
        return StageError(f"{stage} stopped on an unexpected error:\n{trace}", code="unexpected-error")
    return StageError(
        f"{stage} stopped on an unexpected error: {text}\n"
        f"  its traceback is in {place}/{artifacts.ERROR}; {_KEPT}",
        code="unexpected-error",
    )
