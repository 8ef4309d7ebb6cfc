from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import torch

from rayddl.stages.runtime import cores, devices, machine

pytestmark = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2,
    reason="needs Linux and two cores",
)


@pytest.fixture
def team() -> Iterator[tuple[int, ...]]:
    """The test's thread and the one that computes with it."""
    threads, allowed = torch.get_num_threads(), os.sched_getaffinity(0)
    torch.set_num_threads(2)
    found = cores.team(2)
    yield found
    for thread in found:
        os.sched_setaffinity(thread, allowed)
    torch.set_num_threads(threads)


@pytest.fixture
def watching(monkeypatch: pytest.MonkeyPatch, team: tuple[int, ...]) -> Iterator[dict[str, float]]:
    """A machine of two cores, looked at often, on which threads wait for ``share`` of the time for a core."""
    told = {"share": 0.0}
    two = sorted(os.sched_getaffinity(0))[:2]
    began = time.monotonic()
    waited = dict.fromkeys(team, 0.0)

    def counted(thread: int) -> float | None:
        nonlocal began
        now = time.monotonic()
        if thread == team[1]:
            waited[thread] += told["share"] * (now - began)
            began = now
        return waited[thread] if told["share"] >= 0 else None

    monkeypatch.setattr(machine, "cpus", lambda: 2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(two))
    monkeypatch.setattr(cores, "EVERY_S", 0.02)
    monkeypatch.setattr(cores.Watch, "latest", None)
    monkeypatch.setattr(cores, "waited", counted)
    yield told
    told["share"] = -1.0
    if cores.Watch.latest is not None:
        cores.Watch.latest.join(timeout=60)
        assert not cores.Watch.latest.is_alive()


def allowed(threads: tuple[int, ...]) -> list[list[int]]:
    """The cores of each thread, from the kernel."""
    found = []
    for thread in threads:
        with open(f"/proc/self/task/{thread}/status", encoding="ascii") as file:
            text = next(line.split()[1] for line in file if line.startswith("Cpus_allowed_list"))
        spans = [[int(end) for end in span.split("-")] for span in text.split(",")]
        found.append([core for span in spans for core in range(span[0], span[-1] + 1)])
    return found


def until(holds: Callable[[], bool]) -> None:
    ends = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < ends
        time.sleep(0.01)


def test_a_team_is_this_thread_and_those_that_compute_for_it(team: tuple[int, ...]) -> None:
    """Also beside the OpenMP library of another package."""
    import sklearn.utils  # noqa: F401

    def computed(thread: int) -> int:
        with open(f"/proc/self/task/{thread}/schedstat", encoding="ascii") as file:
            return int(file.read().split()[0])

    assert team[0] == threading.get_native_id()
    assert len(set(team)) == 2
    assert cores.team(2) == team
    before = [computed(thread) for thread in team]
    x = torch.randn(1000, 1000)

    def all_have_computed() -> bool:
        x @ x
        return all(computed(thread) - b > 1e6 for thread, b in zip(team, before, strict=True))

    until(all_have_computed)


def test_threads_get_a_core_each_while_one_waits_for_cores(team: tuple[int, ...]) -> None:
    two = sorted(os.sched_getaffinity(0))[:2]
    for thread in team:
        os.sched_setaffinity(thread, two)
    watch = cores.Watch(team, two)
    watch.look(0.05)
    assert allowed(team) == [two, two]
    watch.look(0.5)
    assert allowed(team) == [[two[0]], [two[1]]]
    watch.look(0.05)  # less than what separates them, and more than what frees them
    assert allowed(team) == [[two[0]], [two[1]]]
    watch.look(0.0)
    assert allowed(team) == [two, two]


def test_a_worker_with_all_cores_is_watched(watching: dict[str, float], team: tuple[int, ...]) -> None:
    two = sorted(os.sched_getaffinity(0))
    assert devices.enter(2) == torch.device("cpu")
    first = cores.Watch.latest
    assert first is not None
    assert first.daemon
    devices.enter(2)
    assert cores.Watch.latest is first
    watching["share"] = 0.5
    until(lambda: allowed(team) == [[two[0]], [two[1]]])
    watching["share"] = 0.0
    until(lambda: allowed(team) == [two, two])


@pytest.mark.parametrize(
    ("threads", "here", "allowed_cores"), [(1, 1, [0]), (2, 4, [0, 1, 2, 3]), (2, 2, [0, 1, 2])]
)
def test_a_worker_that_shares_the_cores_is_not_watched(
    monkeypatch: pytest.MonkeyPatch, threads: int, here: int, allowed_cores: list[int]
) -> None:
    """One thread, a part of the machine, and a container that may use some of its cores' time."""
    monkeypatch.setattr(machine, "cpus", lambda: here)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(allowed_cores))
    monkeypatch.setattr(cores.Watch, "latest", None)
    cores.watch(threads)
    assert cores.Watch.latest is None


def test_nothing_is_watched_without_the_kernels_counters(watching: dict[str, float]) -> None:
    watching["share"] = -1.0
    cores.watch(2)
    assert cores.Watch.latest is None


def test_the_kernel_counts_the_seconds_without_a_core() -> None:
    found = cores.waited(threading.get_native_id())
    assert found is not None
    assert found >= 0
    assert cores.waited(2**22) is None


def test_a_team_is_empty_without_openmp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__file__", "/nowhere/torch/__init__.py")
    assert cores.team(2) == ()
