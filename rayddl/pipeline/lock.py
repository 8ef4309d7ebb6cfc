"""Prevents two commands from writing the same stage's folder at once."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from rayddl import locks
from rayddl.errors import StageError
from rayddl.pipeline.artifacts import LOCK
from rayddl.storage import Folder


@contextmanager
def held(folder: Folder) -> Iterator[None]:
    """Lock ``folder`` for this process. Raises :class:`StageError` with the process that has locked it.

    For filesystems without locks see :func:`rayddl.locks.exclusive`.
    """
    me = json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode()
    with ExitStack() as stack:
        try:
            stack.enter_context(locks.exclusive(folder, LOCK, me))
        except locks.Busy as busy:
            raise StageError(
                f"{folder} is being written by {_holder(busy.note)}; wait until it is done, or stop it, "
                "and run the same command again",
                code="folder-locked",
            ) from None
        yield


def _holder(note: bytes) -> str:
    try:
        holder = json.loads(note)
        return f"process {holder['pid']} on {holder['host']}"
    except (ValueError, KeyError, TypeError):
        return "another process"
