"""Classifies Ray's errors: whether a retry may succeed, and what the user can change."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NoReturn

from rayddl.errors import RayddlError, StageError

RETRIES = 5
"""Retries of a unit of work whose worker was lost, new starts in a row of a worker that is lost before it has started,
and new teams after the loss of workers."""
OOM_RETRIES = 3
"""Retries of a unit of work whose worker was killed for lack of memory. Ray's default is unlimited: a unit that
never fits would be retried for ever."""

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
    """The figures that Ray's memory monitor reports on a killed worker, in GiB."""

    node: str
    held: float
    """Memory of the worker when it was killed."""
    used: float
    """Memory of all processes of the node."""
    most: float
    """The limit for all processes, above which workers are killed."""
    whole: float
    """The node's memory."""

    @property
    def others(self) -> float:
        """Memory of all processes except the worker."""
        return max(0.0, self.used - self.held)

    @property
    def left(self) -> float:
        """Memory that was available to the worker."""
        return max(0.0, self.most - self.others)


def out_of_memory(error: BaseException) -> bool:
    """True if Ray's memory monitor killed the worker."""
    import ray

    return isinstance(_inner(error), ray.exceptions.OutOfMemoryError)


def gpu_out_of_memory(error: BaseException) -> bool:
    """True if the work asked for more memory than its GPU had left. Told by names: the driver does not import torch."""
    return any(
        kind.__name__ == "OutOfMemoryError" and kind.__module__.partition(".")[0] == "torch"
        for kind in type(_inner(error)).__mro__
    )


def of_machine(error: BaseException) -> bool:
    """True if a disk, a storage or a GPU failed, and not the work: another process, or a later attempt, may succeed."""
    found = _inner(error)
    # After an error of CUDA nothing on the GPU works in this process; torch raises a plain RuntimeError.
    return isinstance(found, OSError) or (isinstance(found, RuntimeError) and "CUDA error" in str(found))


def lost(error: BaseException) -> bool:
    """True if a worker, its node or its result was lost for a reason outside the work, so that a retry may
    succeed. False for lack of memory (:func:`out_of_memory`) and for an actor whose constructor raised.
    """
    import ray

    known, error = ray.exceptions, _inner(error)
    if isinstance(error, known.RayActorError):
        return not error.actor_init_failed
    # The lost owner is this process or one of its actors, which cannot be retried.
    hopeless = (known.OwnerDiedError, known.ObjectFreedError, known.ReferenceCountingAssertionError)
    gone = (known.WorkerCrashedError, known.NodeDiedError, known.LocalRayletDiedError, known.ObjectLostError)
    return isinstance(error, gone) and not isinstance(error, hopeless)


def explain(error: BaseException, what: str) -> NoReturn:
    """Raise the user's error for a failed task; ``what`` names the task, as in ``unit 3``.

    rayddl's own errors are raised unchanged; for lack of memory, and a worker that died too often, raises a
    :class:`StageError` with advice.
    """
    import ray

    cause = getattr(error, "cause", None)
    if isinstance(cause, RayddlError):
        raise cause from None
    if out_of_memory(error):
        raise StageError(_too_large(what, str(_inner(error))), code="out-of-memory") from error
    if gpu_out_of_memory(error):
        raise StageError(
            f"{what} needs more memory than its GPU had left: {_short(_inner(error))} Lower its batch, set the stage's "
            "resources.num_gpus to 1 so that no other work of the run shares the GPU, end other processes that use it, "
            f"or use a GPU with more memory. {_KEPT}",
            code="gpu-out-of-memory",
        ) from error
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
    """Parse the figures in the text of Ray's ``OutOfMemoryError``; ``None`` if it has none."""
    node = _NODE.search(text)
    # Several workers may be killed together, and the error does not identify this one.
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
    """The original error: a task that depends on a failed one raises that one's error, wrapped."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, Exception) else error


def _short(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return _sentence(lines[0] if lines else type(error).__name__)


def _last(error: BaseException) -> str:
    """The last line of a traceback, which contains the error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return _sentence(lines[-1] if lines else type(error).__name__)


def _sentence(text: str) -> str:
    return text.rstrip(".")[:300] + "."
