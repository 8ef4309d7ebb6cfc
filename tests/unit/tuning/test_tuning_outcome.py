"""What a search leaves: tables, the definition that repeats the winner, words and figures."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import yaml

from rayddl.data.config import SourceConfig
from rayddl.pipeline.definition import load as definitions
from rayddl.stages import parquet as tables
from rayddl.stages.context import Context, Silent
from rayddl.stages.runtime.cluster import Share
from rayddl.stages.runtime.in_process import InProcess
from rayddl.stages.tune import outcome, plan, stage
from rayddl.stages.tune.callbacks import Budget, TrialRows
from rayddl.stages.tune.outcome import Winner
from rayddl.stages.tune.space import Entry
from rayddl.stages.tune.store import Report, Row, TrialStore
from rayddl.stages.tune.trial import Running
from rayddl.storage import Folder

DEFINITION = """
name: mine
seed: 3
source: {name: digits}
stages:
  experts: {kind: experts, count: 2, keep: all}
  distill: {kind: match, experts: experts, trajectory: snapshots, ipc: 1, iterations: 200, syn_steps: 5,
            expert_epochs: 2, max_start_epoch: 3}
  search:
    kind: tune
    of: distill
    max_iterations: 40
    report_every: 15
    space: {lr_image: {loguniform: [1, 100]}, max_start_epoch: {randint: [1, 6]}}
  evaluate: {kind: evaluate, set: search}
  report: {kind: report, of: [search, evaluate]}
"""
SHARE = Share(1, 0, None, 2)


def row(number, value, ended="whole", iteration=40, **more):
    settings = more.pop("settings", {"lr_image": 10.0 + number, "max_start_epoch": 2})
    reports = tuple(Report(i, value, {"accuracy": value}, 1.0) for i in (15, 30, 40) if i <= iteration)
    return Row(number, settings, ended, value, iteration, float(len(reports)), reports, **more)


@pytest.fixture
def defined(tmp_path):
    """The search stage of a definition: its settings, its context and its search."""
    (tmp_path / "mine.yaml").write_text(DEFINITION, encoding="utf-8")
    loaded = definitions.load(str(tmp_path / "mine.yaml"))
    stages = {stage.name: stage for stage in loaded.stages}
    config = stages["search"].config
    templates = {"distill": stages["distill"].config}
    out = Folder(str(tmp_path / "out"))
    context = Context(
        "search", SourceConfig(name="digits"), 3, out, {}, loaded.to_json(), templates=templates
    )
    return SimpleNamespace(config=config, context=context, search=plan.make(config, templates), out=out)


def test_a_search_knows_its_stops_and_its_own_settings(defined):
    """Trials report at multiples and at their length; the template's values stand for its own settings."""
    assert defined.search.stops == (15, 30, 40)
    assert defined.search.own == {"lr_image": 1000.0, "max_start_epoch": 3.0}
    assert (defined.search.samples, defined.search.mode, defined.search.grace) == (20, "max", 1)


@pytest.mark.parametrize(
    ("ended", "best"),
    [
        ((("stopped", 0.9), ("whole", 0.7), ("whole", 0.8)), 2),
        ((("stopped", 0.9), ("diverged", 0.0), ("budget", 0.8)), 0),
        ((("whole", 0.8), ("whole", 0.8)), 0),
        ((("diverged", 0.0), ("failed", 0.0)), None),
    ],
)
def test_the_best_trial_ran_to_its_end_where_any_did(defined, ended, best):
    """A trial that was stopped early wins only where none ran through; the first of equals wins."""
    rows = [row(n, value, how) for n, (how, value) in enumerate(ended)]
    found = outcome.best_of(defined.search, rows)

    assert (None if found is None else found.number) == best


