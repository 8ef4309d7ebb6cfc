"""What Ray's errors mean: whether another try is worth it, and what the user can change."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NoReturn

from rayddl.errors import RayddlError, StageError

OOM_RETRIES = 3
"""Times that a unit of work is tried again after its worker was killed for lack of memory. Ray's own default is
no limit: a unit that never fits would be tried for ever."""

_KEPT = "What was finished is kept; run the same command to continue."
_HELD = re.compile(r"memory used=(?P<gib>[\d.]+)GB")
_NODE = re.compile(
    r"\(IP: (?P<ip>[^,)]+).*?was (?:running was )?(?P<used>[\d.]+)GB(?: used)? / (?P<whole>[\d.]+)GB",
    re.DOTALL,
)
_MOST_BYTES = re.compile(r"exceed\w* threshold of (?P<bytes>\d+)B")
_MOST_SHARE = re.compile(r"threshold of (?P<share>0?\.\d+|1(?:\.0+)?)\b")
_GIB = 2**30


@dataclass(frozen=True)
class Shortage:
    """What Ray's memory monitor says of a worker that it killed, in GiB."""

    node: str
    held: float
    """What the worker had when it was killed."""
    used: float
    """What all processes of the node had."""
    most: float
    """What they may have before workers are killed."""
    whole: float
    """The node's memory."""

    @property
    def others(self) -> float:
        """What everything but the worker had."""
        return max(0.0, self.used - self.held)

    @property
    def left(self) -> float:
        """What there was for the worker."""
        return max(0.0, self.most - self.others)


def out_of_memory(error: BaseException) -> bool:
    """True if Ray's memory monitor killed the worker."""
    import ray

    return isinstance(_inner(error), ray.exceptions.OutOfMemoryError)


def lost(error: BaseException) -> bool:
    """True if a worker, its node or its result is gone for a reason outside the work, so that another try may
    succeed. False for lack of memory (:func:`out_of_memory`) and for an actor whose constructor raised.
    """
    import ray

    known, error = ray.exceptions, _inner(error)
    if isinstance(error, known.RayActorError):
        return not error.actor_init_failed
    # An owner that is gone is this process or what it has started; nothing can be asked of it again.
    hopeless = (known.OwnerDiedError, known.ObjectFreedError, known.ReferenceCountingAssertionError)
    gone = (known.WorkerCrashedError, known.NodeDiedError, known.LocalRayletDiedError, known.ObjectLostError)
    return isinstance(error, gone) and not isinstance(error, hopeless)


def explain(error: BaseException, what: str) -> NoReturn:
    """Raise what a failed task means to the user; ``what`` names it, as in ``unit 3``.

    An error that rayddl raised on purpose comes out as it went in; a worker that died for lack of
    memory, or too often, becomes a :class:`StageError` that says what to change.
    """
    import ray

    cause = getattr(error, "cause", None)
    if isinstance(cause, RayddlError):
        raise cause from None
    if out_of_memory(error):
        raise StageError(_too_large(what, str(_inner(error))), code="out-of-memory") from error
    if isinstance(_inner(error), ray.exceptions.RuntimeEnvSetupError):
        raise StageError(
            f"{what} found no environment on its node: {_last(_inner(error))} `rayddl doctor --address` says which "
            f"nodes cannot set up what a run brings along. {_KEPT}",
            code="environment-not-set-up",
        ) from error
    if isinstance(error, ray.exceptions.RayActorError) and error.actor_init_failed:
        raise StageError(
            f"{what} could not start its worker: {_last(error)} {_KEPT}", code="worker-not-started"
        ) from error
    if lost(error):
        raise StageError(
            f"{what} lost its worker too often: {_short(_inner(error))} {_KEPT}", code="worker-lost"
        ) from error
    raise error


def shortage(text: str) -> Shortage | None:
    """The figures in the text of Ray's ``OutOfMemoryError``; ``None`` if it has none."""
    node = _NODE.search(text)
    # Several workers may be killed together, and the error does not say which of them was this one.
    killed = [line for line in text.splitlines() if line.lstrip().startswith("Selected to kill")]
    held = [float(found["gib"]) for found in _HELD.finditer("\n".join(killed) or text)]
    if node is None or not held:
        return None
    whole = float(node["whole"])
    exact, share = _MOST_BYTES.search(text), _MOST_SHARE.search(text)
    most = int(exact["bytes"]) / _GIB if exact else float(share["share"]) * whole if share else whole
    return Shortage(node["ip"], max(held), float(node["used"]), most, whole)


def _too_large(what: str, text: str) -> str:
    found = shortage(text)
    if found is None:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        why = f"its node ran out of memory ({lines[0][:300] if lines else 'no figures'})"
    else:
        why = (
            f"it needs more than {_gib(found.held)} GiB, and node {found.node} has {_gib(found.left)} GiB for it: of "
            f"{found.whole:.1f} GiB at most {found.most:.1f} may be used, and other processes hold {found.others:.1f}"
        )
    return (
        f"{what} was stopped for lack of memory: {why}. Lower the stage's resources.at_once or its batch, set "
        "resources.memory (bytes of one worker) so that fewer of them share a node, or add a node with more memory. "
        f"{_KEPT}"
    )


def _gib(value: float) -> str:
    return f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def _inner(error: BaseException) -> BaseException:
    """What was raised: a task that asked for the result of another one passes its error on, wrapped."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, Exception) else error


def _short(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return _sentence(lines[0] if lines else type(error).__name__)


def _last(error: BaseException) -> str:
    """What was raised stands at the end of a traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return _sentence(lines[-1] if lines else type(error).__name__)


def _sentence(text: str) -> str:
    return text.rstrip(".")[:300] + "."
