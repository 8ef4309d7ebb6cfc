"""Ray on this machine alone: what it is started with."""

from __future__ import annotations

import logging
import os

from rayddl.errors import UserError
from rayddl.stages.runtime import machine

STORE_SHARE = 0.3
"""Share of memory, and of shared memory at most nearly all, that the object store takes."""


def start(env: dict[str, str], num_cpus: int | None = None, num_gpus: int | None = None) -> None:
    """Start a Ray that ends with this process; its workers have the variables ``env``.

    Raises :class:`UserError` where the temporary folder's path is too long for Ray's sockets.
    """
    import ray

    folder = _short_folder()
    # Workers of a local Ray inherit this process's environment.
    for name, value in env.items():
        os.environ.setdefault(name, value)
    ray.init(
        address="local",
        num_cpus=num_cpus or machine.cpus(),
        num_gpus=num_gpus,
        object_store_memory=store_bytes(),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _temp_dir=folder,
    )


def _short_folder() -> str:
    wanted = machine.temporary_folder()
    for folder in (wanted, "/tmp/ray"):  # noqa: S108  # Ray's own default
        short = machine.socket_path_bytes(folder) <= machine.SOCKET_PATH_BYTES
        if short and os.access(os.path.dirname(folder), os.W_OK):
            return folder
    raise UserError(
        f"Ray needs a temporary folder: the path of {wanted} is too long (its sockets below it may have "
        f"{machine.SOCKET_PATH_BYTES} bytes) or it cannot be written, and neither can /tmp. "
        "Set TMPDIR to a short path that can be written."
    )


def store_bytes() -> int:
    """Bytes of the object store."""
    memory, shared = machine.memory_bytes(), machine.shm_bytes()
    wanted = int(memory * STORE_SHARE)
    # Beyond /dev/shm Ray falls back to files in /tmp, or refuses to start.
    return max(min(wanted, int(shared * 0.9)), 80 * 2**20)
