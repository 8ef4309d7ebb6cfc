"""Keeps two commands from writing the same stage's folder at once."""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rayddl.errors import StageError
from rayddl.pipeline.artifacts import LOCK
from rayddl.storage import Folder

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows has no advisory locks of this kind
    fcntl = None  # type: ignore[assignment]  # the name stays so that one test below tells

_NO_LOCKS_HERE = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}


@contextmanager
def held(folder: Folder) -> Iterator[None]:
    """Hold ``folder`` for this process. Raises :class:`StageError` while another one holds it.

    The kernel keeps the lock and drops it when its holder dies, so a stale one cannot stay behind,
    whatever process got the same id since. The file names the holder for the message. Folders on
    remote filesystems, and on local ones without locks, are not guarded.
    """
    path = folder.local
    descriptor = None if path is None or fcntl is None else _acquired(path / LOCK, folder)
    try:
        yield
    finally:
        if descriptor is not None and path is not None:
            with suppress(OSError):
                (path / LOCK).unlink()
            os.close(descriptor)


def _acquired(path: Path, folder: Folder) -> int | None:
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(descriptor)
            os.close(descriptor)
            raise StageError(
                f"{folder} is being written by {holder}; wait until it is done, or stop it, "
                "and run the same command again"
            ) from None
        except OSError as error:
            os.close(descriptor)
            if error.errno in _NO_LOCKS_HERE:
                return None
            raise
        # The last holder may have removed the file between our open and our lock: then the lock is
        # on a file that nobody else will ever open.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                os.truncate(descriptor, 0)
                os.write(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())
                return descriptor
        os.close(descriptor)


def _holder(descriptor: int) -> str:
    try:
        holder = json.loads(os.read(descriptor, 1024))
        return f"process {holder['pid']} on {holder['host']}"
    except (ValueError, KeyError, TypeError):
        return "another process"
