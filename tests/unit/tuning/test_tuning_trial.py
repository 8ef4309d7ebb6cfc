"""A trial at work: reports, failures, resuming after a kill."""

from __future__ import annotations

import errno
import re

import pytest
import ray
import torch

from rayddl.s3 import UnreachableError
from rayddl.stages.tune.store import TrialStore
from rayddl.stages.tune.trial import MachineError, Running

SOUND = {"lr": 0.01, "mix": 0.5, "steps": 3}


def through(running: Running) -> list[tuple[int, float]]:
    said = []
    while not running.over:
        report = running.step()
        said.append((report.iteration, report.value))
    return said


def test_a_trial_reports_at_every_stop_and_ends_at_the_last(work):
    """Reports come in order with the metric; the row has them all and says that the trial is whole."""
    w = work()
    running = Running(w, 4, SOUND)
    said = through(running)
    row = running.row("stopped")

    assert [i for i, _ in said] == list(w.search.stops)
    assert (row.number, row.ended, row.iteration, row.value) == (4, "whole", 18, said[-1][1])
    assert [(r.iteration, r.value) for r in row.reports] == said
    assert row.settings == SOUND


def test_a_trial_stopped_early_has_the_reports_it_made(work):
    """The row of a trial that the scheduler ended holds what was said until then."""
    running = Running(work(), 0, SOUND)
    running.step()
    last = running.step()
    row = running.row("stopped")

    assert (row.ended, row.iteration, row.value, len(row.reports)) == ("stopped", 4, last.value, 2)


def test_a_killed_trial_says_its_reports_again_and_goes_on(work):
    """A new process repeats what was said without working, then works on from where the last report was."""
    w = work()
    first = Running(w, 7, SOUND)
    for _ in range(3):
        first.step()
    w.make.calls.clear()
    again = through(Running(w, 7, SOUND))
    untouched = through(Running(w, 8, SOUND))

    assert again == untouched
    assert [until for number, until in w.make.calls if number == 7] == [8, 10, 12, 14, 16, 18]


def test_a_trial_killed_before_its_report_was_written_does_not_count_twice(work):
    """Where the state is ahead of the reports, the trial goes on from the state and says what is missing."""
    w = work()
    running = Running(w, 1, SOUND)
    running.step()
    reports = TrialStore(w.out).at_work(1).read("reports.json")
    running.step()
    TrialStore(w.out).at_work(1).write("reports.json", reports)

    assert through(Running(w, 1, SOUND)) == through(Running(w, 2, SOUND))


@pytest.mark.parametrize(
    ("changed", "ended", "reason"),
    [
        ({"lr": 0.95}, "diverged", "the loss is nan"),
        ({"mix": 0.123}, "diverged", "accuracy is nan at iteration 2"),
        ({"mix": 0.321}, "failed", "ZeroDivisionError: a bug"),
    ],
)
def test_a_trial_that_fails_is_a_row_with_a_reason(work, changed, ended, reason):
    """Numbers out of range and errors end the trial with the worst finite figure, and say why."""
    running = Running(work(), 0, {**SOUND, **changed})
    report = running.step()
    row = running.row("stopped")

    assert running.over
    assert (report.value, row.value, row.ended, row.reason) == (0.0, 0.0, ended, reason)
    assert not row.sound


def test_the_worst_figure_suits_the_mode(work):
    """Where less is better, a trial without a figure gets a large one."""
    running = Running(work(mode="min"), 0, {**SOUND, "lr": 0.95})

    assert running.step().value == 1e6


def test_finishing_runs_to_the_end_and_leaves_what_was_made(work):
    """A trial that was stopped early can be run to its end later, from where it stood."""
    w = work()
    Running(w, 3, SOUND).step()
    w.make.calls.clear()
    row = Running(w, 3, SOUND).finish()

    assert row.ended == "whole"
    assert w.make.calls[0] == (3, 4)
    assert TrialStore(w.out).at_work(3).child("made").read_json("trace.json") == list(range(1, 19))


def test_a_trial_whose_folder_was_deleted_is_made_again(work):
    """The output is that of its row, and not the first images; a trial whose folder is there runs no further."""
    w = work()
    running = Running(w, 3, SOUND)
    for _ in range(4):
        running.step()
    row, folder = running.row("stopped"), TrialStore(w.out).at_work(3)
    w.make.calls.clear()
    Running(w, 3, SOUND).leave(row.iteration)
    assert not w.make.calls
    made = folder.child("made").read_json("trace.json")
    for name in folder.files():
        folder.delete(name)
    Running(w, 3, SOUND).leave(row.iteration)

    assert folder.child("made").read_json("trace.json") == made == list(range(1, row.iteration + 1))


def test_a_full_gpu_is_not_the_settings_fault(work, monkeypatch):
    """Tune starts the trial again, twice, which goes on from where it was; a third time counts."""
    w = work()
    running = Running(w, 0, SOUND)
    first = running.step()

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    def begun_again():
        again = Running(w, 0, SOUND)
        assert again.step() == first
        return again

    with monkeypatch.context() as patched:
        patched.setattr(type(running._opened()), "reach", full)
        for _ in range(2):
            with pytest.raises(torch.OutOfMemoryError):
                begun_again().step()
    assert begun_again().step().iteration == 4
    with monkeypatch.context() as patched:
        patched.setattr(type(running._opened()), "reach", full)
        last = begun_again()
        last.step()
        last.step()
    row = last.row("stopped")
    assert (row.ended, row.value, row.reason) == ("failed", 0.0, "OutOfMemoryError: CUDA out of memory")


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        UnreachableError("the storage did not answer"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        ray.exceptions.ObjectLostError("ff" * 28, None, ""),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_fault_of_the_machine_is_not_the_settings_fault(work, monkeypatch, error):
    """It is raised, for Tune to start the trial in another process, and no row says that the settings failed."""
    w = work()
    running = Running(w, 0, SOUND)
    first = running.step()

    def failing(*_):
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(type(running._opened()), "save", failing)
        with pytest.raises((MachineError, ray.exceptions.RayError), match=re.escape(str(error))):
            running.step()
    again = Running(w, 0, SOUND)
    assert again.step() == first
    assert again.ended is None
    assert again.step().iteration == 4
