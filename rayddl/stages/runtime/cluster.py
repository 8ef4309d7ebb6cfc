"""Ray itself: starting it, what a worker may ask for, and what a worker sees.

Ray is imported inside functions, after the environment that it reads at import has been set.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rayddl.errors import StageError
from rayddl.stages.config import Ask, Resources
from rayddl.stages.runtime import attach, capacity, failures, local, metrics, nodes

if TYPE_CHECKING:
    import torch

WAIT_SECONDS = 20 * 60.0
"""How long a node that an autoscaler may bring is waited for."""
TELL_SECONDS = 60.0
POLL_SECONDS = 2.0
RETRIES = 5
"""Times that a unit of work may lose its worker before the run stops."""

WORKER_ENV = {
    # glibc otherwise returns every large block to the kernel and asks for it again at the next step.
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_MMAP_THRESHOLD_": "100000000000",
}


@dataclass
class _Wanted:
    address: str | None = None
    num_cpus: int | None = None
    num_gpus: int | None = None
    groups: tuple[capacity.Group, ...] = ()
    note: Callable[[str], None] = lambda text: None
    started: bool = False
    """Whether the Ray that runs is ours to stop."""


_wanted = _Wanted()


def configure(
    address: str | None = None,
    num_cpus: int | None = None,
    num_gpus: int | None = None,
    grows: Sequence[str] = (),
    note: Callable[[str], None] = lambda text: None,
) -> None:
    """Say what :func:`start` is to start or attach to. ``address="auto"`` is the running cluster.

    ``grows`` are groups of nodes that an autoscaler may bring, each as ``4xCPU:8,GPU:1``; ``note`` takes what
    a person should know while nodes are waited for. Raises :class:`UserError` for a group that is none.
    """
    groups = tuple(capacity.parse(text) for text in grows)
    _wanted.address, _wanted.num_cpus, _wanted.num_gpus = address, num_cpus, num_gpus
    _wanted.groups, _wanted.note = groups, note


def start() -> None:
    """Start Ray on this machine, or attach to the cluster asked for. Does nothing when it runs.

    Raises :class:`UserError` where the temporary folder's path is too long for Ray's sockets or the
    cluster cannot be reached.
    """
    # Ray reads this at import; left on, its hook rebuilds the environment in every worker.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # This process, which owns the tasks, reads it, whatever the cluster was started with.
    os.environ.setdefault("RAY_task_oom_retries", str(failures.OOM_RETRIES))
    import ray

    if ray.is_initialized():
        return
    _wanted.started = True
    if _wanted.address in (None, "local"):
        local.start(WORKER_ENV, _wanted.num_cpus, _wanted.num_gpus)
    else:
        attach.start(str(_wanted.address), WORKER_ENV)


def stop() -> None:
    """Stop, or leave, what :func:`start` started; a Ray that ran before stays."""
    import ray

    if _wanted.started:
        ray.shutdown()
    _wanted.started = False


@dataclass(frozen=True)
class Share:
    """What one worker of a stage gets, and how many run at once."""

    num_cpus: float
    num_gpus: float
    memory: int | None
    at_once: int

    @property
    def options(self) -> dict[str, Any]:
        """For ``.options(...)`` of a task or actor."""
        asked: dict[str, Any] = {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus}
        return asked if self.memory is None else {**asked, "memory": self.memory}

    @property
    def threads(self) -> int:
        """Torch threads of the worker."""
        return max(1, int(self.num_cpus))


def capacity_now() -> capacity.Capacity:
    """The nodes of the cluster at hand, and those that its autoscaler may bring."""
    import ray

    nodes = tuple({k: float(v) for k, v in n["Resources"].items()} for n in ray.nodes() if n["Alive"])
    return capacity.Capacity(nodes, _wanted.groups or (capacity.launched() if _wanted.address else ()))


def require(asks: Mapping[str, Sequence[Ask]]) -> None:
    """Have every stage's workers fit, before one of them starts; ``asks`` are the stages' by their names.

    Waits, and says so, for nodes that an autoscaler may bring. Raises :class:`StageError` for what neither it
    nor the cluster has.
    """
    have = capacity_now()
    for stage, asked in asks.items():
        for ask in asked:
            needs = _least(ask.resources)
            try:
                _refuse_unfit(
                    needs, have, "one worker" if ask.key == "resources" else f"one of its {ask.key}"
                )
                if ask.together > 1:
                    _refuse_apart(ask.together, needs, have)
            except StageError as error:
                raise StageError(f"stage {stage!r}: {error}") from None
    for asked in asks.values():
        for ask in asked:
            _wait_for(_least(ask.resources))


def reach(places: Mapping[str, str]) -> None:
    """Have every node see what workers read and write; ``places`` are folders by the options that name them.

    Cheap where no node has come since the last call. Raises :class:`UserError` for a node that does not see one.
    """
    nodes.refuse_unseen(places, _wanted.note)


def observe(run: str, stage: str, progress: Mapping[str, Any]) -> None:
    """Have Ray's metrics show how far a stage is."""
    metrics.progress(run, stage, progress)


