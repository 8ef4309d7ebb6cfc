from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping

import pytest
import torch

from rayddl.stages.runtime import cores, devices, machine
from rayddl.stages.runtime.cores import Spent, Watch

pytestmark = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2,
    reason="needs Linux and two cores",
)
FREE, CROWDED, SOME, IDLE = Spent(0.9, 0.0), Spent(0.4, 0.5), Spent(0.9, 0.05), Spent(0.1, 0.0)


class Sleeper(threading.Thread):
    """A thread that waits, and starts others when it is told so."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._asked, self._made, self._over = threading.Event(), threading.Event(), threading.Event()
        self._make: Callable[[], None] = lambda: None
        self.start()
        until(lambda: self.native_id is not None)

    @property
    def id(self) -> int:
        assert self.native_id is not None
        return self.native_id

    def run(self) -> None:
        while not self._over.is_set():
            self._asked.wait()
            self._asked.clear()
            self._make()
            self._made.set()

    def call(self, make: Callable[[], None]) -> None:
        self._make = make
        self._asked.set()
        self._made.wait()
        self._made.clear()

    def end(self) -> None:
        self._over.set()
        self._asked.set()
        self.join()
        until(lambda: not os.path.exists(f"/proc/self/task/{self.id}"))


def until(holds: Callable[[], bool]) -> None:
    ends = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < ends
        time.sleep(0.01)


@pytest.fixture
def two() -> Iterator[list[int]]:
    """The cores of a machine of two; afterwards all threads are free again."""
    allowed = os.sched_getaffinity(0)
    yield sorted(allowed)[:2]
    for thread in map(int, os.listdir("/proc/self/task")):
        os.sched_setaffinity(thread, allowed)


@pytest.fixture
def sleepers(two: list[int]) -> Iterator[list[Sleeper]]:
    """Three threads of this process."""
    made = [Sleeper() for _ in range(3)]
    yield made
    for each in made:
        if each.is_alive():
            each.end()


def held(*threads: int) -> list[list[int]]:
    return [sorted(os.sched_getaffinity(thread)) for thread in threads]


def test_threads_get_a_core_each_while_one_waits_for_cores(two: list[int], sleepers: list[Sleeper]) -> None:
    a, b, other = (each.id for each in sleepers)
    watch = Watch(two)

    def look(one: Spent, another: Spent, third: Spent = IDLE) -> list[list[int]]:
        watch.look({a: one, b: another, other: third})
        return held(a, b, other)

    free = sorted(os.sched_getaffinity(0))
    assert look(FREE, SOME) == [free, free, free]
    assert look(FREE, CROWDED) == [[two[0]], [two[1]], two]
    assert look(FREE, SOME) == [
        [two[0]],
        [two[1]],
        two,
    ]  # less than what separates them, more than what frees them
    assert look(CROWDED, FREE) == [[two[0]], [two[1]], two]  # in their places, whatever the order
    assert look(FREE, FREE) == [two, two, two]
    assert look(CROWDED, IDLE) == [two, two, two]  # a single one is left to the scheduler
    assert look(Spent(0.3, 0.0), CROWDED, FREE) == [
        two,
        [two[0]],
        [two[1]],
    ]  # of three, those that compute most
    assert look(Spent(0.3, 0.0), FREE, FREE) == [two, two, two]


def test_a_new_thread_takes_the_core_of_one_that_ended(two: list[int], sleepers: list[Sleeper]) -> None:
    """OpenMP ends surplus threads after a small region, and starts others at the next large one."""
    main, before, other = sleepers
    watch = Watch(two)
    watch.look({main.id: CROWDED, before.id: FREE})
    core = held(before.id)
    started: list[Sleeper] = []
    main.call(lambda: started.append(Sleeper()))
    after = started[0]
    assert held(after.id) == held(main.id)  # as every thread that another one starts
    before.end()
    watch.look({main.id: CROWDED, after.id: FREE, other.id: IDLE})
    assert held(main.id, after.id) == [[two[0]], *core]
    after.end()


def test_what_a_thread_starts_has_all_cores_at_the_next_look(two: list[int], sleepers: list[Sleeper]) -> None:
    main, second, _ = sleepers
    watch = Watch(two)
    watch.look({main.id: CROWDED, second.id: FREE})
    threads: list[Sleeper] = []
    children: list[subprocess.Popen[bytes]] = []
    main.call(lambda: threads.append(Sleeper()))
    main.call(
        lambda: children.append(subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE))
    )
    try:
        assert held(threads[0].id, children[0].pid) == [[two[0]], [two[0]]]
        watch.look({main.id: CROWDED, second.id: FREE, threads[0].id: IDLE})
        assert held(main.id, second.id, threads[0].id, children[0].pid) == [[two[0]], [two[1]], two, two]
    finally:
        children[0].communicate()
        threads[0].end()


@pytest.fixture
def told(
    monkeypatch: pytest.MonkeyPatch, two: list[int], sleepers: list[Sleeper]
) -> Iterator[dict[int, Spent]]:
    """What each thread does, on a machine of two cores that is looked at often."""
    shares = {each.id: FREE for each in sleepers[:2]}
    began = time.monotonic()
    sums = dict.fromkeys(shares, Spent(0.0, 0.0))

    def counted() -> Mapping[int, Spent]:
        nonlocal began
        now = time.monotonic()
        for thread, share in shares.items():
            sums[thread] = Spent(
                *(old + each * (now - began) for old, each in zip(sums[thread], share, strict=True))
            )
        began = now
        return dict(sums)

    monkeypatch.setattr(machine, "cpus", lambda: 2)
    monkeypatch.setattr(cores, "EVERY_S", 0.02)
    monkeypatch.setattr(cores, "spent", counted)
    monkeypatch.setattr(Watch, "latest", None)
    real = os.sched_getaffinity
    monkeypatch.setattr(os, "sched_getaffinity", lambda thread: real(thread) & set(two))
    yield shares
    if Watch.latest is not None:
        Watch.latest.stop()


def test_a_worker_with_all_cores_is_watched(told: dict[int, Spent], two: list[int]) -> None:
    """Until it is given work for a part of them."""
    a, b = told
    apart = [[core] for core in two]
    threads = torch.get_num_threads()
    try:
        devices.enter(2)
        first = Watch.latest
        assert first is not None
        assert first.daemon
        told[a] = CROWDED
        until(lambda: sorted(held(a, b)) == apart)
        devices.enter(2)
        assert Watch.latest is first
        told[a] = FREE
        until(lambda: held(a, b) == [two, two])
        told[a] = CROWDED
        until(lambda: sorted(held(a, b)) == apart)
        devices.enter(1)
        assert not first.is_alive()
        assert held(a, b) == [two, two]
        devices.enter(2)
        assert Watch.latest is not first
    finally:
        torch.set_num_threads(threads)


def test_a_worker_with_a_gpu_is_not_watched(told: dict[int, Spent], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "assigned", lambda: ("0",))
    monkeypatch.setenv(devices.LOGICAL, os.devnull)
    monkeypatch.setattr(devices, "record", lambda *_: None)
    threads = torch.get_num_threads()
    devices.enter(2)
    torch.set_num_threads(threads)
    assert Watch.latest is None


@pytest.mark.parametrize(
    ("threads", "here", "allowed"), [(1, 1, [0]), (2, 4, [0, 1, 2, 3]), (2, 2, [0, 1, 2])]
)
def test_a_worker_that_shares_the_cores_is_not_watched(
    monkeypatch: pytest.MonkeyPatch, threads: int, here: int, allowed: list[int]
) -> None:
    """One thread, a part of the machine, and a container that may use some of its cores' time."""
    monkeypatch.setattr(machine, "cpus", lambda: here)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(allowed))
    monkeypatch.setattr(Watch, "latest", None)
    cores.watch(threads)
    assert Watch.latest is None


def test_nothing_is_watched_without_the_kernels_interfaces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cpus", lambda: 2)
    monkeypatch.setattr(Watch, "latest", None)
    with monkeypatch.context() as no_counters:
        no_counters.setattr(cores, "spent", dict)
        cores.watch(2)
    monkeypatch.delattr(os, "sched_setaffinity")
    cores.watch(2)
    assert Watch.latest is None


def test_the_kernel_counts_the_seconds_of_threads() -> None:
    own = threading.get_native_id()
    before = cores.spent()[own]
    ends = time.thread_time() + 0.05
    while time.thread_time() < ends:
        pass
    until(lambda: cores.spent()[own].running > before.running + 0.02)
    assert cores.spent()[own].waiting >= before.waiting
