"""What Ray may do to the process that starts it: signals, environment, output, and the processes it leaves."""

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
"""The variable by which the processes of one local Ray are known, in their environment alone."""
GRACE_SECONDS = 1.0
"""How long processes of a Ray that has been stopped may take to end."""


@contextmanager
def signals_kept() -> Iterator[None]:
    """Keep the command line's signal handlers while Ray starts, and put them back afterwards.

    Ray has SIGTERM raise ``SystemExit``, then hands it to its crash handler. In a Python program, whose
    handlers are not ours, it may.
    """
    if not interrupts.installed():
        yield
        return
    # Tune would take Ctrl-C for itself.
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    from ray._private import utils

    # The crash handler logs from inside the signal, may deadlock there, and has the process aborted: until it is
    # replaced again the signals wait, and so they do in the threads that Ray's C++ makes meanwhile.
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
    """Put the command line's signal handlers back while Ray stops: it leaves SIGTERM to end the process."""
    from ray._private import worker

    node: Any = worker._global_node
    if node is None or not interrupts.installed():
        yield
        return
    kill = node.kill_all_processes

    def kill_all_processes(*args: Any, **more: Any) -> Any:
        # What takes its time, right after Ray's C++ has given the signals up.
        interrupts.reinstall()
        return kill(*args, **more)

    with replaced(node, "kill_all_processes", kill_all_processes):
        try:
            yield
        finally:
            interrupts.reinstall()


def _silent_once_caught() -> None:
    """Keep Ray from printing that tasks failed whose workers an interrupted command has ended itself."""
    from ray._private import worker

    printing: Any = worker.print_to_stdstream

    def print_to_stdstream(*args: Any, **more: Any) -> None:
        if not interrupts.caught():
            printing(*args, **more)

    if getattr(printing, "__module__", "") != __name__:
        worker.print_to_stdstream = print_to_stdstream


def quiet() -> None:
    """Keep Ray's own lines about lost workers and nodes out of the terminal: they go to the log ``rayddl.ray``.

    What they mean to the user is said by the stage that lost something. The nodes' own logs have them as well.
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
    """Processes that Ray starts in the block do not hear signals that are sent to the whole process group.

    A terminal that is closed, Ctrl-C and schedulers send those. Ray's processes would be gone before what they
    hold is written, and Ray ends the driver when they are. SIGTERM sent to one of them it does hear, though
    this thread may have it wait: Ray ends them by it.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    from ray._private import services

    start = services.start_ray_process

    def spared(*args: Any, **more: Any) -> Any:
        # A mask is inherited.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        try:
            return start(*args, **more)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    with ExitStack() as stack:
        stack.enter_context(replaced(services, "start_ray_process", spared))
        if sys.platform == "linux":
            # Elsewhere Ray ends them as a group when the driver dies.
            apart = partial(services.ConsolePopen, start_new_session=True)
            stack.enter_context(replaced(services, "ConsolePopen", apart))
        yield


@contextmanager
def replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    """``module.name`` is ``value`` in the block. Does nothing where a version of Ray has no such name."""
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
    """The environment has ``wanted`` in the block, and afterwards what it had before."""
    give_back = set_variables(wanted)
    try:
        yield
    finally:
        give_back()


def set_variables(wanted: Mapping[str, str]) -> Callable[[], None]:
    """Set environment variables; what is returned undoes it."""
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
    """Standard error of this process, its C++ libraries and the processes it starts goes to the end of ``path``."""
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
    """The module psutil, which comes with Ray."""
    importlib.import_module("ray")
    return importlib.import_module("psutil")


def marked(mark: str) -> list[Any]:
    """The processes, as psutil's, whose environment has :data:`MARK` set to ``mark``."""
    psutil = processes()
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get(MARK) == mark:
                found.append(process)
    return found


def end_marked(mark: str, grace: float = GRACE_SECONDS) -> None:
    """Kill the processes of :func:`marked` that are still there after ``grace`` seconds."""
    psutil = processes()
    deadline = time.monotonic() + grace
    _, left = psutil.wait_procs(marked(mark), timeout=grace)
    while left:
        # The raylet last: a driver that is still attached does not outlive it.
        for process in sorted(left, key=_is_raylet):
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(left, timeout=GRACE_SECONDS)
        # One that was being started while we looked.
        left = marked(mark) if time.monotonic() < deadline + 5 * GRACE_SECONDS else []


def _is_raylet(process: Any) -> bool:
    with suppress(processes().Error):
        return bool(process.name() == "raylet")
    return False
