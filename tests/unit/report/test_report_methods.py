"""Methods side by side: curves over runs, against iterations and against time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rayddl.report.charts import Band, Dots, Line
from rayddl.report.drawing import draw
from rayddl.report.page import render
from rayddl.stages.match import methods
from rayddl.stages.match.finished import Match


def _by(make: Any, method: str, name: str, accuracies: list[float], seconds: float) -> Match:
    """A match judged at iterations 0, 10, 20 …, of ``seconds`` an iteration."""
    match: Match = make.match(name, iterations=10 * len(accuracies))
    count = len(match.metrics["seconds"])
    return replace(
        match,
        stage=replace(match.stage, summary={**match.stage.summary, "method": method}),
        metrics={**match.metrics, "seconds": np.r_[np.full(count - 1, seconds), 1e6]},
        accuracy={
            "iteration": np.arange(len(accuracies)) * 10,
            "seed": np.zeros(len(accuracies), np.int64),
            "accuracy": np.array(accuracies),
        },
    )


def _both(make: Any) -> list[Match]:
    return [
        _by(make, "MTT", "mtt-1", [0.2, 0.4, 0.5], 2.0),
        _by(make, "MCT", "mct-1", [0.2, 0.5, 0.6], 3.0),
        _by(make, "MTT", "mtt-2", [0.4, 0.6, 0.7], 4.0),
    ]


def test_runs_of_a_method_are_averaged(make: Any) -> None:
    """Each method has its own line, dots for its runs, and a band where it has several."""
    found = methods.section(_both(make))

    assert found is not None
    lines = {m.name: m for m in found.charts[0].marks if isinstance(m, Line)}
    assert list(lines) == ["MTT", "MCT"]
    assert lines["MTT"].x == [0, 10, 20]
    assert lines["MTT"].y == pytest.approx([0.3, 0.5, 0.6])
    assert lines["MCT"].y == pytest.approx([0.2, 0.5, 0.6])
    (band,) = [m for m in found.charts[0].marks if isinstance(m, Band)]
    assert band.tint == lines["MTT"].tint != lines["MCT"].tint
    assert band.low == pytest.approx([0.2, 0.4, 0.5])
    assert sum(len(m.x) for m in found.charts[0].marks if isinstance(m, Dots)) == 9
    assert found.charts[0].summary == "MTT ends at 60.0\u00a0%; MCT ends at 60.0\u00a0%."


def test_time_is_the_median_iterations(make: Any) -> None:
    """One very slow iteration does not shift the curve."""
    found = methods.section(_both(make))

    assert found is not None
    lines = {m.name: m for m in found.charts[1].marks if isinstance(m, Line)}
    assert lines["MTT"].x == pytest.approx([0, 30, 60])
    assert lines["MCT"].x == pytest.approx([0, 30, 60])


def test_a_run_that_stopped_early_counts_as_far_as_it_got(make: Any) -> None:
    """After the end of one run, the curve is the mean of the others."""
    runs = [*_both(make), _by(make, "MCT", "mct-2", [0.4, 0.7], 3.0)]
    found = methods.section(runs)

    assert found is not None
    lines = {m.name: m for m in found.charts[0].marks if isinstance(m, Line)}
    assert lines["MCT"].y == pytest.approx([0.3, 0.6, 0.6])


def test_a_match_that_goes_on_from_another_is_one_run_with_it(make: Any) -> None:
    """Its iterations and seconds are counted on, and the images at the start are evaluated once."""
    runs = _both(make)[:2]
    fine = _by(make, "MCT", "mct-fine", [0.9, 0.7, 0.8], 5.0)
    fine = replace(fine, stage=replace(fine.stage, config={**fine.stage.config, "start_set": "mct-1"}))
    found = methods.section([*runs, fine])

    assert found is not None
    assert "MTT: 1\u00a0run; MCT: 1\u00a0run" in found.lead
    iterations, seconds = ({m.name: m for m in c.marks if isinstance(m, Line)} for c in found.charts)
    assert iterations["MCT"].x == [0, 10, 20, 40, 50]
    assert iterations["MCT"].y == pytest.approx([0.2, 0.5, 0.6, 0.7, 0.8])
    assert seconds["MCT"].x == pytest.approx([0, 30, 60, 90 + 50, 90 + 100])


def test_a_match_that_starts_from_another_methods_set_is_a_run_of_its_own(make: Any) -> None:
    """Nothing of the other method's work is counted as its own."""
    runs = _both(make)[:2]
    other = _by(make, "MTT", "mtt-9", [0.6, 0.7], 2.0)
    other = replace(other, stage=replace(other.stage, config={**other.stage.config, "start_set": "mct-1"}))
    found = methods.section([*runs, other])

    assert found is not None
    assert "MTT: 2\u00a0runs; MCT: 1\u00a0run" in found.lead


