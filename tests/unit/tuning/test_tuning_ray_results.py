"""Searches for users of Ray Tune: logger callbacks by name, and the trials as a ``ResultGrid``; Ray is not started."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.logger import LoggerCallback

from rayddl.pipeline import plan as plans
from rayddl.pipeline.artifacts import Artifact
from rayddl.pipeline.definition.load import load
from rayddl.pipeline.results import RunResult
from rayddl.pipeline.runner import execute
from rayddl.stages.settings import without_resources
from rayddl.stages.tune import loggers, result_grid
from rayddl.stages.tune.actor import NUMBER, result_of
from rayddl.stages.tune.callbacks import Loggers
from rayddl.stages.tune.searcher import NumberedSearcher
from rayddl.stages.tune.settings import TuneConfig
from rayddl.stages.tune.store import Row, TrialStore
from rayddl.stages.tune.trial import Running, Work
from rayddl.storage import Folder
from tests.raising import raises

SOUND = {"lr": 0.02, "mix": 0.6, "steps": 10}
SEARCH = {"kind": "tune", "of": "distill", "space": {"lr_image": {"uniform": [1, 2]}}}


def definition(**search: Any) -> dict[str, Any]:
    return {
        "name": "test", "source": {"name": "digits"},
        "stages": {
            "experts": {"kind": "experts", "count": 2},
            "distill": {
                "kind": "match", "experts": "experts", "ipc": 1, "syn_steps": 2, "expert_epochs": 1,
                "max_start_epoch": 1,
            },
            "search": {**SEARCH, **search},
        },
    }  # fmt: skip


def test_callbacks_are_given_by_name_with_or_without_options():
    """A list and a mapping without options are the same; neither is part of the fingerprint."""
    listed = TuneConfig.model_validate({**SEARCH, "callbacks": ["csv", "json"]})
    mapped = TuneConfig.model_validate({**SEARCH, "callbacks": {"csv": None, "json": {}}})
    options = TuneConfig.model_validate({**SEARCH, "callbacks": {"mlflow": {"experiment_name": "mine"}}})

    assert listed.all_callbacks == mapped.all_callbacks == {"csv": {}, "json": {}}
    assert options.all_callbacks == {"mlflow": {"experiment_name": "mine"}}
    assert without_resources(options) == without_resources(TuneConfig.model_validate(SEARCH))


@pytest.mark.parametrize("value", [["csv", "mlfow"], {"tensorbord": {}}, {"wandb": {"api_key": "1"}}])
def test_an_unknown_callback_and_a_secret_are_refused(value):
    """The definition is refused at the key, with the nearest known name, or with what replaces the secret."""
    with raises("refused-value", "stages.search.callbacks"):
        load(definition(callbacks=value))


def test_a_callback_that_cannot_be_made_is_refused_before_anything_runs(tmp_path, monkeypatch):
    """A library that is not installed, and options that the class does not have: nothing is started or written."""
    monkeypatch.setattr(loggers, "find_spec", lambda name: None)
    asked = load(definition(callbacks={"mlflow": {}, "csv": {"colour": "red"}}))
    with raises("environment-not-ready") as caught:
        execute(plans.make(asked, str(tmp_path / "runs"), lambda _: "images"))

    assert "pip install mlflow" in str(caught.value)
    assert not (tmp_path / "runs").exists()


class Tuned:
    """Tune's side of a search: trials that begin and report to the callback."""

    def __init__(self, work: Work, made: dict[str, Any]) -> None:
        self.work, self.searcher = work, NumberedSearcher(work.search, TrialStore(work.out))
        self.callback = Loggers(work, self.searcher, made)

    def trial(self, name: str, settings: dict[str, Any]) -> SimpleNamespace:
        config = self.searcher.suggest(name)
        return SimpleNamespace(trial_id=name, config={NUMBER: config[NUMBER], **settings}, last_result={})

    def running(self, trial: SimpleNamespace) -> Running:
        settings = {key: value for key, value in trial.config.items() if key != NUMBER}
        return Running(self.work, trial.config[NUMBER], settings)

    def report(self, trial: SimpleNamespace, running: Running, count: int) -> None:
        for _ in range(count):
            trial.last_result = result_of(self.work.search, running)
            self.callback.on_trial_result(1, [], trial, dict(trial.last_result))


