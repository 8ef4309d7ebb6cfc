"""A local Ray: it listens on loopback only, requires a token, and ends with this process."""

from __future__ import annotations

import importlib
import inspect
import logging
import os
import random
import re
import secrets
import shutil
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from rayddl import interrupts
from rayddl.credentials import scrub
from rayddl.errors import StageError, UserError
from rayddl.stages.runtime import driver, machine
from rayddl.stages.runtime.sudden_end import SuddenEnd

STORE_SHARE = 0.3
"""Share of memory for the object store, which is also limited to nearly all of the shared memory."""
START_SECONDS = 120.0
"""Time limit for the start of each part of Ray on a busy machine; Ray's own limit is 30 seconds."""
WORKER_SECONDS = START_SECONDS
"""Time limit for the start of the first worker."""
ATTEMPTS = 2
_SHORT_OF_MEMORY = re.compile(
    r"amount of memory on this node|out of memory|cannot allocate memory", re.IGNORECASE
)
"""In the message of a start that failed for want of memory."""
LOOPBACK = "127.0.0.1"
LOCAL_ONLY = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_worker_niceness": "0",
}
"""Ray's variables for a machine outside a cluster: 127.0.0.1 is not replaced by the machine's external address, no
usage statistics are sent, and no metrics are collected. For metrics, which no dashboard of a local Ray shows, the node
would accept its driver only once the agent that exports them has been imported. Workers have the priority of this
process: at Ray's, 15 below, the thread that shares its core with another busy process gets a thirtieth of it, and the
others of its training wait for it.
"""
NEEDLESS = ("start_monitor", "start_log_monitor", "start_api_server")
"""Methods of Ray's node that start the autoscaler, the forwarding of logs to the driver, and the dashboard's server: a
local Ray uses none of them, and their imports take several seconds of its start.
"""
AGENT_PORTS = (
    "metrics_agent_port",
    "metrics_export_port",
    "dashboard_agent_listen_port",
    "runtime_env_agent_port",
)
"""Names of the ports of Ray's agents: as parameters, and of the files from which the raylet reads them."""
PORTS = range(20_000, 32_768)
"""Where ports for agents are drawn: not from those that Ray gives to workers, nor, on Linux, from those of outgoing
connections, one of which might take the port before the agent has started."""
PORT_DRAWS = 100


@dataclass
class _Local:
    """The running local Ray."""

    mark: str
    log: str
    private: str
    """A folder that only this user can enter. Ray's own folder in it, with its sockets, is opened to all users by every
    worker that starts."""
    sudden_end: SuddenEnd
    give_back: list[Callable[[], None]]


_running: _Local | None = None


def start(env: dict[str, str], num_cpus: int | None = None, num_gpus: int | None = None) -> None:
    """Start a Ray that ends with this process; its workers get the variables ``env``.

    It listens on loopback only and requires a random token, which is in the environment of this process and its
    children until :func:`stop`. Existing ``RAY_AUTH_*`` variables are unchanged. Raises :class:`UserError` if the
    temporary folder's path is too long for Ray's sockets, and :class:`StageError` if Ray does not start.
    """
    global _running  # noqa: PLW0603  # one Ray per process
    folder = _short_folder()
    descriptor, log = tempfile.mkstemp(prefix="rayddl-ray-", suffix=".log", dir=os.path.dirname(folder))
    os.close(descriptor)
    # Workers of a local Ray inherit the environment of this process.
    unset = {name: value for name, value in {**env, **LOCAL_ONLY}.items() if name not in os.environ}
    mark = secrets.token_hex(8)
    private = tempfile.mkdtemp(prefix=f"{os.path.basename(folder)}-", dir=os.path.dirname(folder))
    sudden_end = _sudden_end(log, private)
    lasts = (sudden_end.stopped, lambda: driver.end_marked(mark, 0.0))
    give_back = [driver.set_variables(unset), _asks_for_token(), *map(interrupts.add_last, lasts)]
    _running = _Local(mark, log, private, sudden_end, give_back)
    try:
        _start_patiently(_running, folder, num_cpus or machine.cpus(), num_gpus)
        sudden_end.started()
    except BaseException as error:
        if interrupts.caught():
            interrupts.afterwards(stop)
        else:
            stop(keep_log=isinstance(error, StageError))
        raise


