"""Limits Ray's side effects on the process that starts it: signals, environment, output, remaining processes."""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any

from rayddl import interrupts

MARK = "RAYDDL_RAY"
"""The environment variable that identifies the processes of one local Ray."""
GRACE_SECONDS = 1.0
"""Time limit for the processes of a stopped Ray to end."""


@contextmanager
def signals_kept() -> Iterator[None]:
    """Keep the command line's signal handlers while Ray starts, and restore them afterwards.

    Ray makes SIGTERM raise ``SystemExit``, then passes it to its crash handler. In programs without the command
    line's handlers, this is left unchanged.
    """
    if not interrupts.installed():
        yield
        return
    # Otherwise Tune handles Ctrl-C itself.
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    from ray._private import utils

    # The crash handler logs inside the signal handler, may deadlock there, and aborts the process: signals are
    # blocked until it is replaced, also in the threads that Ray's C++ library creates meanwhile.
    with (
        interrupts.held(),
        interrupts.unheard(),
        replaced(utils, "set_sigterm_handler", lambda handler: None),
    ):
        try:
            yield
        finally:
            interrupts.reinstall()
    _silent_once_caught()


@contextmanager
def signals_kept_at_the_end() -> Iterator[None]:
    """Restore the command line's signal handlers while Ray stops: Ray resets SIGTERM to its default."""
    from ray._private import worker

    node: Any = worker._global_node
    if node is None or not interrupts.installed():
        yield
        return
    kill = node.kill_all_processes

    def kill_all_processes(*args: Any, **more: Any) -> Any:
        # This function takes long, and runs right after Ray's C++ library has released the signals.
        interrupts.reinstall()
        return kill(*args, **more)

    with replaced(node, "kill_all_processes", kill_all_processes):
        try:
            yield
        finally:
            interrupts.reinstall()


def _silent_once_caught() -> None:
    """Suppress Ray's lines on failed tasks after an interrupt: the command itself has ended their workers."""
    from ray._private import worker

    printing: Any = worker.print_to_stdstream

    def print_to_stdstream(*args: Any, **more: Any) -> None:
        if not interrupts.caught():
            printing(*args, **more)

    if getattr(printing, "__module__", "") != __name__:
        worker.print_to_stdstream = print_to_stdstream


def quiet() -> None:
    """Redirect Ray's lines about lost workers and nodes from the terminal to the log ``rayddl.ray``.

    The stage that lost a worker reports it to the user. The nodes' own logs contain the lines too.
    """
    worker: Any = importlib.import_module("ray._private.worker")
    log = logging.getLogger("rayddl.ray")

    def logged(data: Mapping[str, Any], *_: Any, **__: Any) -> None:
        for line in data.get("lines", ()):
            log.debug("%s", line)

    if hasattr(worker, "print_to_stdstream"):
        worker.print_to_stdstream = logged


@contextmanager
def children_spared() -> Iterator[None]:
    """Processes that Ray starts in the block do not receive signals to the whole process group.

    Closed terminals, Ctrl-C and schedulers send such signals. They would end Ray's processes before the stage has
    written its state, and then Ray ends the driver. SIGTERM to a single process still works, although this thread
    may block it: Ray ends its processes by it.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    from ray._private import services

    start = services.start_ray_process

    def spared(*args: Any, **more: Any) -> Any:
        # Child processes inherit the mask.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        try:
            return start(*args, **more)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    with ExitStack() as stack:
        stack.enter_context(replaced(services, "start_ray_process", spared))
        if sys.platform == "linux":
            # On other systems Ray ends them as a group when the driver dies.
            apart = partial(services.ConsolePopen, start_new_session=True)
            stack.enter_context(replaced(services, "ConsolePopen", apart))
        yield


@contextmanager
def replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    """Set ``module.name`` to ``value`` in the block. Does nothing if the version of Ray has no such name."""
    if not hasattr(module, name):
        yield
        return
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


@contextmanager
def variables(wanted: Mapping[str, str]) -> Iterator[None]:
    """Set the environment variables ``wanted`` in the block, and restore the previous ones afterwards."""
    give_back = set_variables(wanted)
    try:
        yield
    finally:
        give_back()


def set_variables(wanted: Mapping[str, str]) -> Callable[[], None]:
    """Set environment variables, and return a function that restores the previous ones."""
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)

    def give_back() -> None:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

    return give_back


@contextmanager
def stderr_into(path: str) -> Iterator[None]:
    """Append standard error of this process, its C++ libraries and its child processes to the file ``path``."""
    sys.stderr.flush()
    terminal = os.dup(2)
    log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.dup2(log, 2)
    os.close(log)
    try:
        yield
    finally:
        with suppress(OSError):
            sys.stderr.flush()
        os.dup2(terminal, 2)
        os.close(terminal)


def processes() -> Any:
    """The module psutil, which is installed with Ray."""
    importlib.import_module("ray")
    return importlib.import_module("psutil")


def marked(mark: str) -> list[Any]:
    """The processes (psutil's) whose environment variable :data:`MARK` is ``mark``."""
    psutil = processes()
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get(MARK) == mark:
                found.append(process)
    return found


def end_marked(mark: str, grace: float = GRACE_SECONDS) -> None:
    """Kill the processes of :func:`marked` that still run after ``grace`` seconds."""
    psutil = processes()
    deadline = time.monotonic() + grace
    _, left = psutil.wait_procs(marked(mark), timeout=grace)
    while left:
        # The raylet last: an attached driver ends with it.
        for process in sorted(left, key=_is_raylet):
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(left, timeout=GRACE_SECONDS)
        # Processes that were started during the search.
        left = marked(mark) if time.monotonic() < deadline + 5 * GRACE_SECONDS else []


def _is_raylet(process: Any) -> bool:
    with suppress(processes().Error):
        return bool(process.name() == "raylet")
    return False
