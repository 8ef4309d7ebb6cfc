"""Attaches this process to a running Ray cluster."""

from __future__ import annotations

import json
import logging
import os
import re
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rayddl.errors import UserError
from rayddl.stages.runtime import driver

CONNECT_SECONDS = 10.0
"""Time limit for a connection to the cluster's address."""
ATTEMPTS = "2"
"""Attempts to connect to a cluster that answers, but not as expected."""
_ATTEMPTS = "RAY_gcs_server_port_wait_time_s"
JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""The environment variable in which Ray's job server passes the job's configuration to the driver."""
_LEFT_OUT = ("__pycache__", "*.pyc")
_HOW_TO_ASK = (
    "export RAY_AUTH_MODE=token, with the cluster's token in ~/.ray/auth_token (the head's file of that name) or in "
    "RAY_AUTH_TOKEN"
)


def start(address: str, env: Mapping[str, str]) -> None:
    """Attach this process to the cluster at ``address``; workers get the variables ``env``, and this process's
    copy of the package.

    Raises :class:`UserError` if no cluster answers, or if its versions do not fit this process.
    """
    # Otherwise Ray's C++ library writes to the terminal; relevant failures are raised as errors.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    import ray

    # Ray repeats each attempt for seconds, and its usual twenty only delay the refusal of a wrong token.
    attempts = {_ATTEMPTS: os.environ.get(_ATTEMPTS, ATTEMPTS)}
    try:
        knock(address)
        # The C++ library prints a line about its log level.
        with driver.stderr_into(os.devnull), driver.variables(attempts):
            ray.init(
                address=address,
                runtime_env=environment(env, clean=address.startswith("ray://")),
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise UserError(_refusal(address, error), code="attach-failed") from error


def environment(env: Mapping[str, str], *, clean: bool = False) -> dict[str, Any]:
    """The runtime environment of workers on a cluster: the variables ``env``, and this process's copy of the package,
    so that nodes need only its dependencies.

    In a submitted job, the package and the variables of the job are left out: Ray refuses both. ``clean`` workers
    import nothing from the driver's folders.
    """
    job = _job()
    given = job.get("env_vars") or {}
    # Workers with num_gpus=0 then see the node's GPUs in every version of Ray; devices are chosen by assignment.
    wanted = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", **env}
    made: dict[str, Any] = {"env_vars": {name: v for name, v in wanted.items() if name not in given}}
    if job.get("working_dir") or job.get("py_modules"):
        return made
    made |= {"py_modules": [str(Path(__file__).parents[2])], "excludes": list(_LEFT_OUT)}
    if not clean:
        made["worker_process_setup_hook"] = _shipped_first()
    return made


def knock(address: str) -> None:
    """Raise ``OSError`` if no machine answers at ``HOST:PORT``; other addresses, such as ``auto``, are not checked."""
    # Ray itself waits minutes for a machine that does not answer.
    place, _, port = address.removeprefix("ray://").rpartition(":")
    if place and port.isdigit():
        with socket.create_connection((place.strip("[]"), int(port)), timeout=CONNECT_SECONDS):
            pass


def _job() -> dict[str, Any]:
    """The configuration of the submitted job that this process runs in; empty outside a job."""
    try:
        found = json.loads(os.environ.get(JOB, "{}")).get("runtime_env")
    except (ValueError, AttributeError):
        return {}
    return found if isinstance(found, dict) else {}


def _shipped_first() -> Callable[[], None]:
    """A setup function for workers that imports the shipped package. With the first task Ray puts the driver's folder
    first on the path, where another machine may have an older checkout; an imported package is kept.
    """

    # A nested function is pickled by value; a module-level one would be imported on the worker.
    def shipped_first() -> None:
        import importlib
        import os
        import sys
        from contextlib import suppress

        paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        sys.path[:0] = [path for path in paths if f"{os.sep}py_modules_files{os.sep}" in path]
        with suppress(Exception):  # the task that needs it reports the problem
            importlib.import_module("rayddl")

    return shipped_first


def _refusal(address: str, error: BaseException) -> str:
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None and cause not in causes:
        causes.append(cause)
    texts = [f"{type(cause).__name__}: {' '.join(str(cause).split())}" for cause in causes]
    mismatch = next((text for text in texts if "ersion mismatch" in text), None)
    if mismatch is not None:
        return (
            f"the Ray cluster at {address!r} runs other versions than this environment ({mismatch[:600]}). Run the "
            "command in the environment that the cluster was started from, or install the cluster's versions here."
        )
    if any(re.search("AuthenticationError|InvalidAuthToken|authentication token", text) for text in texts):
        return (
            f"the Ray cluster at {address!r} asks for a token, and none was sent or another cluster's: "
            f"{_HOW_TO_ASK}."
        )
    return (
        f"no Ray cluster answers at {address!r} ({error}). Start one with `ray start --head`, "
        "or leave --address out to run on this machine alone."
    )