def stop(*, keep_log: bool = False) -> None:
    """Stop the Ray that :func:`start` started, with all its processes, and restore the environment."""
    global _running
    ended, _running = _running, None
    if ended is None:
        return
    ended.sudden_end.stopped()
    with driver.stderr_into(ended.log):
        _clear(ended.mark)
    for give_back in reversed(ended.give_back):
        give_back()
    _forget_token()
    if not keep_log:
        shutil.rmtree(ended.private, ignore_errors=True)
        with suppress(OSError):
            os.unlink(ended.log)


def _start_patiently(running: _Local, folder: str, num_cpus: int, num_gpus: int | None) -> None:
    failures: list[Exception] = []
    while len(failures) < ATTEMPTS:
        failure = _attempted(running, num_cpus, num_gpus)
        if failure is None:
            return
        failures.append(failure)
    raise StageError(_refusal(failures[-1], folder, running.log), code="ray-not-started") from failures[-1]


def _sudden_end(log: str, private: str) -> SuddenEnd:
    """Report an end that Ray's C++ library brings without a word: if the raylet is lost, it ends the process."""
    logs = f"{log} and {os.path.join(private, 'r', 'session_latest', 'logs')}"
    return SuddenEnd(
        "error: Ray ended this process while it was starting. Usually another program took one of its ports, or there "
        f"is too little memory: run the same command again. What Ray printed is in {logs}.",
        "error: this process was ended while it ran: killed from outside, for which too little memory is the usual "
        "reason, or by Ray, whose own processes were killed. Finished stages and checkpoints are kept, and the same "
        f"command continues. What Ray printed is in {logs}.",
    )


def _attempted(running: _Local, num_cpus: int, num_gpus: int | None) -> Exception | None:
    """Start Ray; on failure return the error after all its processes have ended."""
    with driver.stderr_into(running.log):
        try:
            with _started_with(running.mark):
                _init(os.path.join(running.private, "r"), num_cpus, num_gpus)
        except Exception as error:  # Ray raises a plain Exception for a node that does not register
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
    _begin_workers(num_cpus)


def _begin_workers(num_cpus: int) -> None:
    """Have Ray start a worker for each CPU, and wait for the first. Raises ``RuntimeError`` if none starts in time."""
    import ray

    nothing = ray.remote(num_cpus=1)(lambda: None)
    done, _ = ray.wait([nothing.remote() for _ in range(num_cpus)], num_returns=1, timeout=WORKER_SECONDS)
    if not done:
        raise RuntimeError(f"none of its workers has started within {WORKER_SECONDS:.0f} s")


def _clear(mark: str) -> None:
    import ray

    with suppress(Exception), driver.signals_kept_at_the_end():
        ray.shutdown()
    driver.end_marked(mark)


def _refusal(error: Exception, folder: str, log: str) -> str:
    text = " ".join(scrub(str(error)).split())
    said = text[:300].rstrip(".") or type(error).__name__
    if _SHORT_OF_MEMORY.search(text):
        free, whole, store = (
            f"{amount / 2**30:.1f} GiB"
            for amount in (machine.free_bytes(), machine.memory_bytes(), store_bytes())
        )
        return (
            f"Ray did not start on this machine: too little memory is free, {free} of {whole}, and its object store "
            f"alone takes {store} ({said}). End other programs that use memory, or give this machine or container "
            f"more, then run the same command again. What Ray printed is in {log}."
        )
    return (
        f"Ray did not start on this machine, {ATTEMPTS} times ({said}). The usual causes are a machine under heavy "
        f"load and a temporary folder ({folder}) that is full or slow: run the same command again when the machine "
        f"is less busy, or set RAY_TMPDIR to another short path. What Ray printed is in {log}."
    )


