"""Ray Tune with trials of a known function: resumed, stopped early, killed."""

from __future__ import annotations

import errno
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Any

import pytest
from ray import cloudpickle

from rayddl.errors import DivergedError
from rayddl.stages.runtime.sizes import Share
from rayddl.stages.tune import callbacks, engine
from rayddl.stages.tune.plan import Search
from rayddl.stages.tune.space import Entry
from rayddl.stages.tune.store import Row, TrialStore
from rayddl.stages.tune.trial import Running, Work
from rayddl.storage import Folder
from tests.raising import raises

pytestmark = pytest.mark.ray

# Workers cannot import a test's module: its classes travel with the trials.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

SHARE = Share(1, 0, None, 2)


@dataclass
class Climb:
    """A trial that climbs to its one setting; a setting above 0.9 diverges, one of -1 kills its worker, and one of -2
    finds the disk full.
    """

    task: Any
    at: int = 0

    def reach(self, until: int) -> dict[str, float]:
        time.sleep(0.01)
        x = self.task.settings["x"]
        if x > 0.9:
            raise DivergedError("the loss is nan", code="for-a-test")
        if x == -1 and not self.task.folder.has("killed"):
            import os
            import signal

            self.task.folder.write("killed", b"")
            os.kill(os.getpid(), signal.SIGKILL)
        if x == -2 and not (self.task.folder.local.parent.parent / "room").exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        self.task.folder.write(f"from-{self.at}-to-{until}", b"")
        self.at = until
        return {"accuracy": max(0.0, x) * (1 - 0.5**until)}

    def save(self) -> bytes:
        return str(self.at).encode()

    def load(self, data: bytes) -> None:
        self.at = int(data)

    def leave(self) -> None:
        self.task.folder.child("made").write("it", b"")


class Climbs:
    """Makes them."""

    def __call__(self, task: Any) -> Climb:
        return Climb(task)

    def held_out(self, task: Any, seed: int) -> float:
        return float(task.settings["x"]) - 0.01 * seed

    def pinned(self, settings: Any, iteration: int) -> dict[str, Any]:
        del settings, iteration
        return {}


def searching(out: Any, **changes: Any) -> Work:
    settings = {
        "space": {"x": Entry(uniform=(0.0, 1.0))}, "base": {"x": 0.4}.get, "metric": "accuracy", "mode": "max",
        "samples": 8, "stops": (1, 2, 3, 4), "searcher": "random", "scheduler": "none", "grace": 1,
        "reduction": 2, "seed": 1,
    }  # fmt: skip
    return Work(Search(**{**settings, **changes}), Climbs(), Folder(str(out)), 1)


def test_a_search_started_again_runs_only_what_is_missing(stages, tmp_path, cut_when, cut, monkeypatch):
    """The driver ends in mid-search: the same call goes on, no trial that had ended runs again.

    A trial that diverges is a row with its reason and the worst figure, and the search goes on past it. One
    whose worker is killed goes on from its last report on another. ASHA ends bad trials early. Two trials
    share a device by fractions.
    """
    del stages
    space = {"x": Entry(choice=(0.95, -1, 0.8, 0.7, 0.2, 0.1, 0.15, 0.05, 0.02))}
    work = searching(
        tmp_path, space=space, searcher="grid", samples=10, scheduler="asha", base={"x": 0.9}.get
    )
    store, halves = TrialStore(Folder(str(tmp_path))), Share(0.5, 0, None, 2)
    # Without a pause between two displays the driver ends before a warm worker has done all that is left.
    monkeypatch.setattr(callbacks, "SHOW_SECONDS", 0.0)
    progress = cut_when(lambda: len(store.ended()) >= 3)
    with pytest.raises(cut):
        engine.run(work, halves, progress)
    before = {n: (tmp_path / f"trials/{n:04d}.json").stat().st_mtime_ns for n in store.ended()}
    under_way = store.begun()
    rows = engine.run(work, halves, cut_when(lambda: False))
    after = {n: (tmp_path / f"trials/{n:04d}.json").stat().st_mtime_ns for n in before}

    assert 3 <= len(before) < 10
    assert after == before
    assert sorted(rows) == list(range(10))
    assert all(rows[n].settings == settings for n, settings in under_way.items())
    assert (rows[1].ended, rows[1].value, rows[1].reason) == ("diverged", 0.0, "the loss is nan")
    assert rows[2].settings == {"x": -1}
    assert rows[2].ended in ("whole", "stopped")
    assert sum(row.ended == "stopped" for row in rows.values()) >= 2
    whole = [row for row in rows.values() if row.ended == "whole"]
    assert max(whole, key=lambda row: row.value).settings == {"x": 0.9}
    # In the folder of trial 0, which is kept: every stretch was worked through once.
    assert store.at_work(0).names()[:4] == ["from-0-to-1", "from-1-to-2", "from-2-to-3", "from-3-to-4"]


