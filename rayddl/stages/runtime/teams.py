"""Teams: workers that run one unit of work together. Ray Train places, connects and watches them.

The function of the unit runs in all of them, and finds the others with :meth:`Team.here`. If a worker is lost, it runs
again in a new team, which resumes from the stage's files.
"""

from __future__ import annotations

import importlib
import os
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from pyarrow import fs

from rayddl.errors import RayddlError
from rayddl.stages.runtime import devices, failures, nodes, plugin_code
from rayddl.stages.runtime.sizes import Share
from rayddl.stages.runtime.slots import Work

ENVIRONMENT = {
    "RAY_TRAIN_V2_ENABLED": "1",
    # Paths in settings are relative to the command's folder.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # The stage's counter shows progress, and its metrics are those of every stage.
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",
    # A team on a node that is about to go begins again once it is gone, like one that was not announced.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # No usage statistics are sent.
    "RAY_USAGE_STATS_ENABLED": "0",
}
RESIZE_SECONDS = 60.0
"""How often Ray Train looks for room for more workers; a team that grows begins again from its last saved epoch."""
CLOSE_SECONDS = 10.0
"""Time limit for a team's process to say what it has reserved."""
PATIENCE_SECONDS = 24 * 3600
"""Time limit of a sum over the team: the others wait while the first worker tests. Ray Train notices a lost worker."""


_coaches: list[Any] = []
"""The launchers of this process's teams, those of stages side by side too."""


class Teams:
    """Runs one unit after another, each in a team of ``share``."""

    def __init__(self, share: Share) -> None:
        self._share = share
        self._coach: Any = None

    def begin(self, work: Work, name: str) -> Any:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        # On the head, with Ray Train's own actors next to it: on a node that is lost they would leave a placement
        # group, whose resources nothing frees, and the next team would wait for them.
        # A soft affinity is passed over where an actor needs no CPU.
        head = NodeAffinitySchedulingStrategy(nodes.alive()[0].id, soft=False)
        options = {"num_cpus": 0, "max_concurrency": 3, "scheduling_strategy": head}
        self._coach = ray.remote(TeamLauncher).options(**options).remote(name)
        _coaches.append(self._coach)
        return self._coach.train.remote(self._share, work, RESIZE_SECONDS)

    def end(self, ref: Any, *, lost: bool) -> None:
        del ref, lost
        self.close()

    def thin(self) -> bool:
        return False

    def close(self) -> None:
        import ray
        from ray.util.placement_group import remove_placement_group

        coach, self._coach = self._coach, None
        if coach is None:
            return
        try:
            held = self._held(coach)
        finally:
            _coaches.remove(coach)
            # Ray Train's processes end with the one that has started them; what it reserved is kept for the whole job.
            ray.kill(coach)
        for group in held:
            remove_placement_group(group)

    def _held(self, coach: Any) -> list[Any]:
        """The placement groups of the teams that ``coach`` has run.

        A worker that is lost at the end of the work makes Ray Train begin another team, which holds resources before
        its first worker can say so. So it is waited for.
        """
        until = time.monotonic() + CLOSE_SECONDS
        while True:
            held = _held_by(coach)
            others = (group for other in list(_coaches) if other is not coach for group in _held_by(other))
            known = {group.id.hex() for group in (*held, *others)}
            if not unclaimed(dict(self._share.needs)) - known or time.monotonic() > until:
                return held
            time.sleep(0.05)


def _held_by(coach: Any) -> list[Any]:
    import ray

    with suppress(ray.exceptions.RayError):  # it is lost itself
        held: list[Any] = ray.get(coach.held.remote(), timeout=CLOSE_SECONDS)
        return held
    return []


def unclaimed(needs: Mapping[str, float]) -> set[str]:
    """The ids of this job's placement groups without a name, as Ray Train makes them, for workers of ``needs``."""
    import ray

    # The end of an id is that of its job. Placement groups of rayddl's own have names.
    job = ray.get_runtime_context().get_job_id()
    return {
        id_
        for id_, group in ray.util.placement_group_table().items()
        if id_.endswith(job)
        and not group["name"]
        and group["state"] != "REMOVED"
        and all(needs.items() <= bundle.items() for bundle in group["bundles"].values())
    }


