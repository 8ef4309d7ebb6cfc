"""Choosing settings and ending trials, with Ray Tune's own schedulers, in this process."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rayddl.stages.tune import importance, suggest
from rayddl.stages.tune.actor import NUMBER, result_of
from rayddl.stages.tune.engine import scheduler_of
from rayddl.stages.tune.outcome import best_of
from rayddl.stages.tune.plan import Search
from rayddl.stages.tune.searcher import NumberedSearcher
from rayddl.stages.tune.space import Entry
from rayddl.stages.tune.store import Row, TrialStore
from rayddl.stages.tune.trial import Running, Work
from rayddl.storage import Folder

NEAR = 0.8
"""The known function is at most 1; less than a hundredth of its space lies above this."""
SEEDS = 5
AT_ONCE = 2


def reports(work: Work) -> Iterator[tuple[Any, Row | None]]:
    """Every report of a search, with the row of a trial that has ended with it: what Ray Tune's loop does,
    several trials at a time and a report of each in turn, without its processes.
    """
    store = TrialStore(work.out)
    searcher, scheduler = (
        NumberedSearcher(work.search, store),
        scheduler_of(work.search, store.ended().values()),
    )
    running: list[tuple[Any, Running]] = []
    names = iter(range(10**6))
    while True:
        while len(running) < AT_ONCE and isinstance(
            config := searcher.suggest(str(name := next(names))), dict
        ):
            settings = {key: value for key, value in config.items() if key != NUMBER}
            trial = SimpleNamespace(trial_id=str(name), config=config)
            scheduler.on_trial_add(None, trial)
            running.append((trial, Running(work, config[NUMBER], settings)))
        if not running:
            return
        trial, at_work = running.pop(0)
        result = result_of(work.search, at_work)
        if result["done"] or scheduler.on_trial_result(None, trial, result) == "STOP":
            scheduler.on_trial_complete(None, trial, result)
            row = at_work.row("stopped")
            store.end(row)
            searcher.learn(row)
            yield result, row
        else:
            running.append((trial, at_work))
            yield result, None


def budget(make: Callable[..., Search], known: Any, folder: Path, **settings: Any) -> int:
    """Reports until a trial has ended, at its full length, in the neighbourhood of the optimum."""
    work = Work(make(samples=400, **settings), known(), Folder(str(folder)), 1)
    for count, (_, row) in enumerate(reports(work), start=1):
        if row is not None and row.ended == "whole" and row.value >= NEAR:
            return count
    return count


def test_optuna_with_asha_needs_less_than_half_of_random_searchs_budget(search, known, tmp_path, monkeypatch):
    """On a known function, averaged over seeds: the optimum's neighbourhood is reached in less than half
    of the reports that random search with whole trials needs.
    """
    # Thousands of small files need not outlive a power cut here.
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    spent = {"random": 0, "optuna": 0}
    for seed in range(SEEDS):
        plain = {"searcher": "random", "scheduler": "none", "seed": seed}
        spent["random"] += budget(search, known, tmp_path / f"random{seed}", **plain)
        clever = {"searcher": "optuna", "scheduler": "asha", "seed": seed}
        spent["optuna"] += budget(search, known, tmp_path / f"optuna{seed}", **clever)

    assert spent["optuna"] < 0.5 * spent["random"], spent


def test_the_first_trial_has_the_templates_own_settings(work):
    """Trial 0 is what the definition says; the others differ from it, and from each other."""
    w = work()
    searcher = NumberedSearcher(w.search, TrialStore(w.out))
    found = [searcher.suggest(str(i)) for i in range(12)]

    assert found[0] == {NUMBER: 0, "lr": 0.001, "mix": 0.2, "steps": 4}
    assert len({str(config) for config in found}) == 12
    assert searcher.suggest("12") == "FINISHED"


def test_no_more_trials_run_than_there_is_room_for(work):
    """While as many trials run as the search may have, none is proposed until one ends or there is more room."""
    w, most = work(), [2]
    searcher = NumberedSearcher(w.search, TrialStore(w.out), lambda: most[0])
    found = [searcher.suggest(str(i)) for i in range(3)]
    assert [config and config[NUMBER] for config in found] == [0, 1, None]
    searcher.on_trial_complete("0")
    assert searcher.suggest("3")[NUMBER] == 2
    assert searcher.suggest("4") is None
    most[0] = 3
    assert searcher.suggest("4")[NUMBER] == 3


@pytest.mark.parametrize("searcher", ["random", "optuna"])
def test_a_search_started_again_runs_only_what_is_missing(work, searcher):
    """Ended trials are not handed out again, begun ones keep number and settings, new ones follow."""
    w = work(searcher=searcher, samples=8)
    store = TrialStore(w.out)
    first = NumberedSearcher(w.search, store)
    given = [first.suggest(str(i)) for i in range(5)]
    for config in (given[0], given[1], given[3]):
        settings = {k: v for k, v in config.items() if k != NUMBER}
        row = Running(w, config[NUMBER], settings).finish()
        store.end(row)
        first.learn(row)
    second = NumberedSearcher(w.search, store)
    again = [second.suggest(str(i)) for i in range(6)]

    assert second.missing == 5
    assert again[:2] == [given[2], given[4]]
    assert [config[NUMBER] for config in again[2:5]] == [5, 6, 7]
    assert again[5] == "FINISHED"


def test_a_resumed_search_proposes_other_random_settings(work):
    """Optuna's random start does not repeat itself in the next attempt; a search from its first trial on has the
    proposals that it always had.
    """
    w = work(searcher="optuna")
    first, *given = _suggested(w, 4)
    again = _suggested(w, 7)

    assert given[0] == {NUMBER: 1, "lr": 0.0003878, "mix": 0.01867, "steps": 7}
    assert again[:4] == [first, *given]
    assert [config[NUMBER] for config in again[4:]] == [4, 5, 6]
    assert not {config["lr"] for config in given} & {config["lr"] for config in again[4:]}


def _suggested(work: Work, count: int) -> list[Any]:
    """The first trials of an attempt of the search."""
    searcher = NumberedSearcher(work.search, TrialStore(work.out))
    return [searcher.suggest(str(i)) for i in range(count)]


def test_what_optuna_was_told_before_counts_afterwards(search):
    """A new sampler that is told the old trials looks where the good ones were, as the old one would."""
    whole = search(samples=60)
    sampler = suggest.Parzen(whole)
    draws = random.Random(0)
    for number in range(40):
        settings = {key: entry.at(draws.random()) for key, entry in whole.space.items()}
        sampler.tell(number, settings, 1.0 if settings["mix"] > 0.8 else 0.0)
    found = [sampler.ask(40 + i)["mix"] for i in range(10)]

    assert sum(value > 0.7 for value in found) >= 7


def test_settings_outside_the_space_are_not_told(search):
    """The template's own settings may lie outside the ranges: then optuna is not told of them."""
    assert suggest.as_parameters(search().space, {"lr": 5.0, "mix": 0.5, "steps": 3}) is None
    suggest.Parzen(search()).tell(0, {"lr": 5.0, "mix": 0.5, "steps": 3}, 0.3)


