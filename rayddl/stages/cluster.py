"""Ray itself: starting it, what a worker may ask for, and what a worker sees.

Ray is imported inside functions, after the environment that it reads at import has been set.
"""

from __future__ import annotations

import logging
import math
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rayddl.errors import StageError, UserError
from rayddl.stages import host
from rayddl.stages.config import Resources

if TYPE_CHECKING:
    import torch

CONNECT_SECONDS = 10.0
"""How long a cluster that is asked for may take to answer."""
STORE_SHARE = 0.3
"""Share of memory, and of shared memory at most nearly all, that the object store takes."""
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
    started: bool = False
    """Whether the Ray that runs is ours to stop."""


_wanted = _Wanted()


def configure(address: str | None = None, num_cpus: int | None = None, num_gpus: int | None = None) -> None:
    """Say what :func:`start` is to start or attach to. ``address="auto"`` is the running cluster."""
    _wanted.address, _wanted.num_cpus, _wanted.num_gpus = address, num_cpus, num_gpus


def start() -> None:
    """Start Ray on this machine, or attach to the cluster asked for. Does nothing when it runs.

    Raises :class:`UserError` where the temporary folder's path is too long for Ray's sockets or the
    cluster cannot be reached.
    """
    # Ray reads this at import; left on, its hook rebuilds the environment in every worker.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    if ray.is_initialized():
        return
    _wanted.started = True
    if _wanted.address not in (None, "local"):
        try:
            knock(_wanted.address)
            ray.init(
                address=_wanted.address,
                runtime_env={"env_vars": WORKER_ENV},
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(
                f"no Ray cluster answers at {_wanted.address!r} ({error}). Start one with `ray start --head`, "
                "or leave --address out to run on this machine alone."
            ) from error
        return
    folder = _short_folder()
    # Workers of a local Ray inherit this process's environment.
    for name, value in WORKER_ENV.items():
        os.environ.setdefault(name, value)
    ray.init(
        address="local",
        num_cpus=_wanted.num_cpus or host.cpus(),
        num_gpus=_wanted.num_gpus,
        object_store_memory=_store_bytes(),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _temp_dir=folder,
    )


def stop() -> None:
    """Stop, or leave, what :func:`start` started; a Ray that ran before stays."""
    import ray

    if _wanted.started:
        ray.shutdown()
    _wanted.started = False


def knock(address: str) -> None:
    """Raise ``OSError`` where no machine answers at ``HOST:PORT``; anything else, such as ``auto``, passes."""
    # Left alone, Ray waits minutes for a machine that does not answer.
    place, _, port = address.removeprefix("ray://").rpartition(":")
    if place and port.isdigit():
        with socket.create_connection((place.strip("[]"), int(port)), timeout=CONNECT_SECONDS):
            pass


def _short_folder() -> str:
    wanted = host.temporary_folder()
    for folder in (wanted, "/tmp/ray"):  # noqa: S108  # Ray's own default
        short = host.socket_path_bytes(folder) <= host.SOCKET_PATH_BYTES
        if short and os.access(os.path.dirname(folder), os.W_OK):
            return folder
    raise UserError(
        f"Ray needs a temporary folder: the path of {wanted} is too long (its sockets below it may have "
        f"{host.SOCKET_PATH_BYTES} bytes) or it cannot be written, and neither can /tmp. "
        "Set TMPDIR to a short path that can be written."
    )


def _store_bytes() -> int:
    memory, shared = host.memory_bytes(), host.shm_bytes()
    wanted = int(memory * STORE_SHARE)
    # Beyond /dev/shm Ray falls back to files in /tmp, or refuses to start.
    return max(min(wanted, int(shared * 0.9)), 80 * 2**20)


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


def share(asked: Resources, *, cpus: float, gpus: float, units: int, together: bool = False) -> Share:
    """What each of ``units`` units of work gets of the cluster at hand.

    ``cpus`` and ``gpus`` are the stage's defaults; GPUs are asked for only where the cluster has any.
    Units that run ``together`` are actors which stay until all is done: their default share shrinks until
    all of them fit. Raises :class:`StageError` at once where no node can ever hold one unit, or the
    cluster not all that run together.
    """
    import ray

    have = ray.cluster_resources()
    total_cpus, total_gpus = float(have.get("CPU", 0)), float(have.get("GPU", 0))
    if together:
        cpus, gpus = _part(total_cpus, units, cpus), _part(total_gpus, units, gpus)
    num_cpus, num_gpus = _asked(asked, cpus, gpus, total_gpus)
    nodes = [n["Resources"] for n in ray.nodes() if n["Alive"]]
    needs = {"CPU": num_cpus, "GPU": num_gpus, "memory": asked.memory or 0}
    if not any(all(float(n.get(k, 0)) >= v for k, v in needs.items()) for n in nodes):
        text = ", ".join(f"{v:g} {k}" for k, v in needs.items() if v)
        best = "; ".join(
            f"{float(n.get('CPU', 0)):g} CPU, {float(n.get('GPU', 0)):g} GPU, {float(n.get('memory', 0)):g} memory"
            for n in nodes
        )
        raise StageError(
            f"one worker asks for {text}, and no node has that (nodes: {best or 'none'}). "
            "Lower the stage's resources, or add a node that has them."
        )
    fits = _fits(num_cpus, num_gpus, total_cpus, total_gpus, units)
    if together and int(fits) < units:
        raise StageError(
            f"{units} workers run together at {num_cpus:g} CPU and {num_gpus:g} GPU each, and the cluster holds "
            f"{int(fits)} of them ({total_cpus:g} CPU, {total_gpus:g} GPU). Lower the stage's workers or its "
            "resources, or add nodes."
        )
    at_once = max(1, min(units, int(fits), asked.at_once or units))
    return Share(num_cpus, num_gpus, asked.memory, at_once)


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


def _part(total: float, units: int, most: float) -> float:
    # Rounded down to what Ray counts in, so that the parts never exceed the whole.
    return most if units * most <= total else math.floor(total / units * 1000) / 1000


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


def total_cpus() -> int:
    """CPUs of the whole cluster."""
    import ray

    return max(1, int(ray.cluster_resources().get("CPU", 1)))


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
