"""Forks the programs that it is asked for, with torch and Ray imported: see ``sitecustomize``.

Nothing that a test computes is in the memory that they begin with. There are two such processes, the second of which
has imported rayddl, too. Both end with the process that started the first.

A forked program has the environment, files, folder and blocked signals that were asked for, a session of its own, and
is a child of this process.
"""

from __future__ import annotations

import asyncio
import atexit
import ctypes
import gc
import importlib.util
import json
import os
import selectors
import signal
import socket
import sys
import threading
import types
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

OWN = dict(os.environ)
"""The environment that was read by what is imported."""
PATH = [path for path in sys.path[1:] if path not in os.environ.get("PYTHONPATH", "").split(os.pathsep)]
"""Where each program finds modules, after its own folder and PYTHONPATH."""
sys.path.insert(0, os.path.dirname(__file__))

from sitecustomize import WITH_OURS, end_with_parent  # noqa: E402

IMPORTED = (
    "ray._private.node", "ray.actor", "torch", "pyarrow.parquet", "pydantic", "safetensors.torch", "PIL.Image",
    "pydantic.v1", "ray.util.serialization_addons", "torch._dynamo", "torch._decomp.decompositions_for_jvp",
    "torchvision", "pandas", "jinja2", "typer", "aiohttp.web", "runtime_env_consts", "runtime_env_agent",
)  # fmt: skip
"""No module that draws one of Ray's random ids: forked workers would all draw the same ones next."""
OURS = (
    "rayddl.stages.experts.worker", "rayddl.stages.match.worker", "rayddl.stages.evaluate.worker",
    "rayddl.stages.rded.worker", "rayddl.stages.runtime.slots", "rayddl.stages.runtime.plugin_code", "rayddl.cli.app",
)  # fmt: skip
READ_AT_IMPORT = (
    "OMP_",
    "MKL_",
    "KMP_",
    "OPENBLAS_",
    "LD_",
    "TORCH",
    "LC_",
    "LANG",
    "PYTHONHASHSEED",
    "PYTHONUTF8",
)
"""Beginnings of the environment variables in which no program may differ from this process."""
SET_LATER = ("TORCHINDUCTOR_CACHE_DIR", "KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK")
"""Of those, what torch and scikit-learn set themselves in a process that uses them."""


def main(name: str) -> None:
    """Listen at ``name``; returns in what is forked, once it has run its program."""
    end_with_parent()
    # Ray's C++ library reads it once. A worker of no job, as a node starts some in advance, is given one with its
    # first task.
    os.environ["RAY_JOB_ID"] = "f" * 8
    os.environ["RAY_RAYLET_PID"] = str(os.getpid())
    sockets = [_listening(name), _listening(name + WITH_OURS)]
    os.write(1, b"ready\n")
    import ray._raylet
    from ray._private import process_watcher

    # The agent that sets up runtime environments is no child of its node.
    process_watcher._check_parent = _never
    sys.path.append(f"{os.path.dirname(ray.__file__)}/_private/runtime_env/agent")
    _import(IMPORTED)

    # Where its title is to be written is searched for once, from the environment's place in memory.
    ray._raylet.setproctitle("rayddl tests, " + "with rayddl" * 4)
    if os.fork() == 0:
        end_with_parent()
        _import(OURS)
        ours = True
    else:
        ours = False
    sockets.pop(0 if ours else 1).close()
    gc.collect()
    gc.freeze()
    run(Forks(sockets[0]).serve())


async def _never(*_: Any) -> None:
    await asyncio.Event().wait()


def _listening(name: str) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    made.bind(f"\0{name}")
    made.listen(64)
    return made