def test_loggers_see_each_report_once_under_the_trials_number(work, tmp_path):
    """A trial whose worker is lost, and one that a second attempt continues, report again from their beginning: the
    files of both have every report once.
    """
    first = Tuned(work(), loggers.made({"csv": {}, "json": {}, "tensorboard": {}}))
    lost, cut = first.trial("a", SOUND), first.trial("b", {**SOUND, "mix": 0.5})
    first.report(lost, first.running(lost), 3)
    first.report(lost, first.running(lost), 9)  # another process, which repeats the first three
    first.callback.on_trial_complete(1, [], lost)
    TrialStore(first.work.out).end(first.running(lost).row("whole"))
    first.report(cut, first.running(cut), 4)
    first.callback.close()
    second = Tuned(first.work, loggers.made({"csv": {}, "json": {}, "tensorboard": {}}))
    again = second.trial("c", {**SOUND, "mix": 0.5})
    second.report(again, second.running(again), 9)
    second.callback.on_experiment_end([])

    assert again.config[NUMBER] == 1
    for number in (0, 1):
        place = tmp_path / "ray_tune" / f"trial-{number:04d}"
        lines = [json.loads(line) for line in (place / "result.json").read_text().splitlines()]
        assert [line["timesteps_total"] for line in lines] == list(first.work.search.stops)
        assert [line["training_iteration"] for line in lines] == list(range(1, 10))
        assert lines[-1]["config"]["mix"] == (0.6, 0.5)[number]
        assert len((place / "progress.csv").read_text().splitlines()) == 10
        assert len(list(place.glob("events.out.tfevents.*"))) == 1


def test_files_on_remote_storage_appear_when_a_trial_ends(work, tmp_path, monkeypatch):
    """Also those of a trial that a budget has cut off, which Tune does not report as complete."""
    monkeypatch.setattr(Folder, "local", property(lambda folder: None))
    tuned = Tuned(work(), loggers.made({"csv": {}}))
    whole, cut = tuned.trial("a", SOUND), tuned.trial("b", SOUND)
    seen = []
    for trial, count in ((whole, 9), (cut, 2)):
        tuned.report(trial, tuned.running(trial), count)
        seen.append((tmp_path / "ray_tune").exists())
    tuned.callback.on_trial_complete(1, [], whole)
    tuned.callback.on_experiment_end([])
    tuned.callback.close()

    lines = [len(file.read_text().splitlines()) for file in sorted(tmp_path.glob("ray_tune/*/progress.csv"))]
    assert seen == [False, False]
    assert lines == [10, 3]


def test_a_logger_that_fails_is_named(work):
    """A server that is not there ends the search with the callback's name; what ended before is kept."""

    class Away(LoggerCallback):
        def log_trial_start(self, trial: Any) -> None:
            raise ConnectionError("no answer")

    tuned = Tuned(work(), {"mlflow": Away()})
    trial = tuned.trial("a", SOUND)
    with raises("logger-failed"):
        tuned.report(trial, tuned.running(trial), 1)


@pytest.fixture
def finished(work: Callable[..., Work]) -> Work:
    """A finished search of three trials, one of them diverged and one stopped early; in two attempts."""
    w = work()
    rows = []
    for number, settings in enumerate((SOUND, {**SOUND, "lr": 0.95}, {**SOUND, "mix": 0.1})):
        running = Running(w, number, settings)
        while not running.over and (number != 2 or running.said < 4):
            running.step()
        rows.append(running.row("stopped"))
        TrialStore(w.out).end(rows[-1])
    result_grid.write(w.out, w.search.metric, rows)
    return w


def test_a_finished_search_is_a_result_grid(finished):
    """Ray's view has every trial with its settings, reports and failure, and the best by the search's metric."""
    found = RunResult(
        SimpleNamespace(),  # type: ignore[arg-type]
        {
            "search": Artifact(finished.out, {"kind": "tune", "summary": {"metric": "accuracy", "mode": "max"}}),
            "report": Artifact(finished.out, {"kind": "report", "summary": {}}),
        },
        {}, "",
    ).result_grids  # fmt: skip
    rows = TrialStore(finished.out).ended()
    grid, best = found["search"], found["search"].get_best_result()
    frame = grid.get_dataframe()

    assert list(found) == ["search"]
    assert [r.config for r in grid] == [rows[n].settings for n in range(3)]
    assert best.config == SOUND
    assert best.metrics["accuracy"] == rows[0].value
    assert list(best.metrics_dataframe["accuracy"]) == [report.value for report in rows[0].reports]
    assert list(best.metrics_dataframe["timesteps_total"]) == list(finished.search.stops)
    assert grid.errors == ["the loss is nan"]
    assert (grid.num_errors, grid.num_terminated, len(grid[2].metrics_dataframe)) == (1, 2, 4)
    assert list(frame["config/mix"]) == [0.6, 0.6, 0.1]
    assert best.path == str(finished.out.child("ray_tune/trial-0000"))


def test_a_failed_trial_is_never_ray_s_best(finished):
    """Its last report is the worst value, whatever it reported before; a trial without a report has none."""
    TrialStore(finished.out).end(Row(3, {**SOUND, "mix": 0.7}, "failed", 0.0, 0, 0.0, (), "a bug"))
    grid = result_grid.opened(finished.out, {"metric": "accuracy", "mode": "max"})

    assert grid[1].metrics["accuracy"] == finished.search.worst
    assert grid[3].metrics == {"trial_id": grid[3].metrics["trial_id"]}
    assert grid.get_best_result(scope="all").config == SOUND
    assert all(math.isfinite(value) for value in grid[0].metrics_dataframe["time_total_s"])
