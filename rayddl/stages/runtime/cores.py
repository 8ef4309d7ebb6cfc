"""Keeps the threads of a worker on cores of their own while other processes compete for the cores.

Threads that share a convolution wait for each other in oneDNN's barriers, which do not sleep. Next to a busy process
the scheduler often puts two of them on the core that is left; there each one spends its time slice waiting for the
other, and a step takes ten times as long. With one core for each thread, only the thread beside the busy process is
slow. Threads stay free where no process competes: those that they start later run on the same cores as they do.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

from rayddl.stages.runtime import machine

EVERY_S = 1.0
"""Seconds between two looks at the threads."""
CROWDED, ALONE = 0.1, 0.02
"""Shares of the time for which the slowest thread waited for a core: above the first, threads get a core each; below
the second they are free again."""

_TASKS = Path("/proc/self/task")


def watch(threads: int) -> None:
    """Watch this thread and the ``threads`` - 1 that torch computes with, until this thread ends.

    Does nothing on systems without Linux's interfaces, and in workers that share a machine with others: these might
    choose the same cores.
    """
    if threads < 2 or threads != machine.cpus():
        return
    here = threading.get_native_id()
    running = Watch.latest
    if running is not None and running.is_alive() and running.threads[0] == here:
        return
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_setaffinity") else []
    members = team(threads)
    if len(cores) != threads or len(members) != threads or waited(members[0]) is None:
        return
    Watch.latest = Watch(members, cores)
    Watch.latest.start()


class Watch(threading.Thread):
    """Gives each of ``threads`` (native identifiers) one of ``cores`` while they wait for cores; a daemon thread."""

    latest: ClassVar[Watch | None] = None

    def __init__(self, threads: Sequence[int], cores: Sequence[int]) -> None:
        super().__init__(name="rayddl cores", daemon=True)
        self.threads, self._cores = tuple(threads), tuple(cores)
        self._apart = False

    def run(self) -> None:
        before, began = self._waited(), time.monotonic()
        while True:
            time.sleep(EVERY_S)
            now, ends = self._waited(), time.monotonic()
            if not set(before) & set(now):
                return
            spent = max(now[thread] - before[thread] for thread in now if thread in before)
            self.look(spent / (ends - began))
            before, began = now, ends

    def look(self, waiting: float) -> None:
        """Put the threads apart or set them free, by the share of the time for which the slowest one waited."""
        if self._apart and waiting < ALONE:
            self._place([self._cores] * len(self.threads))
            self._apart = False
        elif not self._apart and waiting > CROWDED:
            self._place([[core] for core in self._cores])
            self._apart = True

    def _place(self, cores: Sequence[Sequence[int]]) -> None:
        for thread, allowed in zip(self.threads, cores, strict=True):
            with suppress(OSError):  # the thread has ended
                os.sched_setaffinity(thread, allowed)

    def _waited(self) -> dict[int, float]:
        seconds = {thread: waited(thread) for thread in self.threads}
        return {thread: each for thread, each in seconds.items() if each is not None}


def waited(thread: int) -> float | None:
    """Seconds for which a thread of this process was ready to run and had no core; None where that is unknown."""
    try:
        return int((_TASKS / str(thread) / "schedstat").read_text("ascii").split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return None


def team(threads: int) -> tuple[int, ...]:
    """The native identifiers of the threads that compute for this one in parallel regions, itself first.

    Empty where torch does not use OpenMP.
    """
    import torch

    library = Path(torch.__file__).parent / "lib/libtorch_cpu.so"
    try:
        # The function that compilers call at the start of a parallel region, of the OpenMP library that torch uses:
        # a process may have loaded others, as scikit-learn's.
        region = ctypes.CDLL(str(library)).GOMP_parallel
    except (OSError, AttributeError):
        return ()
    found: set[int] = set()
    note = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: found.add(threading.get_native_id()))
    region(note, None, ctypes.c_uint(threads), ctypes.c_uint(0))
    here = threading.get_native_id()
    return (here, *sorted(found - {here}))
