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

from rayddl.stages.runtime import machine

EVERY_S = 1.0
"""Seconds between two looks at the threads."""
COMPUTING = 0.2
"""Share of the time for which a thread runs or waits for a core, above which it counts as one that computes."""
CROWDED, ALONE = 0.1, 0.02
"""Shares of the time for which a computing thread waited for a core: above the first, threads get a core each; below
the second they are free again."""

_TASKS = Path("/proc/self/task")


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
    running = Watch.latest
    if running is not None and running.is_alive():
        if len(running.cores) == threads:
            return
        running.stop()
    if threads < 2 or threads != machine.cpus() or not hasattr(os, "sched_setaffinity") or not spent():
        return
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) == threads:
        Watch.latest = Watch(cores)
        Watch.latest.start()


class Watch(threading.Thread):
    """Gives each computing thread of this process one of its ``cores`` while one waits for a core; a daemon thread."""

    latest: ClassVar[Watch | None] = None

    def __init__(self, cores: list[int]) -> None:
        super().__init__(name="rayddl cores", daemon=True)
        self.cores = cores
        self._stopped = threading.Event()
        self._held: dict[int, int] = {}
        """The core of each thread that has one of its own."""

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
        """Give each of these threads a core, and all cores to every other one, also to those that others started
        meanwhile, which have the core of the one that started them.
        """
        had, self._held = self._held, {}
        if not had and not computing:
            return
        for thread in computing:
            if thread in had:
                self._held[thread] = had[thread]
        left = [core for core in self.cores if core not in self._held.values()]
        for thread in computing:
            if thread not in self._held:
                self._held[thread] = left.pop(0)
        for thread in [*_threads(), *_children()]:
            cores = {self._held[thread]} if thread in self._held else set(self.cores)
            with suppress(OSError):  # it has ended
                if os.sched_getaffinity(thread) != cores:
                    os.sched_setaffinity(thread, cores)


def spent() -> dict[int, Spent]:
    """Seconds of each thread of this process by its native identifier; empty where the kernel does not count them."""
    found = {}
    for thread in _threads():
        with suppress(OSError, ValueError):  # it has ended
            running, waiting, _ = (_TASKS / str(thread) / "schedstat").read_text("ascii").split()
            found[thread] = Spent(int(running) / 1e9, int(waiting) / 1e9)
    return found


def _threads() -> list[int]:
    with suppress(OSError):
        return [int(name) for name in os.listdir(_TASKS)]
    return []


def _children() -> list[int]:
    """Processes that threads of this one have started, such as compilers."""
    found: list[int] = []
    for thread in _threads():
        with suppress(OSError):
            found += map(int, (_TASKS / str(thread) / "children").read_text("ascii").split())
    return found