class Forks:
    """What was forked and still runs."""

    def __init__(self, listening: socket.socket) -> None:
        self.selector = selectors.DefaultSelector()
        self.awaited: dict[int, socket.socket] = {}
        self.nodes: dict[int, set[int]] = {}
        """The workers of each node, which watch only this process: Ray's library reads once whose child it is."""
        self.watch(listening, self.fork)

    def watch(
        self, what: int | socket.socket, call: Callable[..., dict[str, Any] | None], *args: Any
    ) -> None:
        """Call once ``what`` can be read."""
        self.selector.register(what, selectors.EVENT_READ, (call, what, *args))

    def serve(self) -> dict[str, Any]:
        """Fork for ever; returns in what is forked, with what was asked for."""
        while True:
            for key, _ in self.selector.select():
                if self.selector.get_map().get(key.fd) is not key:
                    continue
                call, *args = key.data
                asked: dict[str, Any] | None = call(*args)
                if asked is not None:
                    return asked

    def fork(self, listening: socket.socket) -> dict[str, Any] | None:
        """Accept, and fork what is asked for."""
        there, _ = listening.accept()
        try:
            asked = _received(there)
        except (OSError, ValueError):  # it was killed while it asked
            asked = None
        if asked is None:
            there.close()
            return None
        pid = os.fork()
        if pid == 0:
            # By their objects: one that closed a number again when it is collected would close another file.
            there.close()
            for key in list(self.selector.get_map().values()):
                os.close(key.fileobj) if isinstance(key.fileobj, int) else key.fileobj.close()
            self.selector.close()
            return asked
        _close(asked["descriptors"])
        with suppress(OSError):  # it was killed meanwhile
            there.send(pid.to_bytes(4, "big"))
        self.watch(os.pidfd_open(pid), self.end, pid)
        if asked["awaited"]:
            self.awaited[pid] = there
            self.watch(there, self.give_up, pid)
        else:
            there.close()
        if node := int(asked["env"].get("RAY_RAYLET_PID", "0")):
            self.belong(pid, node)
        return None

    def belong(self, pid: int, node: int) -> None:
        """End the worker with its node."""
        if node not in self.nodes:
            try:
                watched = os.pidfd_open(node)
            except ProcessLookupError:
                os.kill(pid, signal.SIGKILL)
                return
            self.nodes[node] = set()
            self.watch(watched, self.lose, node)
        self.nodes[node].add(pid)

    def end(self, fd: int, pid: int) -> None:
        """What was forked has ended."""
        _, status = os.waitpid(pid, 0)
        self.selector.unregister(fd)
        os.close(fd)
        for workers in self.nodes.values():
            workers.discard(pid)
        if (there := self.awaited.pop(pid, None)) is not None:
            self.selector.unregister(there)
            with suppress(OSError):
                there.send(status.to_bytes(4, "big"))
            there.close()

    def give_up(self, there: socket.socket, pid: int) -> None:
        """What waited for it has ended."""
        self.selector.unregister(there)
        there.close()
        del self.awaited[pid]
        os.kill(pid, signal.SIGKILL)

    def lose(self, fd: int, node: int) -> None:
        """A node has ended."""
        self.selector.unregister(fd)
        os.close(fd)
        for pid in self.nodes.pop(node):
            os.kill(pid, signal.SIGKILL)


def _received(there: socket.socket) -> dict[str, Any] | None:
    """What is asked for, or None if only a new process could be that."""
    data, descriptors, _, _ = socket.recv_fds(there, 1 << 16, 4)
    try:
        asked = _asked(there, data)
    except BaseException:
        _close(descriptors)
        raise
    if asked is None:
        _close(descriptors)
        return None
    return {**asked, "descriptors": descriptors}


