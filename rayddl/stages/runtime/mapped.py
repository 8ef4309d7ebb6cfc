"""Splits in files on the nodes' disks: random access to more images than memory holds.

A batch in random order has images of every shard. Held in the object store, all shards of a split would have to stay
there; of a split that exceeds it, each batch would be read back from Ray's own files. So each node that trains on a
large split writes its bytes into one file, reading one shard at a time. The node's processes map it: the kernel
keeps the part that fits in memory, once for all of them.

The last process that uses a file deletes it. A killed process leaves its file to the next one, and to the end of Ray,
in whose folder it is.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import random
import shutil
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rayddl.data.pixels.space import PORTION, PixelSpace
from rayddl.errors import StageError
from rayddl.stages.runtime.shards import Batches, Shards, tensor

PAUSES = 0.05
"""The longest pause in seconds before a lock is asked for again."""
_last: dict[Path, Tensor] = {}
"""The split that this process mapped last: its next unit of work uses the same one."""


def mapped(
    shards: Shards, shape: tuple[int, int, int], space: PixelSpace | None = None, folder: Path | None = None
) -> Tensor:
    """The images of ``shards``, of ``shape`` (C, H, W), from a file in ``folder``: uint8 ``[N, C, H, W]``, or float32
    in model space if a ``space`` is given. The first process of a node writes the file, the others wait for it.

    ``folder``: default is the one of this node's Ray. Raises :class:`StageError` if the disk has too little space.
    """
    folder = folder or _of_ray()
    path = folder / _name(shards, space)
    if path not in _last:
        _last.clear()
        _last[path] = _opened(path, shards, shape, space)
    return _last[path]


def _of_ray() -> Path:
    import ray

    context = ray.get_runtime_context()
    return Path(context.get_temp_dir()) / context.get_session_name() / "rayddl-splits"


def _name(shards: Shards, space: PixelSpace | None) -> str:
    parts = [ref.hex() for ref in shards.refs] + [str((shards.counts, shards.channels))]
    return hashlib.sha256("".join([*parts, space.fingerprint if space else ""]).encode()).hexdigest()[:32]


def _opened(path: Path, shards: Shards, shape: tuple[int, int, int], space: PixelSpace | None) -> Tensor:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    _delete_unused(path)
    whole, dtype = (sum(shards.counts), *shape), np.dtype(np.uint8 if space is None else np.float32)
    size = int(np.prod(whole)) * dtype.itemsize
    descriptor = _complete(path, size, lambda own: _write(own, size, _contents(shards, space), path.parent))
    with os.fdopen(os.dup(descriptor), "rb") as file:
        array = np.memmap(file, dtype, "r", shape=whole)
    weakref.finalize(array, _release, descriptor, path, os.getpid())
    return tensor(array)


def _contents(shards: Shards, space: PixelSpace | None) -> Iterator[Tensor]:
    every = torch.arange(sum(shards.counts))
    if space is None:
        yield from Batches(shards, every)
    else:
        yield from map(space.encode, Batches(shards, every, PORTION))


def _write(descriptor: int, size: int, contents: Iterator[Tensor], folder: Path) -> None:
    os.truncate(descriptor, 0)
    free = shutil.disk_usage(folder).free
    if free < size:
        raise _too_small(size, folder, free)
    try:
        with os.fdopen(os.dup(descriptor), "wb", buffering=0) as file:
            for part in contents:
                left = part.contiguous().numpy().data.cast("B")
                while left:
                    left = left[file.write(left) :]
            file.write(b"\n")
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise _too_small(size, folder, free) from error


def _too_small(size: int, folder: Path, free: int) -> StageError:
    gib = 2**30
    return StageError(
        f"the decoded images take {size / gib:.1f} GiB, and {folder} on this node has {free / gib:.1f} GiB free: they "
        "are trained on in random order, from a file there. Free some space, set RAY_TMPDIR to a folder on a larger "
        "disk (on a cluster, ray start --temp-dir), or set a smaller source.size.",
        code="disk-too-small-for-images",
    )


def _complete(path: Path, size: int, write: Callable[[int], None]) -> int:
    """The descriptor of a file of ``size`` bytes, shared with its other users. Unless it is complete, ``write`` is
    called with the descriptor, while all others wait.
    """

    def usable() -> bool:
        # One byte more is written when the others are.
        return _is_at(descriptor, path) and os.fstat(descriptor).st_size == size + 1

    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_SH)  # waits while another process writes
        if usable():
            return descriptor
        if _alone(descriptor):
            if _is_at(descriptor, path) and not usable():
                try:
                    write(descriptor)
                except BaseException:
                    _release(descriptor, path, os.getpid())
                    raise
            if usable():
                fcntl.flock(descriptor, fcntl.LOCK_SH)
                return descriptor
        os.close(descriptor)
        time.sleep(PAUSES * random.random())  # noqa: S311  # so that two do not stay in each other's way


def _alone(descriptor: int) -> bool:
    """True if the lock for writing is this process's now. It is never waited for: another one that gets it first
    writes the file, and then uses it for hours.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    """False if a user of the file has deleted it between our open and our lock."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _release(descriptor: int, path: Path, user: int) -> None:
    """End the use of a file by process ``user``; the last user deletes it."""
    if os.getpid() != user:
        return  # a fork shares its parent's lock
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_at(descriptor, path):
            path.unlink()
    os.close(descriptor)


def _delete_unused(wanted: Path) -> None:
    """Delete the files beside ``wanted`` that nobody uses. That one stays: a killed process may have completed it."""
    for path in wanted.parent.iterdir():
        if path != wanted:
            with suppress(FileNotFoundError):
                _release(os.open(path, os.O_RDWR), path, os.getpid())