def test_the_tables_hold_every_trial_and_every_report(defined):
    """A column per setting and per metric; what failed is there with its reason."""
    rows = [row(0, 0.5), row(2, 0.0, "diverged", 15, reason="loss is nan"), row(1, 0.7, "stopped", 30)]
    outcome.write_tables(defined.out, defined.search, rows)
    trials = tables.read(defined.out, "trials.parquet")
    progress = tables.read(defined.out, "progress.parquet")

    assert trials["trial"] == [0, 1, 2]
    assert trials["ended"] == ["whole", "stopped", "diverged"]
    assert (trials["diverged"], trials["reason"]) == ([False, False, True], ["", "", "loss is nan"])
    assert trials["value"] == trials["accuracy"] == [0.5, 0.7, 0.0]
    assert trials["setting.lr_image"] == [10.0, 11.0, 12.0]
    assert list(progress) == ["trial", "iteration", "metric", "seconds"]
    assert list(zip(progress["trial"], progress["iteration"], progress["seconds"], strict=True)) == [
        (0, 15, 1.0), (0, 30, 2.0), (0, 40, 3.0), (1, 15, 1.0), (1, 30, 2.0), (2, 15, 1.0),
    ]  # fmt: skip


def test_settings_that_are_no_numbers_are_texts(defined):
    """A list of values with names, numbers or nothing becomes one column of texts."""
    space = {"labels": Entry(choice=("hard", 2, None))}
    search = SimpleNamespace(space=space)
    rows = [row(n, 0.5, settings=s) for n, s in enumerate(({"labels": "hard"}, {"labels": 2}, {}))]
    outcome.write_tables(defined.out, search, rows)

    assert tables.read(defined.out, "trials.parquet")["setting.labels"] == ["hard", "2", None]


def test_best_yaml_is_the_definition_with_the_winner_in_it(defined, tmp_path):
    """It loads, has no search any more, judges the template's set, and keeps whatever else there was."""
    winner = Winner(row(7, 0.8), row(0, 0.5), [0.8, 0.82], [0.5, 0.52])
    outcome.write_best(defined.config, defined.context, defined.search, SHARE, winner, {})
    text = defined.out.read("best.yaml").decode()
    loaded = definitions.load(str(tmp_path / "out" / "best.yaml"))
    stages = {stage.name: stage.config for stage in loaded.stages}

    assert (loaded.name, loaded.seed) == ("mine-best", 3)
    assert list(stages) == ["experts", "distill", "evaluate", "report"]
    assert stages["distill"].lr_image == 17.0
    assert (stages["distill"].iterations, stages["distill"].evaluate_every) == (40, 15)
    assert stages["distill"].resources.num_cpus == 1
    assert (stages["evaluate"].set, stages["report"].of) == ("distill", ("distill", "evaluate"))
    # Long enough for the widest window of the space, as the search's experts were.
    assert stages["experts"].epochs == 8
    assert "trial 7, accuracy 80.0 % after 40 iterations (its own: 50.0 %)" in text
    assert "81.0 ± 1.0 %, the template's own settings 51.0 ± 1.0 %" in text


def test_best_yaml_of_a_shorter_trial_keeps_what_its_length_decided(defined, tmp_path):
    """Where the budget ended the winner, the run is as long as it was, and compiled or not as it was."""
    winner = Winner(row(7, 0.8, "budget", 30), row(0, 0.5), [0.8], [0.5])
    outcome.write_best(defined.config, defined.context, defined.search, SHARE, winner, {"compile": True})
    stages = yaml.safe_load(defined.out.read("best.yaml"))["stages"]

    assert (stages["distill"]["iterations"], stages["distill"]["compile"]) == (30, True)


def test_words_and_table_say_how_it_went(defined):
    """The count of trials stopped early is shown, both settings on fresh seeds, and the margin."""
    search = defined.search
    rows = {n: row(n, 0.5 + n / 10, "stopped" if n % 2 else "whole") for n in range(4)}
    rows[4] = row(4, 0.0, "diverged", reason="loss is nan")
    winner = Winner(rows[2], rows[0], [0.8, 0.9], [0.5, 0.6])
    best, own = outcome.table(search, rows, winner)

    assert outcome.in_words(search, rows) == "5 trials: 2 to the end, 2 stopped early, 1 diverged"
    assert best["settings"] == "best (trial 2)"
    assert best["trials"] == "5, 2 stopped early"
    assert (best["on fresh seeds"], own["on fresh seeds"]) == ("85.0 ± 5.0 %", "55.0 ± 5.0 %")
    assert (best["margin"], own["margin"]) == ("+30.0 points", "")
    assert set(best) == set(own)