class TeamLauncher:
    """A process that has Ray Train run a unit of work, and waits for it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._over = threading.Event()
        self._error: Exception | None = None
        self._held: list[Any] = []

    def __repr__(self) -> str:
        # The name on Ray's dashboard.
        return self._name

    def begin(self, group: Any) -> None:
        """Called by the first worker before its work, with the placement group of its team."""
        self._held.append(group)

    def held(self) -> list[Any]:
        """The placement groups of the teams so far."""
        return self._held

    def end(self, error: Exception | None = None) -> None:
        """Called by the first worker after its work, and by one whose work raised ``error``; the first call counts."""
        if not self._over.is_set():
            self._error = error
        self._over.set()

    def train(self, share: Share, work: Work, resize_seconds: float) -> None:
        """Run ``work`` in all workers of a team; what they make is in files.

        A team that lost a worker, or has room for more of them, begins again. Raises the error of the work, and
        :class:`StageError` after too many losses.
        """
        import ray

        own = ray.get_runtime_context().current_actor

        def fit() -> None:
            try:
                _fit(share, {"work": work, "coach": own}, self._name, resize_seconds)
            except Exception as error:
                self.end(error)

        # Not waited for to its end: without a dashboard, as on a local Ray, Ray Train tries for seconds to reach it.
        threading.Thread(target=fit, name="ray train", daemon=True).start()
        self._over.wait()
        if self._error is not None:
            raise self._error


def _fit(share: Share, config: dict[str, Any], name: str, resize_seconds: float) -> None:
    os.environ.update(ENVIRONMENT)
    # What it has depends on the environment.
    train: Any = importlib.import_module("ray.train")
    from ray.train.torch import TorchConfig, TorchTrainer

    # Ray Train's own files, of which nothing is read: the training's state is in the stage's folder.
    memory = fs.PyFileSystem(fs.FSSpecHandler(importlib.import_module("fsspec").filesystem("memory")))
    trainer = TorchTrainer(
        member,
        train_loop_config=config,
        # By default nccl on GPUs, and gloo on CPUs.
        torch_config=TorchConfig(
            "gloo" if devices.LOGICAL in os.environ else None, timeout_s=PATIENCE_SECONDS
        ),
        scaling_config=train.ScalingConfig(
            num_workers=share.range or share.at_once,
            use_gpu=share.num_gpus > 0,
            resources_per_worker=dict(share.needs),
            elastic_resize_monitor_interval_s=resize_seconds,
        ),
        run_config=train.RunConfig(
            name="team",
            storage_path="rayddl",
            storage_filesystem=memory,
            failure_config=train.FailureConfig(max_failures=failures.RETRIES),
            worker_runtime_env={"env_vars": _inside()},
        ),
    )
    try:
        trainer.fit()
    except train.WorkerGroupError as error:
        failures.explain(cause(error.worker_failures), name)


def member(config: Mapping[str, Any]) -> None:
    """In each worker of a team: run the work."""
    import ray

    from rayddl.methods.training.team import PeerLost, Team

    coach, first = config["coach"], Team.here().first
    if first:
        ray.get(coach.begin.remote(ray.util.get_current_placement_group()))
    try:
        plugin_code.called(config["work"])
    except Exception as error:
        # Ray Train begins again after every error.
        if not (isinstance(error, PeerLost) or failures.lost(error)):
            ray.get(coach.end.remote(error))
        raise
    if first:
        ray.get(coach.end.remote())


def cause(found: Mapping[int, Exception]) -> Exception:
    """The error to which the failures of a team's workers, by their number, are due."""
    import ray

    from rayddl.methods.training.team import PeerLost

    # Ray Train wraps the error that shows the loss of a worker.
    errors = [getattr(error, "health_check_failure", error) for _, error in sorted(found.items())]
    own = [error for error in errors if not isinstance(error, PeerLost | ray.exceptions.RayError)]
    ours = [error for error in own if isinstance(error, RayddlError)]
    full = [error for error in errors if failures.out_of_memory(error)]
    gone = [error for error in errors if failures.lost(error)]
    return next(iter([*ours, *own, *full, *gone]), ray.exceptions.WorkerCrashedError())


def _inside() -> dict[str, str]:
    """Variables that keep the connections between the workers of a local Ray on this machine."""
    import ray

    if ray.util.get_node_ip_address() != "127.0.0.1":
        return {}
    loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), None)
    return {} if loopback is None else dict.fromkeys(("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"), loopback)
