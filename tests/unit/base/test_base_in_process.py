"""The backend within one process: units in order, threads as they were, work shared by locks."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from rayddl import locks
from rayddl.errors import StageError
from rayddl.stages.experts.cache import SharedInProcess
from rayddl.stages.runtime.in_process import InProcess
from rayddl.stages.runtime.sizes import Resources
from rayddl.stages.runtime.streams import StreamSteps
from rayddl.storage import Folder


def test_units_are_done_in_order_and_threads_stay_as_they_were() -> None:
    """A unit may set torch's threads, as a stage's workers do; the caller has its own again."""
    backend, before = InProcess(threads=3), torch.get_num_threads()

    def unit(number: int) -> int:
        torch.set_num_threads(before + 1)
        return number * number

    share = backend.spread(Resources(num_cpus=64), units=9)
    with backend.opened(share, "units") as free:
        found = list(free.each([3, 1, 2], lambda number: (unit, backend.put(number)), str))
        alone = free.one((unit, 5), "five")

    assert (found, alone) == ([(3, 9), (1, 1), (2, 4)], 25)
    assert torch.get_num_threads() == before
    assert (share.threads, share.at_once, share.num_gpus) == (3, 1, 0.0)


def test_what_a_unit_raises_is_raised_as_it_is() -> None:
    """No error of another process stands between: a diverged trial is told from a failed one."""

    def unit() -> None:
        raise StageError("no", code="for-a-test")

    backend = InProcess()
    with backend.opened(backend.spread(Resources(), units=1), "units") as free, pytest.raises(StageError):
        free.one((unit,), "one")


def test_a_report_is_heard_when_it_is_made() -> None:
    """Progress moves while a unit is under way, not only after it."""
    heard: list[tuple[float, str]] = []
    counter = InProcess().counter(lambda: heard.append(counter.read()))
    counter.report("one", 1.0, "first")
    counter.report("two", 2.0, "second")
    counter.report("one", 2.0, "third")

    assert heard == [(1.0, "first"), (3.0, "second"), (4.0, "third")]
    assert counter.done() == 4.0


def test_a_stream_is_cut_and_judged_chunk_after_chunk() -> None:
    """Every row comes back once, in portions of a chunk."""
    steps = StreamSteps("row", b"", lambda b, _: b, lambda _: lambda b: b, lambda b, _: b, chunk=3, judged=1)
    found = InProcess().stream(np.arange(7), steps, lambda have: (), lambda text: None)

    assert [block["row"].tolist() for block in found] == [[0, 1, 2], [3, 4, 5], [6]]


def test_units_in_common_are_done_by_whoever_comes_first(tmp_path: Path) -> None:
    """Two workers of the same units: neither waits for the other's while there is one that nobody is at."""
    folder, begun = Folder(str(tmp_path)), threading.Barrier(2, timeout=30)
    done: dict[str, list[int]] = {"a": [], "b": []}

    def worker(name: str) -> None:
        def unit(number: int) -> None:
            if folder.has(f"{number}"):
                return
            if not done[name]:
                done[name].append(number)
                begun.wait()
            else:
                done[name].append(number)
            folder.write(f"{number}", b"")

        backend = SharedInProcess(1, folder=folder)
        with backend.opened(backend.spread(Resources(), units=4), "units") as free:
            found = [n for n, _ in free.each(range(4), lambda n: (unit, n), lambda n: f"unit {n}")]
        assert sorted(found) == [0, 1, 2, 3]

    others = threading.Thread(target=worker, args=("b",))
    others.start()
    worker("a")
    others.join()

    assert sorted(done["a"] + done["b"]) == [0, 1, 2, 3]
    assert done["a"][0] != done["b"][0]


def test_units_in_common_are_divided_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On object storage, too: few are done twice, where all would be by two that go through them in one order."""
    monkeypatch.setattr(locks, "fcntl", None)
    folder, count, done = Folder(str(tmp_path)), 12, []
    both = threading.Barrier(2, timeout=30)

    def worker() -> None:
        def unit(number: int) -> None:
            if not folder.has(f"{number}"):
                done.append(number)
                time.sleep(0.02)
                folder.write(f"{number}", b"")

        backend = SharedInProcess(1, folder=folder)
        both.wait()
        with backend.opened(backend.spread(Resources(), units=count), "units") as free:
            found = [n for n, _ in free.each(range(count), lambda n: (unit, n), lambda n: f"unit {n}")]
        assert sorted(found) == list(range(count))

    others = threading.Thread(target=worker)
    others.start()
    worker()
    others.join()

    assert set(done) == set(range(count))
    assert len(done) < 2 * count - 3
