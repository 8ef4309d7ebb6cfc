"""Ray itself: starting it, and holding what stages ask for against the cluster.

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
    metrics,
    nodes,
    plugin_code,
    sizes,
)
from rayddl.stages.runtime.capacity import Capacity
from rayddl.stages.runtime.sizes import Ask, Resources, Share

WAIT_SECONDS = 20 * 60.0
"""How long a node that an autoscaler may bring is waited for."""
QUIET_SECONDS, NOTE_SECONDS = 10.0, 60.0
"""Before the first note on what is waited for, and between two of them."""
POLL_SECONDS = 2.0

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
    cluster cannot be reached, and :class:`StageError` where a local Ray does not come up.
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
    driver.quiet()
    with driver.signals_kept():
        if _wanted.address in (None, "local"):
            local.start(WORKER_ENV, _wanted.num_cpus, _wanted.num_gpus)
        else:
            attach.start(str(_wanted.address), {**WORKER_ENV, **devices.switches()})


def stop() -> None:
    """Stop, or leave, what :func:`start` started; a Ray that ran before stays."""
    import ray

    if _wanted.started:
        local.stop()
        ray.shutdown()
    _wanted.started = False


def capacity_now() -> Capacity:
    """The nodes of the cluster at hand, and those that its autoscaler may bring."""
    import ray

    nodes = tuple({k: float(v) for k, v in n["Resources"].items()} for n in ray.nodes() if n["Alive"])
    return Capacity(nodes, _wanted.groups or (capacity.launched() if _wanted.address else ()))


Asks: TypeAlias = Callable[[Capacity], Sequence[Ask]]
"""What a stage's workers ask of a cluster: :meth:`StageConfig.asks` of its settings."""


def require(asks: Mapping[str, Asks], have: Capacity | None = None) -> None:
    """Raise :class:`StageError` for what a stage asks for and neither the cluster nor its autoscaler can ever give.

    ``asks`` are the stages' by their names; ``have`` is the cluster at hand unless it is given.
    """
    have = have or capacity_now()
    for stage, asked in asks.items():
        for ask in asked(have):
            refuse_unfit(ask, have, f"stage {stage!r}: ")


def sized(ask: Callable[[Capacity], Ask]) -> Share:
    """What each worker gets of the cluster at hand. Raises :class:`StageError` where it can never be placed."""
    have = capacity_now()
    asked = ask(have)
    refuse_unfit(asked, have)
    return asked.share


def spread(
    asked: Resources, *, units: int, gpu: bool = True, fill: bool = False, key: str = "resources"
) -> Share:
    """:func:`sizes.spread` on the cluster at hand. ``key`` is the setting that holds ``asked``."""
    return sized(lambda have: Ask(key, sizes.spread(asked, have, units=units, gpu=gpu, fill=fill)))


def refuse_unfit(ask: Ask, have: Capacity, where: str = "") -> None:
    """Raise :class:`StageError` where no node can ever hold a worker, or the cluster not all that run together.

    ``where`` begins the message.
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
    """Have every node see what workers read and write; ``places`` are folders by the options that name them.

    Cheap where no node has come since the last call. Raises :class:`UserError` for a node that does not see one.
    """
    nodes.refuse_unseen(places, _wanted.note)


def observe(run: str, stage: str, progress: Mapping[str, Any]) -> None:
    """Have Ray's metrics show how far a stage is."""
    metrics.progress(run, stage, progress)


class Waiting:
    """Says what work waits for, and ends the wait for a node that never comes."""

    def __init__(self, needs: Mapping[str, float], note: Callable[[str], None] | None = None) -> None:
        self._needs, self._note = needs, note or _wanted.note
        self.over()

    def over(self) -> None:
        """Nothing is waited for any more; :meth:`look` begins anew."""
        self._began = time.monotonic()
        self._next = self._began + QUIET_SECONDS

    def look(self) -> None:
        """To be called while work waits: notes now and then what for.

        Raises :class:`StageError` where no node that is there could hold it and none has come for a long time. What
        other runs hold is waited for without end.
        """
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + NOTE_SECONDS
        text, have, minutes = capacity.described(self._needs), capacity_now(), (now - self._began) / 60
        if have.holds(self._needs):
            self._note(f"waiting for {text}, {minutes:.0f} min: other work holds it ({_free(self._needs)})")
            return
        if now - self._began > WAIT_SECONDS:
            raise StageError(
                f"no node with {text} came within {WAIT_SECONDS / 60:.0f} min ({have}). `ray status` and "
                "`ray monitor cluster.yaml` say what keeps the autoscaler; what was done so far is kept.",
                code="no-node-came",
            )
        self._note(f"waiting for a node with {text}, {minutes:.0f} min: the autoscaler is asked for one")


def wait_for(needs: Mapping[str, float], note: Callable[[str], None] | None = None) -> None:
    """Wait until a node is there that can hold ``needs``, busy or not; autoscalers see that one is wanted."""
    if capacity_now().holds(needs):
        return
    from ray.util.placement_group import remove_placement_group

    waiting = Waiting(needs, note)
    # A group that is pending is this run's own demand: it adds to that of others, and ends with it.
    wanted = held([needs], "node")
    try:
        while not capacity_now().holds(needs):
            waiting.look()
            time.sleep(POLL_SECONDS)
    finally:
        remove_placement_group(wanted)


def held(bundles: Sequence[Mapping[str, float]], what: str) -> Any:
    """A placement group of ``bundles``: all of them, each on one node, or none. Pending ones are seen by autoscalers,
    and stand in Ray's lists under ``what`` they are for.
    """
    from ray.util.placement_group import placement_group

    # Names are unique in a cluster.
    return placement_group([dict(bundle) for bundle in bundles], name=f"rayddl {what} {secrets.token_hex(4)}")


def _free(needs: Mapping[str, float]) -> str:
    import ray

    free, have = ray.available_resources(), ray.cluster_resources()
    return ", ".join(f"{free.get(n, 0):g} of {have.get(n, 0):g} {n} free" for n in needs if n != "memory")


def packed(job: Any) -> bytes:
    """``job``, and the plugins' code, for an actor's constructor, to be opened with :func:`unpacked`.

    Packed references stay alive as long as the session, so that an actor started anew finds them. It is
    opened by this session's own processes alone: what it holds is written nowhere and read from no file.
    """
    from ray import cloudpickle

    data: bytes = cloudpickle.dumps((plugin_code.shipped(), cloudpickle.dumps(job)))
    return data


def unpacked(data: bytes) -> Any:
    """What :func:`packed` was given."""
    from ray import cloudpickle

    code, job = cloudpickle.loads(data)
    # The job may be made of plugins' classes.
    plugin_code.adopt(code)
    return cloudpickle.loads(job)
