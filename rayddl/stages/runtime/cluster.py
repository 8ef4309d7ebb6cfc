"""Starts Ray or attaches to it, and checks stages' requests against the cluster's capacity.

Ray is imported inside functions, after the environment that it reads at import has been set.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from rayddl.errors import StageError
from rayddl.stages.runtime import (
    attach,
    capacity,
    devices,
    driver,
    failures,
    local,
    machine,
    metrics,
    nodes,
    plugin_code,
    sizes,
)
from rayddl.stages.runtime.capacity import Capacity
from rayddl.stages.runtime.room import Room
from rayddl.stages.runtime.sizes import Ask, Resources, Share

WAIT_SECONDS = 20 * 60.0
"""Time limit for an autoscaler to add a node."""
QUIET_SECONDS, NOTE_SECONDS = 10.0, 60.0
"""Seconds before the first note on waiting, and between two notes."""
POLL_SECONDS = 2.0
BUSY_CPUS = 0.5
"""CPUs used by other processes from which a run on this machine notes it."""

WORKER_ENV = {
    # Otherwise glibc returns every large block to the kernel and requests it again at the next step.
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_MMAP_THRESHOLD_": "100000000000",
    # Threads that wait for others sleep sooner: on a machine with other busy processes, the default of 300,000 turns
    # takes the processor from the threads that they wait for.
    "GOMP_SPINCOUNT": "1000",
}


@dataclass
class _Wanted:
    address: str | None = None
    num_cpus: int | None = None
    num_gpus: int | None = None
    groups: tuple[capacity.Group, ...] = ()
    note: Callable[[str], None] = lambda text: None
    started: bool = False
    """True if :func:`start` started Ray or attached to it, so that :func:`stop` has to undo it."""


_wanted = _Wanted()


def configure(
    address: str | None = None,
    num_cpus: int | None = None,
    num_gpus: int | None = None,
    grows: Sequence[str] = (),
    note: Callable[[str], None] = lambda text: None,
) -> None:
    """Set what :func:`start` starts or attaches to. ``address="auto"`` is the running cluster.

    ``grows`` are groups of nodes that an autoscaler may add, each as ``4xCPU:8,GPU:1``; ``note`` receives messages
    while a run waits for nodes. Raises :class:`UserError` for an invalid group.
    """
    groups = tuple(capacity.parse(text) for text in grows)
    _wanted.address, _wanted.num_cpus, _wanted.num_gpus = address, num_cpus, num_gpus
    _wanted.groups, _wanted.note = groups, note


def start() -> None:
    """Start Ray on this machine, or attach to the configured cluster. Does nothing if Ray runs.

    Raises :class:`UserError` if the temporary folder's path is too long for Ray's sockets or the cluster cannot be
    reached, and :class:`StageError` if a local Ray does not start.
    """
    # Ray reads this at import; its default hook would rebuild the environment in every worker.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Read by this process, which owns the tasks, independent of the cluster's configuration.
    os.environ.setdefault("RAY_task_oom_retries", str(failures.OOM_RETRIES))
    import ray

    if ray.is_initialized():
        return
    _wanted.started = True
    driver.quiet()
    with driver.signals_kept():
        if _wanted.address in (None, "local"):
            _note_if_shared(_wanted.num_cpus or machine.cpus())
            local.start(WORKER_ENV, _wanted.num_cpus, _wanted.num_gpus)
        else:
            attach.start(str(_wanted.address), {**WORKER_ENV, **devices.switches()})


def _note_if_shared(wanted: int) -> None:
    """Note that other processes slow this run down: threads of one step wait for the slowest of them."""
    here = machine.cpus()
    if wanted < 2:
        return
    used = machine.busy_cpus()
    if used < BUSY_CPUS or wanted <= here - used:
        return
    free = max(1, int(here - used + 0.5))
    _wanted.note(
        f"other processes use {used:.1f} of this machine's {here} CPUs, so steps that share their work between threads "
        f"take at least twice as long; --num-cpus {free} uses what they leave, and is often faster"
    )


def stop() -> None:
    """Stop the Ray that :func:`start` started, or detach from the cluster; a Ray that ran before is kept."""
    import ray

    if _wanted.started:
        local.stop()
        ray.shutdown()
    _wanted.started = False


def capacity_now() -> Capacity:
    """The nodes of the current cluster, and those that its autoscaler may add."""
    import ray

    nodes = tuple({k: float(v) for k, v in n["Resources"].items()} for n in ray.nodes() if n["Alive"])
    return Capacity(nodes, _wanted.groups or (capacity.launched() if _wanted.address else ()))


Asks: TypeAlias = Callable[[Capacity], Sequence[Ask]]
"""The resources that a stage's workers request: :meth:`StageConfig.asks` of its settings."""


def require(asks: Mapping[str, Asks], have: Capacity | None = None) -> None:
    """Raise :class:`StageError` for a request that neither the cluster nor its autoscaler can ever satisfy.

    ``asks`` are the stages' requests by stage name; ``have`` defaults to the current cluster.
    """
    have = have or capacity_now()
    for stage, asked in asks.items():
        for ask in asked(have):
            if ask.least:
                refuse_unfit(ask, have, f"stage {stage!r}: ")


def sized(ask: Callable[[Capacity], Ask]) -> Share:
    """The resources of each worker on the current cluster. Raises :class:`StageError` if it can never be placed."""
    have = capacity_now()
    asked = ask(have)
    refuse_unfit(asked, have)
    return asked.share


def spread(
    asked: Resources, *, units: int, gpu: bool = True, fill: bool = False, key: str = "resources"
) -> Share:
    """:func:`sizes.spread` on the current cluster. ``key`` is the name of the setting ``asked``."""
    return sized(lambda have: Ask(key, sizes.spread(asked, have, units=units, gpu=gpu, fill=fill)))


