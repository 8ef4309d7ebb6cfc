"""The section about a search: all trials, the importance of settings, and the best trial on fresh seeds."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from rayddl.report import page
from rayddl.report.charts import Chart, Dots
from rayddl.report.drawing import draw
from rayddl.report.parallel import Axis, Parallel
from rayddl.report.run import Chapter, Run
from rayddl.report.values import Stage
from rayddl.stages.tune import report as tune
from rayddl.stages.tune.report import Tune

SUMMARY: dict[str, Any] = {
    "of": "distill", "metric": "accuracy", "mode": "max", "searcher": "optuna", "scheduler": "asha",
    "space": {
        "lr": {"loguniform": [0.01, 0.1]}, "labels": {"choice": ["hard", "learned"]}, "deep.k": {"randint": [1, 5]},
    },
    "trials": 5, "ended": {"whole": 2, "stopped": 2, "diverged": 1}, "trial_seconds": 50.0, "seconds": 30.0,
    "best": {"trial": 3, "value": 0.8, "held_out": [0.79, 0.81]},
    "own": {"trial": 0, "value": 0.6, "held_out": [0.6, 0.62]}, "margin": 0.19,
    "importance": {"method": "fANOVA", "values": {"lr": 0.7, "labels": 0.2, "deep.k": 0.1}},
}  # fmt: skip


def searched(**changes: Any) -> Tune:
    """Five trials: two to the end, two stopped, one that diverged."""
    trials = {
        "trial": np.arange(5), "ended": np.array(["whole", "stopped", "diverged", "whole", "stopped"]),
        "reason": np.array(["", "", "<b>loss</b> is nan", "", ""]),
        "value": np.array([0.6, 0.5, 0.0, 0.8, 0.55]), "iteration": np.array([40, 10, 20, 40, 10]),
        "seconds": np.array([20.0, 5.0, 10.0, 20.0, 5.0]),
    }  # fmt: skip
    progress = {
        "trial": np.array([0, 0, 1, 2, 2, 3, 3, 4]), "iteration": np.array([10, 40, 10, 10, 20, 10, 40, 10]),
        "metric": np.array([0.5, 0.6, 0.5, 0.4, 0.0, 0.7, 0.8, 0.55]), "seconds": np.ones(8),
    }  # fmt: skip
    settings = {
        "lr": np.array([0.01, 0.02, 0.09, 0.05, 0.1]),
        "labels": np.array(["hard", "learned", "hard", "learned", "hard"]),
        "deep.k": np.array([np.nan, 2.0, 3.0, 4.0, np.nan]),
    }
    stage = Stage("search", "tune", "search-abc", {}, {**SUMMARY, **changes})
    return Tune(stage, trials, progress, settings)


def test_the_section_has_every_part() -> None:
    """Facts, the comparison on fresh seeds, importance, a chart per setting, lines, the sortable table."""
    section = tune.section(searched(), True, 1000)

    assert section.title == "Search"
    assert "5\u00a0trials of distill, chosen by optuna and asha over lr, labels, deep.k" in section.lead
    assert "search-abc/best.yaml" in section.lead
    assert "compared on the source's held-out images" in section.lead
    assert [c.title for c in section.charts] == [
        "Accuracy of all trials on their way",
        "lr",
        "labels",
        "deep.k",
    ]
    assert [p.title for p in section.panels] == ["Accuracy on fresh seeds", "Importance of each setting"]
    assert ("+19.0 points", "over the template's own settings, fresh seeds") in [
        (f.value, f.label) for f in section.facts
    ]
    assert ("2", "stopped early") in [(f.value, f.label) for f in section.facts]


def test_the_table_lists_the_best_first_and_what_failed_last() -> None:
    """Each trial is there once with its settings; one that diverged has a reason and no figure."""
    (table,) = tune.section(searched(), True, 1000).tables
    texts = [[cell.text for cell in row] for row in table.rows]

    assert [c.name for c in table.columns] == [
        "Trial", "accuracy", "Ended", "Iterations", "Work", "lr", "labels", "deep.k", "Reason",
    ]  # fmt: skip
    assert [row[0] for row in texts] == ["3", "0", "4", "1", "2"]
    assert texts[0][1:3] == ["80.0\u00a0%", "to the end"]
    assert texts[-1][1:3] + texts[-1][-1:] == ["–", "diverged", "<b>loss</b> is nan"]
    assert texts[1][7] == "–"


def test_a_stand_in_figure_is_drawn_nowhere() -> None:
    """The worst value that a diverged trial is given would only stretch the axes."""
    section = tune.section(searched(), True, 1000)
    heights = [y for chart in section.charts for mark in chart.marks for y in getattr(mark, "y", ())]

    assert min(heights) == 0.4
    assert section.parallel is not None
    assert len(section.parallel.trials) == 4


def test_a_slice_has_a_dot_per_trial_that_had_the_setting() -> None:
    """A conditional setting shows the trials in which it was in play; a list has its names under it."""
    charts = {c.title: c for c in tune.section(searched(), True, 1000).charts}
    dots = {
        name: next(m for m in c.marks if isinstance(m, Dots))
        for name, c in charts.items()
        if name != "labels"
    }

    assert list(dots["deep.k"].x) == [2.0, 4.0]
    assert list(dots["lr"].x) == [0.01, 0.02, 0.05, 0.1]
    assert (charts["lr"].x_log, charts["deep.k"].x_log) == (True, False)
    assert charts["labels"].x_names == ("hard", "learned")
    drawing = str(draw(charts["labels"]))
    assert ">hard</text>" in drawing
    assert ">learned</text>" in drawing


def test_lines_go_through_every_axis() -> None:
    """One line per trial from axis to axis, the best on top; axes have names, ends and texts."""
    axes = (
        Axis("a", [1.0, 1000.0, None]),
        Axis("b", ["x", "y", "x"]),
        Axis("acc", [0.5, 0.6, 0.7], shares=True),
    )
    drawing = str(Parallel("k", "t", "s", axes, ("one", "two", "three"), (2, 1, 0)).draw())
    lines = re.findall(r'<path d="M[^"]*" class="(trial[^"]*)"><title>(\w+)', drawing) or re.findall(
        r'class="(trial[^"]*)"[^>]*><title>(\w+)', drawing
    )

    assert [name for _, name in lines] == ["one", "two", "three"]
    assert lines[-1][0] == "trial best"
    for text in ("a", "b", "acc", "x", "y", "1,000", "50\u00a0%"):
        assert f">{text}</text>" in drawing
    assert "nan" not in drawing


@pytest.mark.parametrize("values", [[3.0, 3.0], [None, None], [0.0, 0.0]])
def test_an_axis_without_extent_is_drawn(values: list[float | None]) -> None:
    """A setting that is the same in all trials, or in play in none, breaks nothing."""
    drawing = str(
        Parallel("k", "t", "s", (Axis("a", values), Axis("b", [1.0, 2.0])), ("one", "two"), (0, 1)).draw()
    )

    assert drawing.count("<title>") >= 2


def test_a_logarithmic_axis_has_powers_under_it() -> None:
    """Ticks of a slice over a logarithmic range are round powers."""
    chart = Chart("k", "t", "s", "lr", (Dots([0.001, 0.1], [0.2, 0.4]),), x_range=(0.0005, 0.2), x_log=True)
    drawing = str(draw(chart))

    assert ">0.001</text>" in drawing
    assert ">0.1</text>" in drawing


def test_the_page_shows_the_search_and_escapes_reasons() -> None:
    """The whole page renders with a search alone; what a trial said is text, not markup."""
    run = Run(
        {"name": "n", "stages": {}},
        {"name": "digits"},
        0,
        {"rayddl": "1"},
        chapters=(Chapter(tune.part, (searched(),)),),
    )
    text = page.render(run)

    assert "<strong>5\u00a0settings</strong> tried; the best reach <strong>80.0\u00a0%</strong>" in text
    assert "&lt;b&gt;loss&lt;/b&gt; is nan" in text
    assert text.count('class="trial') == 4


def test_a_search_for_the_least_loss_shows_plain_figures() -> None:
    """Where less is better the smallest comes first, and figures are no percentages."""
    found = searched(
        metric="loss", mode="min", best={"trial": 1, "value": 0.5, "held_out": []}, own={}, margin=None
    )
    section = tune.section(found, True, 1000)

    assert [row[0].text for row in section.tables[0].rows] == ["1", "4", "0", "3", "2"]
    assert section.tables[0].rows[0][1].text == "0.500"
    assert [p.title for p in section.panels] == ["Importance of each setting"]
