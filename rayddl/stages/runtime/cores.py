"""Keeps the threads of a worker on cores of their own while other threads compete for the cores.

Threads that share a convolution wait for each other in oneDNN's barriers, which do not sleep. Next to a busy process
the scheduler often puts two of them on the core that is left; there each one spends its time slice waiting for the
other, and a step takes ten times as long. With one core for each thread, only the thread beside the busy process is
slow.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import ClassVar, NamedTuple

from rayddl import affinity
from rayddl.stages.runtime import machine

EVERY_S = 1.0
"""Seconds between two looks at the threads."""
COMPUTING = 0.2
"""Share of the time for which a thread runs or waits for a core, above which it counts as one that computes."""
CROWDED, ALONE = 0.1, 0.02
"""Shares of the time for which a computing thread waited for a core: above the first, threads get a core each; below
the second they are free again."""


class Spent(NamedTuple):
    """The time of a thread, in seconds or as a share."""

    running: float
    waiting: float
    """Ready to run, without a core."""


def watch(threads: int) -> None:
    """Watch the threads of this process from now on if ``threads`` of them compute on all of the machine's cores.

    Otherwise end an earlier watch: workers that share a machine might choose the same cores. Does nothing on systems
    without Linux's interfaces.
    """
    if threads == watched():
        return
    if Watch.latest is not None:
        Watch.latest.stop()
    found = affinity.cores()
    if threads < 2 or found is None or len(found) != threads or threads != machine.cpus() or not spent():
        return
    Watch.latest = Watch(sorted(found))
    Watch.latest.start()


def watched() -> int:
    """The number of threads that are watched, 0 if none are."""
    running = Watch.latest
    return len(running.cores) if running is not None and running.is_alive() else 0


class Watch(threading.Thread):
    """Gives each computing thread of this process one of its ``cores`` while one waits for a core; a daemon thread."""

    latest: ClassVar[Watch | None] = None

    def __init__(self, cores: list[int]) -> None:
        super().__init__(name="rayddl cores", daemon=True)
        self.cores = cores
        self._stopped = threading.Event()
        self._held: dict[int, int] = {}
        """The core of each thread that has one of its own."""
        self._again = False
        """True after threads were set free: one of them may have started another while they were looked for."""

    def run(self) -> None:
        before, began = spent(), time.monotonic()
        while not self._stopped.wait(EVERY_S):
            now, ends = spent(), time.monotonic()
            seconds = ends - began
            self.look(
                {
                    thread: Spent(
                        *((new - old) / seconds for new, old in zip(now[thread], before[thread], strict=True))
                    )
                    for thread in now
                    if thread in before
                }
            )
            before, began = now, ends
        self._hold([])
        self._hold([])

    def stop(self) -> None:
        """Set all threads free and end the watch."""
        self._stopped.set()
        self.join()

    def look(self, shares: Mapping[int, Spent]) -> None:
        """Put threads apart or set them free, by the shares of the time that each one was running and waiting."""
        busy = {thread: sum(each) for thread, each in shares.items() if sum(each) > COMPUTING}
        computing = sorted(busy, key=lambda thread: busy[thread], reverse=True)[: len(self.cores)]
        waiting = max((shares[thread].waiting for thread in computing), default=0.0)
        if waiting < ALONE or len(computing) < 2:
            self._hold([])
        elif waiting > CROWDED or self._held:
            self._hold(computing)

    def _hold(self, computing: list[int]) -> None:
        """Give each of these threads a core, and all cores to the others that have one core."""
        had = self._held
        self._held = {thread: had[thread] for thread in computing if thread in had}
        left = [core for core in self.cores if core not in self._held.values()]
        for thread in computing:
            if thread not in self._held:
                self._held[thread] = left.pop(0)
        if had or self._held or self._again:
            self._set()
        self._again = bool(had)

    def _set(self) -> None:
        """Set the cores of all threads and of what they have started, which begins with the core of its starter."""
        for thread in [*affinity.threads(), *_started()]:
            with suppress(OSError):  # it has ended, or the machine's cores have changed
                has = os.sched_getaffinity(thread)
                # A choice of several cores was made elsewhere.
                free = set(self.cores) if len(has) == 1 else has
                cores = {self._held[thread]} if thread in self._held else free
                if has != cores:
                    os.sched_setaffinity(thread, cores)


def spent() -> dict[int, Spent]:
    """Seconds of each thread of this process that has run, by its native identifier; empty where the kernel does not
    count them.
    """
    found = {}
    for thread in affinity.threads():
        with suppress(OSError, ValueError):  # it has ended
            running, waiting, _ = Path(affinity.TASKS, str(thread), "schedstat").read_text("ascii").split()
            if int(running):
                found[thread] = Spent(int(running) / 1e9, int(waiting) / 1e9)
    return found


def _started() -> list[int]:
    """The threads of all processes that this one has started, such as compilers, and that these have started."""
    found: list[int] = []
    processes = [os.getpid()]
    for process in processes:
        with suppress(OSError):  # it has ended
            threads = list(map(int, os.listdir(f"/proc/{process}/task")))
            found += threads if process != os.getpid() else []
            for thread in threads:
                children = Path(f"/proc/{process}/task/{thread}/children").read_text("ascii")
                processes += map(int, children.split())
    return found
