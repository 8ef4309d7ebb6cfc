"""Ray on this machine alone: on loopback, behind a token of its own, and gone with this process."""

from __future__ import annotations

import importlib
import inspect
import logging
import os
import secrets
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from rayddl import interrupts
from rayddl.credentials import scrub
from rayddl.errors import StageError, UserError
from rayddl.stages.runtime import driver, machine

STORE_SHARE = 0.3
"""Share of memory, and of shared memory at most nearly all, that the object store takes."""
START_SECONDS = 120.0
"""How long each part of Ray may take to come up on a busy machine; Ray itself gives 30."""
ATTEMPTS = 2
LOOPBACK = "127.0.0.1"
LOCAL_ONLY = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
"""Ray's switches for a machine that is no part of a cluster: 127.0.0.1 is not replaced by the outward address, and no
usage is reported to a server.
"""
AGENT_PORTS = (
    "metrics_agent_port",
    "metrics_export_port",
    "dashboard_agent_listen_port",
    "runtime_env_agent_port",
)
"""Ray's names of its agents' ports: as parameters, and of the files that the raylet reads them from."""


@dataclass
class _Local:
    """The local Ray that runs."""

    mark: str
    log: str
    give_back: list[Callable[[], None]]


_running: _Local | None = None


def start(env: dict[str, str], num_cpus: int | None = None, num_gpus: int | None = None) -> None:
    """Start a Ray that ends with this process; its workers have the variables ``env``.

    It listens on loopback alone and asks for a random token, which this process and its children have in
    their environment until :func:`stop`. ``RAY_AUTH_*`` variables that are set already stay as they are. Raises
    :class:`UserError` where the temporary folder's path is too long for Ray's sockets, and
    :class:`StageError` where Ray does not come up.
    """
    global _running  # noqa: PLW0603  # a process has one Ray
    folder = _short_folder()
    descriptor, log = tempfile.mkstemp(prefix="rayddl-ray-", suffix=".log", dir=os.path.dirname(folder))
    os.close(descriptor)
    # Workers of a local Ray inherit this process's environment.
    unset = {name: value for name, value in {**env, **LOCAL_ONLY}.items() if name not in os.environ}
    mark = secrets.token_hex(8)
    killed_at_last = interrupts.add_last(lambda: driver.end_marked(mark, 0.0))
    _running = _Local(mark, log, [driver.set_variables(unset), _asks_for_token(), killed_at_last])
    try:
        _start_patiently(_running, folder, num_cpus or machine.cpus(), num_gpus)
    except BaseException as error:
        if interrupts.caught():
            interrupts.afterwards(stop)
        else:
            stop(keep_log=isinstance(error, StageError))
        raise


def stop(*, keep_log: bool = False) -> None:
    """Stop the Ray that :func:`start` started, with every process of it, and give the environment back."""
    global _running
    ended, _running = _running, None
    if ended is None:
        return
    with driver.stderr_into(ended.log):
        _clear(ended.mark)
    for give_back in reversed(ended.give_back):
        give_back()
    _forget_token()
    if not keep_log:
        with suppress(OSError):
            os.unlink(ended.log)


def _start_patiently(running: _Local, folder: str, num_cpus: int, num_gpus: int | None) -> None:
    failures: list[Exception] = []
    while len(failures) < ATTEMPTS:
        failure = _attempted(running, folder, num_cpus, num_gpus)
        if failure is None:
            return
        failures.append(failure)
    raise StageError(_refusal(failures[-1], folder, running.log), code="ray-not-started") from failures[-1]


def _attempted(running: _Local, folder: str, num_cpus: int, num_gpus: int | None) -> Exception | None:
    """Start Ray; if that fails, what was raised, after everything that had started is gone."""
    with driver.stderr_into(running.log):
        try:
            with _started_with(running.mark):
                _init(folder, num_cpus, num_gpus)
        except Exception as error:  # Ray raises a bare Exception for a node that does not register
            traceback.print_exc(file=sys.__stderr__)
            _clear(running.mark)
            return error
    return None


def _init(folder: str, num_cpus: int, num_gpus: int | None) -> None:
    import ray

    ray.init(
        address="local",
        num_cpus=num_cpus,
        num_gpus=num_gpus,
        object_store_memory=store_bytes(),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _temp_dir=folder,
        _node_ip_address=LOOPBACK,
    )
    node: Any = ray._private.worker._global_node
    with suppress(OSError, AttributeError):
        # Ray lets everybody in: the sockets below have no token.
        os.chmod(node.get_session_dir_path(), 0o700)


def _clear(mark: str) -> None:
    import ray

    with suppress(Exception), driver.signals_kept_at_the_end():
        ray.shutdown()
    driver.end_marked(mark)


def _refusal(error: Exception, folder: str, log: str) -> str:
    said = " ".join(scrub(str(error)).split())[:300].rstrip(".") or type(error).__name__
    return (
        f"Ray did not start on this machine, {ATTEMPTS} times ({said}). The usual causes are a machine under heavy "
        f"load and a temporary folder ({folder}) that is full or slow: run the same command again when the machine "
        f"is less busy, or set RAY_TMPDIR to another short path. What Ray printed is in {log}."
    )