@pytest.mark.parametrize(
    "entry",
    [
        Entry(uniform=(0.0, 1.0)), Entry(loguniform=(1e-3, 1.0)), Entry(randint=(2, 5)),
        Entry(quniform=(0.0, 1.0, 0.25)), Entry(choice=("a", [1, 2], None)), Entry(grid=(True, False)),
    ],
)  # fmt: skip
def test_optuna_gives_values_of_every_form(search, entry):
    """What optuna suggests is a value of the entry, and can be told back to it."""
    whole = search(space={"x": entry}, base=lambda _: None)
    sampler = suggest.Parzen(whole)
    found = [sampler.ask(n)["x"] for n in range(30)]
    for number, value in enumerate(found):
        assert entry.place(value) is not None
        sampler.tell(number, {"x": value}, 0.5)
    again = suggest.Parzen(whole)
    again.tell(0, {"x": found[0]}, 0.5)

    assert entry.ends is not None or len({str(v) for v in found}) == len(entry.values or ())


def test_asha_ends_most_trials_early_and_the_best_run_through(work):
    """Of sixteen trials most end before their length, and what wins has been run to its end."""
    w = work(scheduler="asha", samples=16)
    rows = [row for _, row in reports(w) if row is not None]
    best = best_of(w.search, rows)

    assert len(rows) == 16
    assert sum(row.ended == "stopped" for row in rows) >= 6
    assert best is not None
    assert best.ended == "whole"
    assert best.value == max(row.value for row in rows)


def test_asha_started_again_stands_where_it_stood(work):
    """Told the rows of an earlier attempt, its rungs hold the same figures."""
    w = work(scheduler="asha", samples=9)
    rows = [row for _, row in reports(w) if row is not None]
    fresh = scheduler_of(w.search, rows)
    recorded = {m: sorted(r.values()) for m, r in fresh._brackets[0]._rungs}

    for milestone, values in recorded.items():
        assert values == sorted(r.reports[milestone - 1].value for r in rows if len(r.reports) >= milestone)


def test_a_trial_that_diverges_does_not_end_the_search(work):
    """It is told as the worst there is, and the search goes on to its last trial."""
    space = {"lr": Entry(choice=(0.95, 0.02)), "mix": Entry(uniform=(0.0, 1.0)), "steps": Entry(choice=(3,))}
    w = work(space=space, searcher="optuna", samples=10)
    rows = [row for _, row in reports(w) if row is not None]

    assert {row.ended for row in rows} == {"whole", "diverged"}
    assert all(row.value == 0.0 and "nan" in row.reason for row in rows if row.ended == "diverged")


def test_importance_finds_the_setting_that_matters(search):
    """Where one setting decides, nearly all of the variance is put down to it."""
    draws = random.Random(1)
    rows = []
    for number in range(30):
        settings = {key: entry.at(draws.random()) for key, entry in search().space.items()}
        rows.append(Row(number, settings, "whole", settings["mix"], 18, 1.0, (None,)))  # type: ignore[arg-type]
    found = importance.importance(search(), rows)

    assert found["method"] == "fANOVA"
    assert sum(found["values"].values()) == pytest.approx(1)
    assert max(found["values"], key=found["values"].get) == "mix"
    assert found["values"]["mix"] > 0.8


def test_importance_of_few_trials_is_not_made_up(search):
    """Below eight trials there is a sentence in the place of figures."""
    found = importance.importance(search(), [])

    assert found == {"method": "too few trials: 0 of 8", "values": {}}
