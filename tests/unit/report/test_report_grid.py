"""The chart of a grid search over one or two settings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rayddl.report.charts import Chart, Line, Spots, Whiskers
from rayddl.report.drawing import draw
from rayddl.report.values import Stage
from rayddl.stages.tune import charts
from rayddl.stages.tune import report as tune
from rayddl.stages.tune.report import Tune
from rayddl.stages.tune.store import DEVIATION

PATCHES = {"mipc": {"grid": [20, 40, 80]}, "factor": {"grid": [1, 2]}}


def searched(space: dict[str, Any] = PATCHES, spread: bool = True, **changes: Any) -> Tune:
    """Six trials of every combination, one of which failed."""
    summary = {
        "of": "distill", "metric": "accuracy", "mode": "max", "searcher": "grid", "space": space, "trials": 6,
        "best": {"trial": 5, "value": 0.7, "held_out": []}, **changes,
    }  # fmt: skip
    trials = {
        "trial": np.arange(6), "ended": np.array(["whole"] * 5 + ["failed"])[[0, 1, 5, 2, 3, 4]],
        "reason": np.array([""] * 6), "value": np.array([0.3, 0.2, 0.0, 0.5, 0.6, 0.7]),
        "iteration": np.ones(6), "seconds": np.ones(6),
    }  # fmt: skip
    if spread:
        trials[DEVIATION] = np.array([0.01, 0.02, np.nan, 0.04, 0.05, 0.06])
    progress = {
        "trial": np.arange(6),
        "iteration": np.ones(6),
        "metric": trials["value"],
        "seconds": np.ones(6),
    }
    columns = {
        "mipc": np.array([40.0, 20.0, 80.0, 80.0, 40.0, 20.0]),
        "factor": np.array([1.0, 1.0, 1.0, 2.0, 2.0, 2.0]),
        "labels": np.array(["[0, 3]", "true", "nan", "nan", "nan", "[0]"]),
        "one": np.ones(6),
    }
    stage = Stage("search", "tune", "search-abc", {}, summary)
    return Tune(stage, trials, progress, {name: columns[name] for name in space})


def drawn(found: Tune) -> Chart:
    chart = charts.grid(found, "k")
    assert chart is not None
    return chart


def test_two_settings_are_an_axis_and_lines() -> None:
    """By value; failed trials are left out; whiskers are the deviations of students."""
    chart = drawn(searched())
    lines, spots, whiskers = ([m for m in chart.marks if isinstance(m, k)] for k in (Line, Spots, Whiskers))

    assert chart.title == "Accuracy by mipc and factor"
    assert [(list(line.x), list(line.y), line.name) for line in lines] == [
        ([20.0, 40.0], [0.2, 0.3], "factor 1"),
        ([20.0, 40.0, 80.0], [0.7, 0.6, 0.5], "factor 2"),
    ]
    assert [list(each.x) for each in spots] == [list(line.x) for line in lines]
    assert list(whiskers[1].low) == pytest.approx([0.64, 0.55, 0.46])
    assert list(whiskers[1].high) == pytest.approx([0.76, 0.65, 0.54])
    assert len({line.tint for line in lines}) == 2
    assert any("factor 2, mipc 80: 50.0 ± 4.0" in hint.text.replace("\u00a0", " ") for hint in chart.hints)
    assert [hint.x for hint in chart.hints] == [20.0, 40.0, 80.0]
    assert "factor 2" in str(draw(chart))


def test_lists_have_names_in_their_order() -> None:
    """Values that are no numbers, as the table of trials spells them; a setting of one value is no axis."""
    chart = drawn(searched({"labels": {"choice": [[0], [0, 3], True]}, "one": {"grid": [1]}}, spread=False))
    (line,) = [mark for mark in chart.marks if isinstance(mark, Line)]

    assert chart.x_names == ("[0]", "[0, 3]", "true")
    assert (list(line.x), list(line.y)) == ([0.0, 1.0, 2.0], [0.7, 0.3, 0.2])
    assert not [mark for mark in chart.marks if isinstance(mark, Whiskers)]
    assert not line.name


def test_the_section_shows_it_in_place_of_a_chart_for_each_setting() -> None:
    """Of a grid search; other searches, and those over more settings or lines, keep theirs."""

    def titles(found: Tune) -> list[str]:
        return [chart.title for chart in tune.section(found, True, 1000).charts][1:]

    assert titles(searched()) == ["Accuracy by mipc and factor"]
    assert titles(searched(searcher="random")) == ["mipc", "factor"]
    three = {**PATCHES, "labels": {"grid": ["true", "x"]}}
    assert titles(searched(three)) == ["mipc", "factor", "labels"]
    many = {"mipc": {"grid": list(range(9))}, "factor": {"grid": list(range(6))}}
    assert titles(searched(many)) == ["mipc", "factor"]


def test_another_metric_has_no_deviations() -> None:
    """Those of the table are of the accuracy."""
    chart = drawn(searched(metric="loss", mode="min"))
    assert not [mark for mark in chart.marks if isinstance(mark, Whiskers)]
    assert chart.title.startswith("Loss by")