def test_a_search_in_which_nothing_works_says_why(tmp_path, told):
    """Where every trial diverges there is no winner: an error with the first reasons."""
    work = searching(tmp_path, samples=2)
    for number in range(2):
        TrialStore(work.out).end(Row(number, {"x": 0.95}, "diverged", 0.0, 1, 0.1, (), "the loss is nan"))
    with raises("no-trial-succeeded"):
        engine.run(work, SHARE, told())


def cut_short(out: Any, reports: Mapping[int, int], **changes: Any) -> Work:
    """A search that was killed with its budget used up: the trials that had begun, and how often each had reported."""
    work = searching(out, samples=3, time_budget=60.0, **changes)
    store = TrialStore(work.out)
    for number, count in reports.items():
        store.begin(number, {"x": 0.1 * number})
        running = Running(work, number, {"x": 0.1 * number})
        for _ in range(count):
            running.step()
    store.note_seconds(60.0)
    return work


def test_trials_of_a_killed_search_have_rows_once_the_budget_is_used_up(tmp_path, told):
    """Those that were running count as cut off by the budget, the template's own too if it never reported; the run of
    a number beyond the search's is no trial.
    """
    work = cut_short(tmp_path, {0: 0, 1: 2, 2: 4, 7: 1})
    rows = engine.run(work, SHARE, told())

    assert {n: (row.ended, len(row.reports), row.sound) for n, row in rows.items()} == {
        0: ("budget", 0, False), 1: ("budget", 2, True), 2: ("whole", 4, True),
    }  # fmt: skip
    assert rows == TrialStore(work.out).ended()


@pytest.mark.parametrize("reports", [{}, {0: 0, 1: 0}])
def test_a_budget_used_up_before_any_report_is_named(tmp_path, told, reports):
    """In each attempt, whether trials had begun or not: only a larger budget helps."""
    work = cut_short(tmp_path, reports)
    for _ in range(2):
        with raises("budget-before-any-report"):
            engine.run(work, SHARE, told())


def test_a_budget_that_ends_before_tune_continues_every_trial_loses_none(stages, tmp_path, told, monkeypatch):
    """A killed search that goes on in the last seconds of its budget has a row of each trial that had begun, also of
    those beyond the ones that run at once.
    """
    del stages
    work = cut_short(tmp_path, {0: 1, 1: 2, 2: 3})
    over = chain([False], repeat(True))
    monkeypatch.setattr(callbacks.Budget, "stop_all", lambda self: next(over))
    rows = engine.run(work, SHARE, told())

    assert {n: (row.ended, len(row.reports)) for n, row in rows.items()} == {
        0: ("budget", 1), 1: ("budget", 2), 2: ("budget", 3),
    }  # fmt: skip


def test_a_full_disk_ends_the_search_and_fails_no_trial(stages, tmp_path, cut_when):
    """With room again, the same call goes on with that trial."""
    del stages
    work = searching(tmp_path, space={"x": Entry(choice=(-2, 0.5))}, searcher="grid", samples=3)
    with raises("trial-cut-off"):
        engine.run(work, SHARE, cut_when(lambda: False))
    assert not any(row.ended == "failed" for row in TrialStore(work.out).ended().values())
    (tmp_path / "room").touch()
    rows = engine.run(work, SHARE, cut_when(lambda: False))
    assert [row.ended for row in rows.values()] == ["whole"] * 3


class Unreachable:
    """A logger callback whose server goes away after a trial's first report."""

    def __getattr__(self, call: str) -> Any:
        return lambda *args, **more: None

    def log_trial_result(self, iteration: int, trial: Any, result: Any) -> None:
        if iteration > 1:
            raise ConnectionError("the server is gone")


def test_a_logger_that_fails_ends_the_search_with_its_name(stages, tmp_path, told, monkeypatch):
    """The error is not inside one of Ray Tune's."""
    del stages
    work = searching(tmp_path, samples=2)
    monkeypatch.setattr(engine.loggers, "made", lambda options: {"mine": Unreachable()})
    with raises("logger-failed"):
        engine.run(work, SHARE, told())