@contextmanager
def _started_with(mark: str) -> Iterator[None]:
    """Settings for the start of Ray: loopback, longer time limits, and a mark on its processes."""
    from ray._private import ray_constants, services
    from ray._private.node import Node

    wait = str(int(START_SECONDS))
    patient = {
        driver.MARK: mark,
        # Otherwise process titles overwrite the environment of Ray's agents, and with it the mark.
        "SPT_NOENV": "1",
        "RAY_gcs_server_port_wait_time_s": wait,
        "RAY_agent_register_timeout_ms": f"{wait}000",
        "RAY_worker_register_timeout_seconds": wait,
        # Ray would connect this process when the first workers have started, and wait for ever if these end at once.
        "RAY_prestart_worker_first_driver": "0",
    }
    with ExitStack() as stack:
        stack.enter_context(driver.variables(patient))
        stack.enter_context(driver.children_spared())
        # The same as LOCAL_ONLY, which Ray has already read if it was imported before: with an external address its
        # processes would listen on every interface.
        stack.enter_context(driver.replaced(ray_constants, "ENABLE_RAY_CLUSTER", False))
        for name in NEEDLESS:
            stack.enter_context(driver.replaced(Node, name, lambda node, **more: None))
        ports = _free_ports(AGENT_PORTS)
        given = driver.replaced(services, "start_raylet", _with_ports(services.start_raylet, ports))
        stack.enter_context(given)
        # Ray's limit of 30 seconds for a node to register is a constant inside a function.
        get_node = _patient(services.get_node)

        def started(*args: Any, **more: Any) -> Any:
            node = get_node(*args, **more)
            # Read when this process connects: from then on Ray's C++ library in it would write to the terminal. Ray's
            # own processes run by now, and write to their log files as ever.
            stack.enter_context(driver.variables({"RAY_BACKEND_LOG_LEVEL": "fatal"}))
            return node

        stack.enter_context(driver.replaced(services, "get_node", started))
        yield


def _with_ports(start_raylet: Callable[..., Any], ports: Mapping[str, int]) -> Callable[..., Any]:
    """Wrap ``start_raylet`` so that it sets ``ports`` for Ray's agents.

    For an unknown port the raylet waits until the agent has written it to a file: at most 15 seconds, then it
    aborts. On a busy machine the agents' imports take longer than that, and if another Ray uses their default port
    they retry for 4 seconds more.
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
    """Free ports of the loopback interface, by name."""
    with ExitStack() as stack:
        return {name: _bound(stack.enter_context(socket.socket())) for name in names}


def _bound(each: socket.socket) -> int:
    """Bind ``each`` to a free port of :data:`PORTS`, or to any if many draws find none; return it."""
    draws = random.SystemRandom()
    for _ in range(PORT_DRAWS):
        with suppress(OSError):
            each.bind((LOOPBACK, draws.choice(PORTS)))
            return int(each.getsockname()[1])
    each.bind((LOOPBACK, 0))
    return int(each.getsockname()[1])


def _patient(ask: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap ``ask`` so that it repeats until the node runs, the raylet has ended, or the time limit is reached."""

    def get_node(*args: Any, **more: Any) -> Any:
        deadline = time.monotonic() + START_SECONDS
        while True:
            # An interrupt is safe here: stop ends everything that has started.
            interrupts.check()
            late = time.monotonic() > deadline or not _raylet_runs()
            try:
                return ask(*args, **more)
            except RuntimeError:
                if late:
                    raise
            time.sleep(0.1)

    return get_node


def _raylet_runs() -> bool:
    psutil = driver.processes()
    for process in psutil.Process().children():
        with suppress(psutil.Error):
            if process.name() == "raylet" and process.status() != psutil.STATUS_ZOMBIE:
                return True
    return False


def _asks_for_token() -> Callable[[], None]:
    """Make the next Ray require a token: the user's if set, else a new one. Returns a function that undoes it."""
    wanted: dict[str, str] = {}
    if os.environ.get("RAY_AUTH_MODE", "token").lower() == "token":
        wanted["RAY_AUTH_MODE"] = "token"
        if not (os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")):
            wanted["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    give_back = driver.set_variables(wanted)
    _forget_token()
    return give_back


def _forget_token() -> None:
    """Make Ray read ``RAY_AUTH_*`` again: it caches the values for the whole process."""
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
    """The size of the object store in bytes."""
    memory, shared = machine.memory_bytes(), machine.shm_bytes()
    wanted = int(memory * STORE_SHARE)
    # If /dev/shm is too small, Ray falls back to files in /tmp, or does not start.
    return max(min(wanted, int(shared * 0.9)), 80 * 2**20)