def share(asked: Resources, *, cpus: float, gpus: float, units: int, together: bool = False) -> Share:
    """What each of ``units`` units of work gets of the cluster at hand.

    ``cpus`` and ``gpus`` are the stage's defaults; GPUs are asked for only where the cluster has any.
    Units that run ``together`` are actors which stay until all is done: their default share shrinks until
    all of them fit. Waits, and says so, for a node that an autoscaler may bring. Raises :class:`StageError`
    at once where no node can ever hold one unit, or the cluster not all that run together.
    """
    have = capacity_now()
    if together:
        cpus, gpus = have.part("CPU", units, cpus), have.part("GPU", units, gpus)
    num_cpus, num_gpus = _asked(asked, cpus, gpus, have.total("GPU"))
    needs = _needs(num_cpus, num_gpus, asked.memory)
    _refuse_unfit(needs, have, "one worker")
    _wait_for(needs)
    if together:
        _refuse_apart(units, needs, have)
    at_once = max(1, min(units, have.fits(needs), asked.at_once or units))
    return Share(num_cpus, num_gpus, asked.memory, at_once)


def _least(asked: Resources) -> dict[str, float]:
    """What a worker asks for, as far as the settings say it; every kind's takes a CPU else."""
    return _needs(asked.num_cpus or 1.0, asked.num_gpus or 0.0, asked.memory)


def _needs(num_cpus: float, num_gpus: float, memory: int | None) -> dict[str, float]:
    return {"CPU": num_cpus, "GPU": num_gpus, "memory": memory or 0}


def _refuse_unfit(needs: Mapping[str, float], have: capacity.Capacity, who: str) -> None:
    if not have.may_hold(needs):
        raise StageError(
            f"{who} asks for {capacity.described(needs)}, and no node has that ({have}). "
            "Lower the stage's resources, or add a node that has them."
        )


def _refuse_apart(units: int, needs: Mapping[str, float], have: capacity.Capacity) -> None:
    fits = have.fits(needs)
    if fits < units:
        raise StageError(
            f"{units} workers run together at {needs['CPU']:g} CPU and {needs['GPU']:g} GPU each, and the cluster "
            f"holds {fits} of them ({have.total('CPU'):g} CPU, {have.total('GPU'):g} GPU). Lower the stage's workers "
            "or its resources, or add nodes."
        )


def _wait_for(needs: Mapping[str, float]) -> None:
    """Wait until a node is there that holds ``needs``; the autoscaler is told to bring one."""
    if capacity_now().holds(needs):
        return
    from ray.autoscaler.sdk import request_resources

    text = capacity.described(needs)
    _wanted.note(f"waiting for a node with {text}: the autoscaler is asked for one")
    request_resources(bundles=[{name: value for name, value in needs.items() if value}])
    began = told = time.monotonic()
    try:
        while not capacity_now().holds(needs):
            now = time.monotonic()
            if now - began > WAIT_SECONDS:
                raise StageError(
                    f"no node with {text} came within {WAIT_SECONDS / 60:.0f} min ({capacity_now()}). `ray status` and "
                    "`ray monitor cluster.yaml` say what keeps the autoscaler; what was done so far is kept."
                )
            if now - told > TELL_SECONDS:
                told = now
                _wanted.note(f"still waiting for a node with {text}, {(now - began) / 60:.0f} min")
            time.sleep(POLL_SECONDS)
    finally:
        # A request stands until the next one, and would keep the node for ever.
        request_resources(bundles=[])


def expected(
    asked: Resources, *, cpus: float, gpus: float, units: int, total_cpus: int, total_gpus: int
) -> Share:
    """What :func:`share` will give on a machine of so many CPUs and GPUs; starts nothing."""
    num_cpus, num_gpus = _asked(asked, cpus, gpus, total_gpus)
    fits = _fits(num_cpus, num_gpus, total_cpus, total_gpus, units)
    return Share(num_cpus, num_gpus, asked.memory, max(1, min(units, int(fits), asked.at_once or units)))


def _asked(asked: Resources, cpus: float, gpus: float, total_gpus: float) -> tuple[float, float]:
    num_gpus = asked.num_gpus if asked.num_gpus is not None else (gpus if total_gpus else 0.0)
    return (asked.num_cpus if asked.num_cpus is not None else cpus), num_gpus


def _fits(num_cpus: float, num_gpus: float, total_cpus: float, total_gpus: float, units: int) -> float:
    fits = total_cpus / num_cpus if num_cpus else units
    return min(fits, total_gpus / num_gpus) if num_gpus else fits


def task(function: Callable[..., Any], given: Share) -> Any:
    """``function`` as a Ray task with that share of the cluster, retried when its worker is lost.

    Its process is used again for the next unit, on a GPU too: starting CUDA and compiling cost more
    than many units do.
    """
    import ray

    return ray.remote(max_calls=0, max_retries=RETRIES)(function).options(**given.options)


def packed(job: Any) -> bytes:
    """``job`` for an actor's constructor, to be opened with :func:`unpacked`.

    Packed references stay alive as long as the session, so that an actor started anew finds them. It is
    opened by this session's own processes alone: what it holds is written nowhere and read from no file.
    """
    from ray import cloudpickle

    data: bytes = cloudpickle.dumps(job)
    return data


def unpacked(data: bytes) -> Any:
    """What :func:`packed` was given."""
    from ray import cloudpickle

    return cloudpickle.loads(data)


def resources() -> dict[str, float]:
    """What the whole cluster has, by Ray's names."""
    import ray

    return {name: float(value) for name, value in ray.cluster_resources().items()}


def node_cpus() -> int:
    """CPUs of the largest node that there is or may come."""
    return max(1, int(capacity_now().largest("CPU")))


def enter_worker(threads: int, precision: str = "fp32") -> torch.device:
    """Set up this worker process, and the device that Ray assigned to it."""
    import ray
    import torch

    torch.set_num_threads(threads)
    gpus = ray.get_runtime_context().get_accelerator_ids().get("GPU", [])
    if not gpus:
        return torch.device("cpu")
    tf32 = precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    return torch.device("cuda", 0)