def refuse_unfit(ask: Ask, have: Capacity, where: str = "") -> None:
    """Raise :class:`StageError` if no node can ever hold a worker, or the cluster cannot hold concurrent ones.

    ``where`` is the prefix of the message.
    """
    share, needs, count = ask.share, ask.share.needs, len(tuple(ask.placed))
    who = "one worker" if ask.key == "resources" else f"one of its {ask.key}"
    if not have.may_hold(needs):
        raise StageError(
            f"{where}{who} asks for {capacity.described(needs)}, and no node has that ({have}). "
            "Lower the stage's resources, or add a node that has them.",
            code="no-node-fits",
        )
    if ask.together and have.fits(needs) < count:
        raise StageError(
            f"{where}{share.at_once} workers run together at {share.num_cpus:g} CPU and {share.num_gpus:g} GPU each. "
            f"That takes {capacity.described(needs)} in {count} places, and the cluster has {have.fits(needs)} of them "
            f"({have}). Lower the stage's workers or its resources, or add nodes.",
            code="cluster-too-small",
        )


def reach(places: Mapping[str, str]) -> None:
    """Check that every node can access ``places``: folders by the options that name them.

    Cheap if no node has joined since the last call. Raises :class:`UserError` for a node without access.
    """
    nodes.refuse_unseen(places, _wanted.note)


def room() -> Room:
    """The cluster's resources, to be divided among the stages that run at the same time."""
    return Room(capacity_now)


def observe(run: str, stage: str, progress: Mapping[str, Any]) -> None:
    """Set Ray's metrics of a stage's progress."""
    metrics.progress(run, stage, progress)


class Waiting:
    """Notes what work waits for, ``count`` times ``needs``, and raises an error if no node is added in time."""

    def __init__(
        self, needs: Mapping[str, float], note: Callable[[str], None] | None = None, count: int = 1,
        largest: Mapping[str, float] | None = None,
    ) -> None:  # fmt: skip
        """``largest`` is what one of the ``count`` needs, if that is more."""
        self._needs, self._note, self._count = needs, note or _wanted.note, count
        self._largest = largest or needs
        self.over()

    def over(self) -> None:
        """Reset the timer: the wait has ended."""
        self._began = time.monotonic()
        self._next = self._began + QUIET_SECONDS

    def poll(self) -> None:
        """Call repeatedly while work waits: notes at intervals what it waits for.

        Raises :class:`StageError` if the present nodes could not hold it and none was added within
        :data:`WAIT_SECONDS`. The wait for resources in use by other runs has no limit.
        """
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + NOTE_SECONDS
        have, minutes = capacity_now(), (now - self._began) / 60
        text, several = capacity.described(self._needs, self._count), self._count > 1
        if have.holds(self._needs, self._count) and have.holds(self._largest):
            self._note(f"waiting for {text}, {minutes:.0f} min: other work holds it ({_free(self._needs)})")
            return
        if now - self._began > WAIT_SECONDS:
            raise StageError(
                f"no {'nodes' if several else 'node'} with {text} came within {WAIT_SECONDS / 60:.0f} min ({have}). "
                "`ray status` and `ray monitor cluster.yaml` say what keeps the autoscaler; what was done so far is "
                "kept.",
                code="no-node-came",
            )
        wanted = "nodes" if several else "a node"
        self._note(f"waiting for {wanted} with {text}, {minutes:.0f} min: the autoscaler is asked for one")


def wait_for(needs: Mapping[str, float], note: Callable[[str], None] | None = None, count: int = 1) -> None:
    """Wait until nodes exist that can hold ``needs`` ``count`` times, busy or not; request them from the autoscaler."""
    if capacity_now().holds(needs, count):
        return
    from ray.util.placement_group import remove_placement_group

    waiting = Waiting(needs, note, count)
    # A pending placement group is a demand of this run: it adds to other runs' demands, and ends with the run.
    wanted = held([needs] * count, "node")
    try:
        while not capacity_now().holds(needs, count):
            waiting.poll()
            time.sleep(POLL_SECONDS)
    finally:
        remove_placement_group(wanted)


def held(bundles: Sequence[Mapping[str, float]], what: str) -> Any:
    """A placement group of all ``bundles``, each on one node. A pending group is a demand on the autoscaler; ``what``
    is part of its name.
    """
    from ray.util.placement_group import placement_group

    # Names have to be unique in a cluster.
    return placement_group([dict(bundle) for bundle in bundles], name=f"rayddl {what} {secrets.token_hex(4)}")


def _free(needs: Mapping[str, float]) -> str:
    import ray

    free, have = ray.available_resources(), ray.cluster_resources()
    return ", ".join(f"{free.get(n, 0):g} of {have.get(n, 0):g} {n} free" for n in needs if n != "memory")


def packed(job: Any) -> bytes:
    """Pickle ``job`` and the plugins' code for an actor's constructor; :func:`unpacked` is the inverse.

    Packed references live as long as the session, so that a restarted actor can use them. Only processes of this
    session unpickle the bytes, which are never written to a file.
    """
    from ray import cloudpickle

    data: bytes = cloudpickle.dumps((plugin_code.shipped(), cloudpickle.dumps(job)))
    return data


def unpacked(data: bytes) -> Any:
    """The job that was passed to :func:`packed`."""
    from ray import cloudpickle

    code, job = cloudpickle.loads(data)
    # The job may contain instances of plugins' classes.
    plugin_code.adopt(code)
    return cloudpickle.loads(job)