@contextmanager
def _started_with(mark: str) -> Iterator[None]:
    """What Ray is started under: loopback, patience, and processes that can be found again."""
    from ray._private import ray_constants, services

    wait = str(int(START_SECONDS))
    patient = {
        driver.MARK: mark,
        # Otherwise setting their titles overwrites the environment of Ray's agents, and with it the mark.
        "SPT_NOENV": "1",
        "RAY_gcs_server_port_wait_time_s": wait,
        "RAY_agent_register_timeout_ms": f"{wait}000",
        "RAY_worker_register_timeout_seconds": wait,
    }
    with ExitStack() as stack:
        stack.enter_context(driver.variables(patient))
        stack.enter_context(driver.children_spared())
        # What LOCAL_ONLY says, which Ray has read already if it was imported before: with an outward address its
        # processes would listen on every interface.
        stack.enter_context(driver.replaced(ray_constants, "ENABLE_RAY_CLUSTER", False))
        ports = _free_ports(AGENT_PORTS)
        given = driver.replaced(services, "start_raylet", _with_ports(services.start_raylet, ports))
        stack.enter_context(given)
        # The 30 seconds that a node may take to register stand in the middle of a function.
        stack.enter_context(
            driver.replaced(services, "get_node", _patient(services.get_node, ports.values()))
        )
        yield


def _with_ports(start_raylet: Callable[..., Any], ports: Mapping[str, int]) -> Callable[..., Any]:
    """``start_raylet`` with ``ports`` for Ray's agents.

    For a port that it does not know the raylet waits until the agent has written it to a file: 15 seconds,
    fixed, then it aborts. On a busy machine the agents take longer than that to import what they need, and
    where another Ray has their usual port they retry for 4 seconds as well.
    """
    parameters = inspect.signature(start_raylet)

    def start(*args: Any, **more: Any) -> Any:
        given = parameters.bind(*args, **more)
        given.arguments.update({name: port for name, port in ports.items() if name in parameters.parameters})
        with suppress(AttributeError, KeyError):
            raylet: Any = importlib.import_module("ray._raylet")
            for name, port in ports.items():
                raylet.persist_port(given.arguments["session_dir"], given.arguments["node_id"], name, port)
        return start_raylet(*given.args, **given.kwargs)

    return start


def _free_ports(names: Sequence[str]) -> dict[str, int]:
    """Free ports of loopback, by name."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in names]
        for each in sockets:
            each.bind((LOOPBACK, 0))
        return {name: int(each.getsockname()[1]) for name, each in zip(names, sockets, strict=True)}


def _patient(ask: Callable[..., Any], ports: Iterable[int]) -> Callable[..., Any]:
    """``ask`` for the node, repeated until it and the agents are there, the raylet is gone, or the time is up.

    The agents are waited for here because Ray does it next where nothing can interrupt it.
    """

    def get_node(*args: Any, **more: Any) -> Any:
        deadline = time.monotonic() + START_SECONDS
        while True:
            # Nothing is half made here that a stop would not end.
            interrupts.check()
            late = time.monotonic() > deadline or not _raylet_runs()
            try:
                node = ask(*args, **more)
            except RuntimeError:
                if late:
                    raise
            else:
                if late or all(_listens(port) for port in ports):
                    return node
            time.sleep(0.1)

    return get_node


def _listens(port: int) -> bool:
    with socket.socket() as knocking:
        return knocking.connect_ex((LOOPBACK, port)) == 0


def _raylet_runs() -> bool:
    psutil = driver.processes()
    for process in psutil.Process().children():
        with suppress(psutil.Error):
            if process.name() == "raylet" and process.status() != psutil.STATUS_ZOMBIE:
                return True
    return False


def _asks_for_token() -> Callable[[], None]:
    """Have the next Ray ask for a token: the user's if one is set, else a new one. What is returned undoes it."""
    wanted: dict[str, str] = {}
    if os.environ.get("RAY_AUTH_MODE", "token").lower() == "token":
        wanted["RAY_AUTH_MODE"] = "token"
        if not (os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")):
            wanted["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    give_back = driver.set_variables(wanted)
    _forget_token()
    return give_back


def _forget_token() -> None:
    """Have Ray read ``RAY_AUTH_*`` again: it keeps what it read first, for the whole process."""
    raylet: Any = importlib.import_module("ray._raylet")
    with suppress(AttributeError):
        raylet.Config.initialize("")
        raylet.AuthenticationTokenLoader.instance().reset_cache()


def _short_folder() -> str:
    wanted = machine.temporary_folder()
    for folder in (wanted, "/tmp/ray"):  # noqa: S108  # Ray's own default
        short = machine.socket_path_bytes(folder) <= machine.SOCKET_PATH_BYTES
        if short and os.access(os.path.dirname(folder), os.W_OK):
            return folder
    raise UserError(
        f"Ray needs a temporary folder: the path of {wanted} is too long (its sockets below it may have "
        f"{machine.SOCKET_PATH_BYTES} bytes) or it cannot be written, and neither can /tmp. "
        "Set TMPDIR to a short path that can be written.",
        code="no-temporary-folder",
    )


def store_bytes() -> int:
    """Bytes of the object store."""
    memory, shared = machine.memory_bytes(), machine.shm_bytes()
    wanted = int(memory * STORE_SHARE)
    # Beyond /dev/shm Ray falls back to files in /tmp, or refuses to start.
    return max(min(wanted, int(shared * 0.9)), 80 * 2**20)