@pytest.mark.parametrize(("mix", "iteration"), [(0.5, 18), (0.321, 4)])
def test_a_winner_that_the_template_continues_is_the_longer_run(work, monkeypatch, mix, iteration):
    """Where the template's own trial won before its end and then ran on, the winner's row is that of the output which
    the held-out students judged; where it failed further on, both are of the earlier iteration.
    """
    w = work()
    monkeypatch.setattr(stage.workers, "opened", InProcess().opened)
    settings = {"lr": 0.01, "mix": 0.5, "steps": 3}
    running = Running(w, 0, settings)
    running.step()
    running.step()
    own = replace(running.row("budget"), settings={**settings, "mix": mix})
    winner = stage._Proof(w, SHARE, Silent(), 1).of(own, own)
    trace = TrialStore(w.out).at_work(0).child("made").read_json("trace.json")
    best, other = outcome.table(w.search, {0: own}, winner)

    assert (own.iteration, winner.best.iteration, len(trace)) == (4, iteration, iteration)
    assert (best["settings"], best["trials"]) == ("best (trial 0)", "1, 0 stopped early")
    assert (other["settings"], other["trials"], other["margin"]) == ("template's own", "", "")


def test_a_template_that_diverges_leaves_no_margin(defined):
    """Without a figure of the template's own settings there is nothing to compare with, and no failure."""
    own = row(0, 0.0, "diverged", reason="loss is nan")
    winner = Winner(row(1, 0.8), own, [0.8], [])

    assert winner.margin is None
    assert outcome.table(defined.search, {0: own}, winner)[1]["on fresh seeds"] == "–"


def test_budgets_count_over_all_attempts(defined, search):
    """What earlier attempts took counts: seconds on the clock, and seconds of trials' work."""
    store, now = TrialStore(defined.out), [100.0]
    store.note_seconds(50.0)
    store.end(row(0, 0.5))
    timed = Budget(search(time_budget=60.0), store, lambda: now[0])
    costly = Budget(search(cost_budget=6.0), store, lambda: now[0])

    assert (timed.left, timed.stop_all(), costly.stop_all()) == (10.0, False, False)
    now[0] += 10
    for trial, report in (
        ("a", 1),
        ("a", 1),
        ("b", 1),
        ("a", 1),
        ("a", 2),
    ):  # one began again and repeats a report
        assert not costly.stop_all()
        costly(trial, {"work_seconds": 1.0, "report": report})
    assert (timed.left, timed.stop_all(), costly.stop_all()) == (0.0, True, True)


def test_the_live_line_says_how_far_the_search_is(work):
    """Trials running and ended, the best so far, and what is left of the budget."""
    said = []
    w = work(time_budget=600.0, samples=4)
    store = TrialStore(w.out)
    store.end(row(0, 0.5))
    store.end(row(1, 0.75, "stopped", 15))
    store.end(row(2, 0.0, "diverged", 15, reason="loss is nan"))
    budget = Budget(w.search, store, lambda: 0.0)
    progress = SimpleNamespace(update=lambda done, total, metric: said.append((done, total, metric)))
    TrialRows(w, SimpleNamespace(), budget, progress).show(2)

    assert said == [(3, 4, "2 running, 1 stopped early, 1 diverged, best 50.0 % (trial 0), 10 min left")]


def test_deviations_over_students_are_read_from_the_tables(defined):
    """Where trials had several students; their column is read with those that all searches have."""
    from rayddl.stages.context import Input
    from rayddl.stages.tune import report
    from rayddl.stages.tune.store import DEVIATION
    from rayddl.stages.tune.trial import over_seeds

    assert over_seeds([0.4, 0.8]) == pytest.approx({"accuracy": 0.6, DEVIATION: 0.2})
    assert over_seeds([0.4]) == {"accuracy": 0.4}
    for spread in (over_seeds([0.4]), over_seeds([0.4, 0.8])):
        reports = (Report(40, spread["accuracy"], spread, 1.0),)
        trial = Row(0, {"lr_image": 2.0}, "whole", spread["accuracy"], 40, 1.0, reports)
        outcome.write_tables(defined.out, defined.search, [trial])
        summary = outcome.summary(
            defined.config, defined.context, defined.search, {0: trial}, Winner(trial, trial, [0.6], [])
        )
        found = report.read(Input("search", "tune", defined.out, {}, summary))
        assert summary["metrics"] == sorted(spread)
        assert [float(v) for v in found.trials.get(DEVIATION, ())] == [
            v for k, v in spread.items() if k == DEVIATION
        ]
