"""A process with torch and Ray imported, from which programs that tests start are forked: see ``sitecustomize``."""

from __future__ import annotations

import importlib.util
import os
import secrets
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

FOLDER = str(Path(__file__).parent)
SWITCH = "RAYDDL_TEST_WARM"
OWN = {
    # As rayddl's workers have it, and read by the C library at a start.
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "SPT_NOENV": "1",
    # Room for the environment that other processes see of a forked one.
    "RAYDDL_TEST_PADDING": "x" * 2**15,
}

_process: subprocess.Popen[bytes] | None = None


def python_path(*more: str) -> str:
    """The variable PYTHONPATH, with ``more`` folders, for a program that may start a node."""
    first = [] if os.environ.get(SWITCH) == "0" else [FOLDER]
    return os.pathsep.join([*first, *(path for path in more if path and path != FOLDER)])


def start() -> None:
    """Start the process, unless there is one, or RAYDDL_TEST_WARM=0; it ends with this one, and serves all below."""
    global _process  # noqa: PLW0603  # one for all tests
    if os.environ.get(SWITCH, "1") == "1" and sys.platform == "linux":
        name = f"rayddl-tests-{secrets.token_hex(8)}"
        # The last word is room for the titles of the forked ones.
        line = [sys.executable, f"{FOLDER}/program.py", name, "-" * 200]
        env = {**os.environ, **OWN, SWITCH: "0"}
        _process = subprocess.Popen(line, env=env, stdout=subprocess.PIPE, start_new_session=True)
        assert _process.stdout is not None
        assert _process.stdout.readline() == b"ready\n"
        os.environ[SWITCH] = name


def _client() -> ModuleType:
    spec = importlib.util.spec_from_file_location("rayddl_tests_warm", f"{FOLDER}/sitecustomize.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


client = _client()


def run(args: Sequence[str], timeout: float | None = None, **more: Any) -> subprocess.CompletedProcess[Any]:
    """A program of this interpreter, as :func:`subprocess.run` runs it, forked where it can be."""
    with Popen(args, **more) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(args, process.returncode, out, err)


class Popen(subprocess.Popen[Any]):
    """A program of this interpreter, forked where that process runs and can be it; its own session either way."""

    _there: socket.socket | None = None

    def _execute_child(self, args: Any, executable: Any, *rest: Any) -> None:
        start()
        cwd, env, pipes = rest[3], rest[4], rest[8:14]
        words = [os.fspath(word) for word in args]
        files = tuple(own if fd == -1 else fd for own, fd in enumerate((pipes[0], pipes[3], pipes[5])))
        env, cwd = dict(os.environ if env is None else env), os.path.abspath(cwd or ".")
        name, ours = os.environ.get(SWITCH, "0"), words[0] == sys.executable
        if env.get(SWITCH) == "1":  # taken before the process was started
            env[SWITCH] = name
        asked = client.ask(name, words[1:], env, files, cwd=cwd, awaited=True) if ours else None
        if asked is None:
            super()._execute_child(args, executable, *rest[:4], env, *rest[5:])
        else:
            (self.pid, self._there), self._child_created = asked, True
            self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]

    def _try_wait(self, flags: int) -> tuple[int, int]:
        if self._there is None:
            return super()._try_wait(flags)
        if flags & os.WNOHANG and not select.select([self._there], [], [], 0)[0]:
            return 0, 0
        status = self._there.recv(4)
        # Nothing more comes where the process that forked it has ended, and with it this one.
        return self.pid, int.from_bytes(status, "big") if status else signal.SIGKILL

    def _internal_poll(self, *args: Any, **more: Any) -> int | None:
        if self._there is not None and self.returncode is None:
            pid, status = self._try_wait(os.WNOHANG)
            if pid:
                self._handle_exitstatus(status)  # type: ignore[attr-defined]
        return self.returncode if self._there is not None else super()._internal_poll(*args, **more)
