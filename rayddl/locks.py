"""File locks that keep two processes of one machine from doing the same work at once."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rayddl.storage import Folder

try:
    import fcntl
except ImportError:  # Windows has no advisory locks of this kind
    fcntl = None  # type: ignore[assignment]  # None marks systems without locks

_NO_LOCKS_HERE = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}


class Busy(Exception):
    """Another process holds the lock; ``note`` is the text that it wrote into the lock file."""

    def __init__(self, note: bytes) -> None:
        super().__init__("another process holds the lock")
        self.note = note


@contextmanager
def exclusive(folder: Folder, name: str, note: bytes = b"") -> Iterator[None]:
    """Lock the file ``name`` in ``folder`` for this process and write ``note`` into it. Raises :class:`Busy`.

    The kernel releases the lock when its process ends, so no stale lock remains. Remote filesystems, local
    ones without locks, and systems without locks are not protected: every process enters the block.
    """
    place = folder.local
    path = None if place is None else place / name
    descriptor = None if path is None or fcntl is None else _acquired(path, note)
    try:
        yield
    finally:
        if descriptor is not None and path is not None:
            with suppress(OSError):
                path.unlink()
            os.close(descriptor)


def left(folder: Folder, name: str) -> bytes | None:
    """Return the note of a holder of the lock ``name`` in ``folder`` that was killed before it released it.

    ``None`` if there is no lock file, its holder has it still, or locks do not work there.
    """
    place = folder.local
    if place is None or fcntl is None:
        return None
    try:
        descriptor = os.open(place / name, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would block
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return os.read(descriptor, 1024)
    except OSError:
        return None
    finally:
        os.close(descriptor)


def _acquired(path: Path, note: bytes) -> int | None:
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            left = os.read(descriptor, 1024)
            os.close(descriptor)
            raise Busy(left) from None
        except OSError as error:
            os.close(descriptor)
            if error.errno in _NO_LOCKS_HERE:
                return None
            raise
        # The last holder may have removed the file between our open and our lock. Our lock would then be on a
        # file that no other process can open.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                os.truncate(descriptor, 0)
                os.write(descriptor, note)
                return descriptor
        os.close(descriptor)
