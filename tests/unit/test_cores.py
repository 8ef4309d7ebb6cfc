from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress

import pytest
import torch

from rayddl import affinity
from rayddl.data.pixels import decode
from rayddl.stages.runtime import cores, devices, in_process, machine
from rayddl.stages.runtime.cores import Spent, Watch

pytestmark = pytest.mark.skipif(
    len(affinity.cores() or ()) < 2 or not cores.spent(),
    reason="needs two cores, and a kernel that counts the seconds of threads",
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
        while True:
            self._asked.wait()
            self._asked.clear()
            if self._over.is_set():
                return
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
    for thread in affinity.threads():
        with suppress(ProcessLookupError):  # it has ended
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


@pytest.fixture
def shell() -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Starts a shell with a line of commands, and ends it with all that it has started."""
    made: list[subprocess.Popen[str]] = []

    def start(line: str) -> subprocess.Popen[str]:
        made.append(
            subprocess.Popen(["sh", "-c", line], stdout=subprocess.PIPE, text=True, start_new_session=True)
        )
        return made[-1]

    yield start
    for each in made:
        os.killpg(each.pid, signal.SIGKILL)
        each.communicate()


def test_what_a_thread_starts_has_all_cores_at_the_next_look(
    two: list[int], sleepers: list[Sleeper], shell: Callable[[str], subprocess.Popen[str]]
) -> None:
    """A thread, a process, and a process of that one, as a compiler starts its passes."""
    main, second, _ = sleepers
    watch = Watch(two)
    watch.look({main.id: CROWDED, second.id: FREE})
    threads: list[Sleeper] = []
    children: list[subprocess.Popen[str]] = []
    main.call(lambda: threads.append(Sleeper()))
    main.call(lambda: children.append(shell("sleep 600 & echo $!; wait")))
    assert children[0].stdout is not None
    started = [threads[0].id, children[0].pid, int(children[0].stdout.readline())]
    assert held(*started) == [[two[0]]] * 3
    watch.look({main.id: CROWDED, second.id: FREE, threads[0].id: IDLE})
    assert held(main.id, second.id, *started) == [[two[0]], [two[1]], two, two, two]
    threads[0].end()


def test_what_is_started_while_threads_are_set_free_is_free_soon(
    two: list[int], sleepers: list[Sleeper], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It begins with the core of its starter, after the threads to be set free were listed."""
    main, second, _ = sleepers
    watch = Watch(two)
    watch.look({main.id: CROWDED, second.id: FREE})
    late: list[Sleeper] = []
    listed = affinity.threads

    def threads() -> list[int]:
        found = listed()
        if not late:
            main.call(lambda: late.append(Sleeper()))
        return found

    monkeypatch.setattr(affinity, "threads", threads)
    watch.look({main.id: FREE, second.id: FREE})
    assert held(late[0].id) == [[two[0]]]
    watch.look({main.id: FREE, second.id: FREE})
    assert held(late[0].id) == [two]
    late[0].end()


def test_a_choice_of_several_cores_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """That of a thread which may use some of a machine's cores, for whatever reason."""
    every = {0, 1, 2, 3}
    masks = {1: every, 2: every, 3: {1, 2}, 4: {2}}
    monkeypatch.setattr(affinity, "threads", lambda: list(masks))
    monkeypatch.setattr(cores, "_started", list)
    monkeypatch.setattr(os, "sched_getaffinity", masks.__getitem__)
    monkeypatch.setattr(os, "sched_setaffinity", masks.__setitem__)
    watch = Watch(sorted(every))
    watch.look({1: CROWDED, 2: FREE})
    assert masks == {1: {0}, 2: {1}, 3: {1, 2}, 4: every}
    watch.look({1: FREE, 2: FREE})
    assert masks == {1: every, 2: every, 3: {1, 2}, 4: every}


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
    monkeypatch.setattr(affinity, "cores", lambda: frozenset(two))
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


def test_work_in_a_watched_process_leaves_it_watched(told: dict[int, Spent], two: list[int]) -> None:
    """A short evaluation by a worker that goes on with its own work."""
    threads = torch.get_num_threads()
    try:
        devices.enter(2)
        in_process.done((devices.enter, 1))
        assert cores.watched() == 2
        devices.enter(1)
        in_process.done((devices.enter, 2))
        assert cores.watched() == 0
    finally:
        torch.set_num_threads(threads)


def test_a_thread_with_one_core_knows_of_the_others(sleepers: list[Sleeper]) -> None:
    """What it starts there counts the machine's cores."""
    before, found = (machine.cpus(), decode._threads()), []
    os.sched_setaffinity(sleepers[0].id, {min(affinity.cores() or ())})
    sleepers[0].call(lambda: found.append((machine.cpus(), decode._threads())))
    assert found == [before]


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
    monkeypatch.setattr(affinity, "cores", lambda: frozenset(allowed))
    monkeypatch.setattr(Watch, "latest", None)
    cores.watch(threads)
    assert Watch.latest is None


def test_nothing_is_watched_without_the_kernels_interfaces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cpus", lambda: 2)
    monkeypatch.setattr(Watch, "latest", None)
    for lacking, value in (("spent", dict), ("cores", lambda: None)):
        with monkeypatch.context() as patched:
            patched.setattr(affinity, "cores", lambda: frozenset({0, 1}))
            patched.setattr(affinity if lacking == "cores" else cores, lacking, value)
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