def test_images_per_class_are_told_apart(make: Any) -> None:
    """One method at two sizes has two lines, in addition to another method's."""
    ten = _by(make, "MCT", "ten", [0.3, 0.4], 1.0)
    ten = replace(ten, stage=replace(ten.stage, summary={**ten.stage.summary, "ipc": 10}))
    found = methods.section([*_both(make), ten])

    assert found is not None
    names = [m.name for m in found.charts[0].marks if isinstance(m, Line)]
    assert names == ["MTT, 1 per class", "MCT, 1 per class", "MCT, 10 per class"]


def test_one_method_needs_no_comparison(make: Any) -> None:
    """Nor do matches that were not judged on the way."""
    mine = [m for m in _both(make) if m.stage.summary["method"] == "MTT"]
    assert methods.section(mine) is None
    assert methods.section([make.match("a", every=None), make.match("b", every=None)]) is None


def test_the_page_names_every_line_once(make: Any) -> None:
    """Both charts are on the page, and ends that meet keep their labels apart."""
    matches = _both(make)
    assert "Method against method" in render(make.run(matches=tuple(matches)))
    found = methods.section(matches)
    assert found is not None
    drawing = str(draw(found.charts[0]))
    assert drawing.count(">MTT<") == drawing.count(">MCT<") == 1
    heights = {line.split(' y="')[1].split('"')[0] for line in drawing.split("<text") if "direct" in line}
    assert len(heights) == 2


def _with(match: Match, **config: Any) -> Match:
    return replace(match, stage=replace(match.stage, config={**match.stage.config, **config}))


def test_runs_of_other_settings_are_not_averaged(make: Any) -> None:
    """Each has its own line, named by what differs; what does not change a step makes no difference."""
    runs = [
        _by(make, "MCT", "mct", [0.1, 0.2], 1.0),
        _with(_by(make, "MTT", "a", [0.2, 0.4], 1.0), lr_image=100.0, resources=1),
        _with(_by(make, "MTT", "b", [0.4, 0.8], 1.0), lr_image=1000.0, resources=1),
        _with(_by(make, "MTT", "c", [0.4, 0.6], 1.0), lr_image=100.0, resources=2),
    ]

    found = methods.section(runs)

    assert found is not None
    lines = {m.name: m.y for m in found.charts[0].marks if isinstance(m, Line)}
    assert lines["MTT (lr_image 100.0)"] == pytest.approx([0.3, 0.5])
    assert lines["MTT (lr_image 1000.0)"] == pytest.approx([0.4, 0.8])
    assert list(lines) == ["MCT", "MTT (lr_image 100.0)", "MTT (lr_image 1000.0)"]


def test_runs_that_differ_in_an_earlier_match_are_not_averaged(make: Any) -> None:
    """The same last settings after other first ones are another run."""
    runs = [_by(make, "MCT", "mct", [0.1, 0.2], 1.0)]
    for name, rate in (("a", 1.0), ("b", 9.0)):
        runs.append(_with(_by(make, "MTT", name, [0.2, 0.4], 1.0), lr_image=rate))
        runs.append(_with(_by(make, "MTT", f"{name}-fine", [0.4, 0.5], 1.0), start_set=name, lr_image=2.0))

    found = methods.section(runs)

    assert found is not None
    names = [m.name for m in found.charts[0].marks if isinstance(m, Line)]
    assert names == ["MCT", "MTT, from a", "MTT, from b"]
