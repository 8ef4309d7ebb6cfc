"""Has Ray's workers and agents forked from a process of the tests that has imported torch and Ray already.

Python imports this module at its start where the folder is on PYTHONPATH, as ``tests/conftest.py`` sets it. A worker's
imports take 2 to 5 processor seconds and a fork 0.05, and the tests start hundreds of workers. ``RAYDDL_TEST_WARM``
holds the name of the socket at which ``program.py`` listens; with another value, or where that process is of another
interpreter, a worker starts as without this module.

A node's dashboard agent, which serves metrics and jobs, is replaced by a process that listens at its ports and answers
nothing, unless ``RAYDDL_TEST_AGENT=1``: its imports are as long as a worker's. ``RAYDDL_TEST_WARM=0`` turns all off.
"""

import json
import os
import socket
import sys

SWITCH, REAL_AGENT = "RAYDDL_TEST_WARM", "RAYDDL_TEST_AGENT"
SENT = "py_modules_files"
"""On the path of workers to which the package is sent with a run: there they are to find it."""
WITH_OURS = "+"
"""What the name of the socket ends with whose process has imported rayddl, too."""
AGENT, SETTER = "/ray/dashboard/agent.py", "/ray/_private/runtime_env/agent/main.py"
AGENT_PORTS = {
    "--metrics-export-port": "metrics_export_port",
    "--grpc-port": "metrics_agent_port",
    "--listen-port": "dashboard_agent_listen_port",
}
"""The agent's options, and the names of the files from which its node reads the ports."""
SETUP, WORKER = "/ray/_private/workers/setup_worker.py", "/ray/_private/workers/default_worker.py"
CONTEXT = "--serialized-runtime-env-context="
OF_SETUP = ("--language=", CONTEXT)
"""Beginnings of the words that are for the first of the two."""
PROBE = "\nimport json\nfound = {}\ntry:\n    import torch\n"
"""What the program begins with by which ``rayddl doctor`` tries torch, on every node."""


def begin() -> None:
    """Do nothing, except in the programs by which a node starts a worker or an agent."""
    words = sys.orig_argv
    name = os.environ.get(SWITCH, "0")
    if sys.platform != "linux" or name == "0" or len(words) < 3:
        return
    program = [word for word in words[1:] if word != "-u"]
    if program[0].endswith(AGENT):
        if os.environ.get(REAL_AGENT, "0") == "0":
            stand_in(dict(word.split("=", 1) for word in words if word.startswith("--") and "=" in word))
    elif program[0].endswith(SETTER) or (program[0] == "-c" and program[1].startswith(PROBE)):
        forked = ask(name, program, dict(os.environ), awaited=True)
        if forked is not None:
            # Those who started it know it by this process: each ends with the other.
            os._exit(1 if forked[1].recv(4) != bytes(4) else 0)
    elif program[0].endswith((SETUP, WORKER)) and any(word.endswith(WORKER) for word in program):
        env = with_context(program)
        own = [word for word in program if not word.endswith(SETUP) and not word.startswith(OF_SETUP)]
        if env is not None and ask(name, own, env) is not None:
            os._exit(0)


def with_context(words: list[str]) -> "dict[str, str] | None":
    """The worker's environment, with the variables of its runtime environment; None for one that sets more."""
    env = dict(os.environ)
    for word in words:
        if word.startswith(CONTEXT):
            context = json.loads(word.removeprefix(CONTEXT))
            given = context.pop("env_vars", None) or {}
            if context.pop("py_executable", sys.executable) != sys.executable or any(context.values()):
                return None
            # As Ray does: a value may name variables.
            env |= {key: os.path.expandvars(value) for key, value in given.items()}
    return env


def ask(
    name: str, words: list[str], env: dict[str, str], files: tuple[int, ...] = (0, 1, 2), **more: object
) -> "tuple[int, socket.socket] | None":
    """Have a program forked; None if it is not, else its id and what the status that it ends with comes by.

    With ``awaited=True`` it is killed when the socket is closed.
    """
    if SENT not in env.get("PYTHONPATH", ""):
        name += WITH_OURS
    asked = {"words": words, "env": env, "cwd": os.getcwd(), "blocked": blocked(), "prefix": sys.prefix}
    asked |= {"awaited": False, **more}
    there = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        there.connect(f"\0{name}")
        data = json.dumps(asked).encode()
        mounts = os.open("/proc/self/ns/mnt", os.O_RDONLY)
        socket.send_fds(there, [len(data).to_bytes(4, "big") + data], [*files, mounts])
        os.close(mounts)
        answer = there.recv(4)
    except ConnectionError:
        answer = b""
    if answer:
        return int.from_bytes(answer, "big"), there
    there.close()
    return None


def blocked() -> list[int]:
    """The signals that this process blocks."""
    with open("/proc/self/status") as file:
        (mask,) = (int(line.split()[1], 16) for line in file if line.startswith("SigBlk:"))
    return [bit + 1 for bit in range(64) if mask >> bit & 1]


def stand_in(given: dict[str, str]) -> None:
    """Listen at the agent's ports until the node ends."""
    import selectors

    end_with_parent()
    with selectors.DefaultSelector() as selector:
        for option, name in AGENT_PORTS.items():
            listening = socket.create_server((given["--node-ip-address"], int(given[option])))
            selector.register(listening, selectors.EVENT_READ, listening)
            path = os.path.join(given["--session-dir"], f"{name}_{given['--node-id']}")
            with open(f"{path}.tmp", "w") as file:
                file.write(str(listening.getsockname()[1]))
            os.replace(f"{path}.tmp", path)
        while True:
            for ready, _ in selector.select():
                ready.data.accept()[0].close()


def end_with_parent() -> None:
    """End when the process that started this one does."""
    import ctypes
    import signal

    parent, ends_with_parent = os.getppid(), 1
    ctypes.CDLL(None).prctl(ends_with_parent, signal.SIGKILL)
    if os.getppid() != parent or parent == 1:  # it had ended before
        os._exit(1)


if __name__ == "sitecustomize":
    begin()
