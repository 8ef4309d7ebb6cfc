"""Starts Ray's workers by a fork of a process that has imported torch and Ray already.

Python imports this module at its start where the folder is on PYTHONPATH, as ``tests/conftest.py`` sets it. A worker's
imports are three of the four processor seconds that it takes to start, and the tests start hundreds of workers.

Every node (raylet) and runtime environment has a process of its own to fork from: the first worker that the node
starts. From the third worker on it has imported what the methods and Ray Data need, too. So workers are below their
node in the tree of processes and have its environment, as without this module, and nothing that a test computes is in
the memory that they begin with.

A node's dashboard agent, which serves metrics and jobs, is replaced by a process that listens at its ports and answers
nothing, unless ``RAYDDL_TEST_AGENT=1``: its imports are as long as a worker's. ``RAYDDL_TEST_WARM=0`` turns both off.
"""

import hashlib
import json
import os
import socket
import sys
from contextlib import suppress

SWITCH, REAL_AGENT = "RAYDDL_TEST_WARM", "RAYDDL_TEST_AGENT"
PER_WORKER = ("RAY_JOB_ID", "RAY_CHDIR_TO_TRIAL_DIR", "RAYDDL_", "PL_")
"""Beginnings of the environment variables in which workers of one process may differ: no import reads them."""
IMPORTED = (
    "ray._private.node", "ray.actor", "torch", "pyarrow.parquet", "pydantic", "safetensors.torch", "PIL.Image",
    "pydantic.v1", "ray.util.serialization_addons",
)  # fmt: skip
"""No module that draws one of Ray's random ids: forked workers would all draw the same ones next."""
FEW = 2
"""Workers that a node starts before its process imports more: one that starts a third will start many."""
IMPORTED_FOR_MANY = (
    "torch._dynamo", "torch._decomp.decompositions_for_jvp", "torchvision", "pandas",
)  # fmt: skip
OURS = (
    "rayddl.stages.experts.worker", "rayddl.stages.match.worker", "rayddl.stages.evaluate.worker",
    "rayddl.stages.rded.worker", "rayddl.stages.runtime.slots", "rayddl.stages.runtime.plugin_code",
)  # fmt: skip
"""Imported for many workers, too, except where the package is sent with a run: there workers are to find it."""
SENT = "py_modules_files"
FORKED = b"1"
AGENT = "/ray/dashboard/agent.py"
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


def begin() -> None:
    """Do nothing, except in the programs by which a node starts a worker or its agent."""
    words = sys.orig_argv
    if sys.platform != "linux" or os.environ.get(SWITCH, "0") == "0" or len(words) < 3:
        return
    if words[1].endswith(AGENT) or words[2].endswith(AGENT):
        if os.environ.get(REAL_AGENT, "0") == "0":
            stand_in(dict(word.split("=", 1) for word in words if word.startswith("--") and "=" in word))
        return
    if not words[1].endswith((SETUP, WORKER)) or not any(word.endswith(WORKER) for word in words):
        return
    own = [word for word in words[1:] if not word.endswith(SETUP) and not word.startswith(OF_SETUP)]
    name = os.environ[SWITCH]
    if name == "1":
        name, variables = named([word for word in words[1:] if word not in own])
        if hand_over(name, own, variables):
            os._exit(0)
    if words[1].endswith(SETUP):
        # It starts Python once more, with the runtime environment.
        os.environ[SWITCH] = name
    else:
        serve(name, own)


def named(setup: list[str]) -> tuple[str, dict[str, str]]:
    """The name of the socket to ask at, which a node and a runtime environment have for themselves, and the variables
    of this worker, those of the runtime environment too.
    """
    variables, same = of_worker(), []
    for word in setup:
        if not word.startswith(CONTEXT):
            same.append(word)
            continue
        context = json.loads(word.removeprefix(CONTEXT))
        given = context.pop("env_vars", None) or {}
        variables |= {name: value for name, value in given.items() if name.startswith(PER_WORKER)}
        same.append(json.dumps([context, sorted(given.items() - variables.items())]))
    others = sorted(os.environ.items() - of_worker().items())
    asked = json.dumps([os.getppid(), others, same])
    return f"rayddl-{hashlib.sha256(asked.encode()).hexdigest()[:32]}", variables