def _asked(there: socket.socket, data: bytes) -> dict[str, Any] | None:
    size = int.from_bytes(data[:4], "big")
    while len(data) < 4 + size and (more := there.recv(1 << 16)):
        data += more
    if len(data) < 4 + size:
        raise ConnectionError("what asked has ended")
    asked: dict[str, Any] = json.loads(data[4:])
    env = asked["env"]
    apart = [
        k
        for k in {*OWN, *env}
        if k.startswith(READ_AT_IMPORT) and k not in SET_LATER and OWN.get(k) != env.get(k)
    ]
    return None if apart or asked["prefix"] != sys.prefix else asked


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def run(asked: dict[str, Any]) -> None:
    """Run the program in this process, as Python runs it in a new one."""
    os.setsid()
    if asked["awaited"]:
        end_with_parent()
    *files, mounts = asked["descriptors"]
    if os.stat(mounts).st_ino != os.stat("/proc/self/ns/mnt").st_ino:
        # Who asked sees other folders.
        ctypes.CDLL(None, use_errno=True).setns(mounts, 0)
    os.close(mounts)
    for target, descriptor in enumerate(files):
        os.dup2(descriptor, target)
        os.close(descriptor)
    # Those that are there have looked at what these files were before.
    streams = [(sys.stdin, 0, "r", -1), (sys.stdout, 1, "w", -1), (sys.stderr, 2, "w", 1)]
    sys.stdin, sys.stdout, sys.stderr = sys.__stdin__, sys.__stdout__, sys.__stderr__ = [
        open(fd, mode, buffering, was.encoding, was.errors, closefd=False)  # noqa: SIM115
        for was, fd, mode, buffering in streams
    ]
    os.chdir(asked["cwd"])
    signal.pthread_sigmask(signal.SIG_SETMASK, asked["blocked"])
    _set_environment(asked["env"])
    given = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    words: list[str] = asked["words"]
    main_module = types.ModuleType("__main__")
    first, source, filename = "", "", "<string>"
    if words[0] == "-m":
        first = os.getcwd()
    elif words[0] != "-c":
        first, filename = os.path.dirname(os.path.abspath(words[0])), words[0]
    sys.path[:] = [first, *given, *PATH]
    if words[0] == "-m":
        spec = importlib.util.find_spec(f"{words[1]}.__main__")
        assert spec is not None
        assert spec.origin is not None
        filename, main_module.__spec__, main_module.__package__ = spec.origin, spec, words[1]
    if words[0] == "-c":
        source, sys.argv[:] = words[1], ["-c", *words[2:]]
    else:
        main_module.__file__ = filename
        sys.argv[:] = [filename, *words[2 if words[0] == "-m" else 1 :]]
        with open(filename, encoding="utf-8") as file:
            source = file.read()
    sys.modules["__main__"] = main_module
    code: Any = 0
    try:
        exec(compile(source, filename, "exec"), main_module.__dict__)
    except SystemExit as error:
        code = error.code
    except BaseException:
        code = 1
        sys.excepthook(*sys.exc_info())
    _leave(code)


def _leave(code: Any) -> None:
    """End as Python does, but for taking its modules apart, which takes two processor seconds."""
    threading._shutdown()
    atexit._run_exitfuncs()
    if code is not None and not isinstance(code, int):
        sys.stderr.write(f"{code}\n")
        code = 1
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit((code or 0) & 255)


def _set_environment(env: dict[str, str]) -> None:
    """Make ``env`` the environment, also what other processes see of it, and what Ray has read of the former one."""
    os.environ.clear()
    # Each is copied, so nothing points any longer to the place where the first ones were.
    os.environ.update(env)
    with open("/proc/self/stat") as file:
        start, end = (int(word) for word in file.read().rpartition(")")[2].split()[47:49])
    block = b"".join(f"{name}={value}\0".encode() for name, value in env.items())[: end - start]
    ctypes.memmove(start, block.ljust(end - start, b"\0"), end - start)
    raylet: Any = sys.modules["ray._raylet"]
    raylet.Config.initialize("")
    raylet.AuthenticationTokenLoader.instance().reset_cache()
    from ray._private import ray_constants

    ray_constants.ENABLE_RAY_CLUSTER = env.get("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "1") != "0"
    import numpy as np

    np.random.seed()


def _import(modules: tuple[str, ...]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for module in modules:
            with suppress(ImportError):
                __import__(module)


if __name__ == "__main__":
    main(sys.argv[1])