def hand_over(name: str, words: list[str], variables: dict[str, str]) -> bool:
    """Have the worker forked by the process that listens at ``name``; false where none does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as there:
        try:
            there.connect(f"\0{name}")
        except ConnectionRefusedError:
            return False
        data = json.dumps({"words": words, "env": variables}).encode()
        socket.send_fds(there, [len(data).to_bytes(4, "big") + data], [0, 1, 2])
        there.shutdown(socket.SHUT_WR)
        return there.recv(1) == FORKED


def of_worker() -> dict[str, str]:
    """The variables that are this worker's own."""
    return {name: value for name, value in os.environ.items() if name.startswith(PER_WORKER)}


def serve(name: str, words: list[str]) -> None:
    """In a node's first worker: fork every worker, this one too; returns in the forked ones."""
    import signal
    import struct

    os.environ[SWITCH] = "1"
    own = of_worker()
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listening.bind(f"\0{name}")
        listening.listen(64)
    except OSError:  # another worker was the first one
        listening.close()
        if hand_over(name, words, own):
            os._exit(0)
        return
    node, own_group = os.getppid(), os.getpgrp() == os.getpid()
    _end_with_parent()
    # Ray's C++ library reads it once. A worker of no job, as a node starts some in advance, is given one with its
    # first task.
    os.environ["RAY_JOB_ID"] = "f" * 8
    _import(IMPORTED)
    signal.signal(signal.SIGCHLD, _reap)
    if os.fork() == 0:
        _become(listening, own_group, words, own)
        return
    started = 1
    while os.getppid() == node:
        there, _ = listening.accept()
        with there:
            _, uid, _ = struct.unpack("3i", there.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            if uid != os.getuid():
                continue
            data, descriptors, _, _ = socket.recv_fds(there, 1 << 16, 3)
            size = int.from_bytes(data[:4], "big")
            while len(data) < 4 + size:
                data += there.recv(1 << 16)
            worker = json.loads(data[4:])
            if started == FEW:
                _import(IMPORTED_FOR_MANY)
                if SENT not in os.environ.get("PYTHONPATH", ""):
                    _import(OURS)
            started += 1
            if os.fork() == 0:
                for target, descriptor in enumerate(descriptors):
                    os.dup2(descriptor, target)
                    os.close(descriptor)
                _become(listening, own_group, worker["words"], worker["env"])
                return
            there.send(FORKED)
            for descriptor in descriptors:
                os.close(descriptor)
    os._exit(0)


def stand_in(given: dict[str, str]) -> None:
    """Listen at the agent's ports until the node ends."""
    import selectors

    _end_with_parent()
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


def _import(modules: tuple[str, ...]) -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for module in modules:
            with suppress(ImportError):  # a test may have hidden it: its own worker is to say so
                __import__(module)


def _end_with_parent() -> None:
    import ctypes
    import signal

    parent, ends_with_parent = os.getppid(), 1
    ctypes.CDLL(None).prctl(ends_with_parent, signal.SIGKILL)
    if os.getppid() != parent or parent == 1:  # it had ended before
        os._exit(1)


def _become(listening: socket.socket, own_group: bool, words: list[str], env: dict[str, str]) -> None:
    import signal

    import numpy as np

    listening.close()
    if own_group:
        # A node that gives each worker a process group ends the group with it.
        os.setpgid(0, 0)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for name in of_worker().keys() - env.keys():
        del os.environ[name]
    os.environ.update(env)
    np.random.seed()
    # Python goes on with the program that it was started with, which is the same for every worker.
    sys.argv[:] = words


def _reap(*_: object) -> None:
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


begin()
