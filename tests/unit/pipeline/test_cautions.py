"""Warnings where a result will disappoint: in a plan, at the end of a stage, in the record; errors with ``strict``."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from rayddl.data.config import SourceConfig
from rayddl.pipeline import api, cautions
from rayddl.pipeline.display.base import Closing, Hidden
from rayddl.pipeline.plan import Plan
from rayddl.pipeline.runner import _Run, execute
from rayddl.report.page import render, sections
from rayddl.report.run import Run
from rayddl.stages import kinds
from rayddl.stages.cautions import few_steps
from rayddl.stages.context import Input
from rayddl.stages.kinds import KINDS, Kind
from rayddl.stages.match import report as match_report
from rayddl.stages.report import stage as page
from rayddl.storage import Folder
from tests.raising import raises


def _plan(photos: Path, **experts: Any) -> Plan:
    match = {
        "kind": "match",
        "experts": "experts",
        "ipc": 1,
        "syn_steps": 2,
        "expert_epochs": 2,
        "max_start_epoch": 2,
    }
    stages = {
        "experts": {"kind": "experts", **experts},
        "teacher": {"kind": "teacher", **experts},
        "distill": match,
        "evaluate": {"kind": "evaluate", "set": "distill"},
    }
    source = {"name": "imagefolder", "root": str(photos), "holdout": 0.2}
    return api.plan({"name": "d", "source": source, "stages": stages}, out=str(photos.parent / "runs"))


@pytest.mark.parametrize(
    ("kind", "given", "used", "warned"),
    [
        ("match", {"lr_label": 2}, {"labels": "learned"}, "lr_label: no effect without labels: learned"),
        (
            "match",
            {"continuous": False, "trajectory": "snapshots"},
            {"trajectory": "convex"},
            "continuous: no effect without trajectory: convex",
        ),
        (
            "match",
            {"evaluate_epochs": 5, "evaluate_seeds": 2},
            {"evaluate_every": 9},
            "evaluate_epochs, evaluate_seeds: no effect without evaluate_every",
        ),
        ("experts", {"flat_alpha": 1}, {"flat_rho": 0.01}, "flat_alpha: no effect without flat_rho"),
        (
            "teacher",
            {"weights": "a.pt", "classes": ["x"], "epochs": 9, "lr": 1},
            {"weights": None, "classes": None},
            "epochs, lr, batch: no effect on weights that are trained already",
        ),
    ],
)
def test_a_plan_warns_of_settings_without_effect(
    photos: Path, kind: str, given: dict[str, Any], used: dict[str, Any], warned: str
) -> None:
    """Settings that only others make take effect, unless these are given, too."""
    needed = {"match": {"experts": "experts", "ipc": 1}}.get(kind, {"batch": 4})
    stages = {"experts": KINDS["experts"].config.model_validate({"kind": "experts", "batch": 4})}
    source = SourceConfig(name="imagefolder", root=str(photos), holdout=0.2)
    outlook = kinds.outlook(source, timed=False)

    def found(changes: dict[str, Any]) -> tuple[str, ...]:
        config = KINDS[kind].config.model_validate({"kind": kind, **needed, **changes})
        return KINDS[kind].cautions_before(config, stages, outlook)

    assert warned in found(given)
    assert warned not in found({**given, **used})
    # A page has all settings of a manifest.
    recorded = KINDS[kind].config.model_validate({"kind": kind, **needed})
    again = type(recorded).model_validate(recorded.model_dump(mode="json"))
    assert not any("no effect" in text for text in KINDS[kind].cautions_before(again, stages, outlook))


def test_a_plan_warns_of_settings_that_will_not_train(photos: Path) -> None:
    """Two steps an epoch, short windows, few held-out images; each with what to change."""
    expected = api.estimate(_plan(photos, batch=256))
    found = expected.warnings
    assert "is 1 step, too few" in found["experts"][0]
    assert "set batch to 4" in found["experts"][0]
    assert found["teacher"] == found["experts"]
    assert "2 steps of an expert" in found["distill"][0]
    assert found["evaluate"][0].startswith("12 held-out images")
    assert "28 points" in found["evaluate"][0]
    assert "batch" in expected.to_json(_plan(photos, batch=256))["stages"][0]["warnings"][0]
    with raises("strict"):
        cautions.refuse_before(found)


def test_settings_that_train_have_no_warning(photos: Path) -> None:
    """Only the held-out images are too few."""
    assert set(api.estimate(_plan(photos, batch=4)).warnings) == {"evaluate"}
    cautions.refuse_before({})


EVALUATED = {
    "rows": [{"data": "distilled", "net": "n", "mean": 0.5}, {"data": "random", "net": "n", "mean": 0.6}]
}


def by_own_labels(mean: float) -> dict[str, Any]:
    """A set above random images by an observer's labels, and one of ``mean`` against 40 % by its own."""
    means = {"distilled": 0.7, "random": 0.6, "distilled-own": mean, "random-own": 0.4}
    return {"rows": [{"data": k, "net": "n", "mean": v} for k, v in means.items()], "tested": 1000}


@pytest.mark.parametrize(
    ("kind", "summary", "says"),
    [
        ("experts", {"test_accuracy": {"mean": 0.25}, "classes": list("abcde")}, "guessing reaches 20.0 %"),
        ("experts", {"test_accuracy": {"mean": 0.45}, "classes": list("abcde")}, None),
        ("experts", {"test_accuracy": {"mean": 0.02}, "classes": list(range(100))}, None),
        ("teacher", {"accuracy": 0.55, "classes": ["a", "b"]}, "guessing reaches 50.0 %"),
        ("teacher", {"accuracy": 0.65, "classes": ["a", "b"]}, None),
        ("match", {"loss_first": 1.2, "loss_last": 8.7, "iterations": 300}, "ended at 8.70"),
        ("match", {"loss_first": 0.9, "loss_last": 0.9, "iterations": 300}, "did not fall"),
        ("match", {"loss_first": 0.9, "loss_last": 0.9, "iterations": 5}, None),
        ("match", {"loss_first": 0.9, "loss_last": 0.6, "iterations": 300}, None),
        (
            "match",
            {"retries": 2, "lr_image": 500.0, "lr_lr": 1e-5},
            "diverged 2 times and continued from the last good state with 0.01 of its rates; set lr_image: 5 "
            "(500 here) and lr_lr: 1e-07 (1e-05 here)",
        ),
        (
            "match",
            {"retries": 1, "loss_first": 0.9, "loss_last": 0.6, "iterations": 300},
            "lr_lr to 0.1 of its value",
        ),
        ("match", {"loss_first": 1.2, "loss_last": 8.7, "lr_image": 500.0}, "raise lr_image (500 here) by"),
        ("match", {"retries": 0, "loss_first": 0.9, "loss_last": 0.6, "iterations": 300}, None),
        ("evaluate", EVALUATED, "worse than a random choice"),
        ("evaluate", by_own_labels(0.3), "without an observer, the set is worse than a random choice"),
        ("evaluate", by_own_labels(0.39), None),
        ("evaluate", by_own_labels(0.5), None),
        (
            "evaluate",
            {"rows": [{"data": "random", "net": "n", "mean": 0.1, "accuracies": [0.1] * 3, "diverged": 2}]},
            "2 of 3\u00a0students of n on random real images diverged",
        ),
        (
            "evaluate",
            {
                "rows": [
                    {"data": "distilled", "net": "n", "mean": 0.1, "accuracies": [0.1], "diverged": 1},
                    {"data": "random", "net": "n", "mean": 0.4, "accuracies": [0.4]},
                ]
            },
            "1 of 1\u00a0student of n on the set diverged",
        ),
        (
            "compare",
            {"unlike": ["epochs each"]},
            "evaluated differently (epochs each differ); judge all by one protocol",
        ),
        ("compare", {"unlike": []}, None),
        ("coreset", {}, None),
    ],
)
def test_results_that_disappoint(kind: str, summary: dict[str, Any], says: str | None) -> None:
    """From the summary of a finished stage; good results have no warning."""
    found = KINDS[kind].cautions_after(summary)
    assert len(found) == (says is not None)
    assert says is None or says in found[0]


@pytest.mark.parametrize(("tested", "warned"), [(60, True), (6000, False)])
def test_a_difference_within_the_noise_of_the_held_out_images(tested: int, warned: bool) -> None:
    """Four points tell nothing on 60 images, and much on 6,000."""
    rows = [{"data": "distilled", "net": "n", "mean": 0.5}, {"data": "random", "net": "n", "mean": 0.46}]
    found = KINDS["evaluate"].cautions_after({"rows": rows, "tested": tested})
    assert [f"noise of {tested} held-out images" in text for text in found] == [True] * warned


def test_the_page_begins_with_the_warnings() -> None:
    """A section of its own, and none without warnings."""
    plain = Run({"name": "d"}, {"name": "digits"}, 0, {})
    warned = Run({"name": "d"}, {"name": "digits"}, 0, {}, warnings=("distill: the loss ended at 8.70",))
    first = next(iter(sections(warned, ())))
    assert (first.key, first.points) == ("warnings", ("distill: the loss ended at 8.70.",))
    assert "<li>distill: the loss ended at 8.70.</li>" in render(warned)
    assert all(section.key != "warnings" for section in sections(plain, ()))


def test_the_page_says_that_a_matching_diverged(tmp_path: Path) -> None:
    """The warning of a stage's result is on the page as at the end of the run."""
    found = Input("distill", "match", Folder(str(tmp_path)), {}, {"retries": 2})
    (line,) = page._warnings([found], None)
    assert line.startswith("distill: the matching diverged 2 times")


@pytest.mark.parametrize(
    ("retries", "says"),
    [(1, "divergence: restored with lower rates"), (2, "divergences: restored with lower rates")],
)
def test_the_section_of_a_matching_counts_divergences(retries: int, says: str) -> None:
    """In the field's words, next to the losses."""
    stage = SimpleNamespace(summary={"retries": retries}, seconds=1.0)
    match: Any = SimpleNamespace(stage=stage, metrics={"seconds": np.array([])})
    assert (str(retries), says) in [(fact.value, fact.label) for fact in match_report._facts(match)]


def test_the_page_has_the_warnings_and_numbers_of_the_plan(photos: Path, tmp_path: Path) -> None:
    """What the terminal says of the settings before a run is also on the page, with the numbers of images."""
    plan = _plan(photos, batch=256)
    folder = Folder(str(tmp_path))
    inputs = [
        Input(
            p.name,
            p.stage.kind.name,
            folder,
            p.stage.config.model_dump(mode="json"),
            {"bad": 2 * (p.name == "evaluate")},
        )
        for p in plan.stages
    ]
    outlook = kinds.outlook(plan.definition.source)
    expected = set(cautions.lines(cautions.before(plan)))

    assert any("held-out images tell accuracies apart" in line for line in expected)
    assert expected <= set(page._warnings(inputs, outlook))
    size = page._size(outlook, inputs)
    assert size == {
        "training images": outlook.source_summary.train,
        "held-out images": 12,
        "unreadable images, skipped": 2,
    }
    shown = list(sections(Run({"name": "d"}, {"name": "digits"}, 0, {}, size=size), ()))[-1]
    assert ("held-out images", "12") in {(a.text, b.text) for table in shown.tables for a, b in table.rows}


class _Cautions:
    """A kind's module ``cautions``: every stage is warned about before and after it runs."""

    @staticmethod
    def before(*_: object) -> list[str]:
        return ["little to expect; set more"]

    @staticmethod
    def after(summary: dict[str, Any]) -> list[str]:
        return [f"{summary['stage']} disappoints; set less"]


class _Notes(Hidden):
    """Keeps what is shown."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.closing: Closing | None = None

    def note(self, text: str) -> None:
        self.notes.append(text)

    def result(self, closing: Closing) -> None:
        self.closing = closing


@pytest.fixture
def warned(monkeypatch: pytest.MonkeyPatch) -> None:
    """All kinds have cautions."""
    monkeypatch.setattr(Kind, "optional", lambda _, name: _Cautions if name == "cautions" else None)


@pytest.mark.usefixtures("warned")
def test_a_run_shows_and_records_its_warnings(lab: Any, three: dict[str, Any]) -> None:
    """At the start, after each stage and with the tables; also those of finished stages."""
    for expected in (["little to expect; set more"], []):
        display = _Notes()
        result = lab.run(three, display=display)
        assert f"warning: second: {expected[0]}" in display.notes if expected else display.notes
        assert "warning: first: first disappoints; set less" in display.notes
        assert display.closing is not None
        assert "second: second disappoints; set less" in display.closing.warnings
        assert result.warnings["first"] == ("first disappoints; set less",)
        record = json.loads((lab.out / "three.run.json").read_text())
        assert record["warnings"]["page"] == [*expected, "page disappoints; set less"]


@pytest.mark.usefixtures("warned")
def test_what_stages_show_only_together_is_said_when_the_last_of_them_ends(
    lab: Any, three: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, at the stage that it concerns, also where that one ended before; with ``strict`` it ends the run."""
    monkeypatch.setattr(_Cautions, "after", lambda summary: [])

    def beside(summary: dict[str, Any], others: list[dict[str, Any]]) -> list[str]:
        both = summary["stage"] == "first" and any(other["stage"] == "second" for other in others)
        return ["worse than second"] if both else []

    monkeypatch.setattr(_Cautions, "beside", staticmethod(beside), raising=False)
    display, two = _Notes(), {**three, "stages": {"first": {"kind": "make"}, "second": {"kind": "make"}}}
    result = lab.run(two, display=display)
    said = "warning: first: worse than second"
    assert display.notes.count(said) == 1
    assert result.warnings["first"] == ("worse than second",)
    record = json.loads((lab.out / "three.run.json").read_text())
    assert record["warnings"]["first"].count("worse than second") == 1
    monkeypatch.setattr(_Cautions, "before", lambda *_: [])
    with raises("strict-result"):
        execute(lab.plan(two), strict=True)


@pytest.mark.usefixtures("warned")
def test_strict_makes_them_errors(lab: Any, three: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing starts; a disappointing result ends the run and is kept."""
    with raises("strict"):
        execute(lab.plan(three), strict=True)
    assert lab.calls == []
    monkeypatch.setattr(_Cautions, "before", lambda *_: [])
    with raises("strict-result"):
        execute(lab.plan(three), strict=True)
    assert lab.calls == ["first"]
    assert lab.plan(three).stages[0].state == "done"


def test_no_stage_starts_before_the_one_that_it_reads_is_accepted(
    lab: Any, three: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the warnings of a finished stage are looked for, which may wait for a write, it does not count as
    finished.
    """
    seen = []

    def beside(run: _Run, kind: Kind, done: dict[str, Any]) -> dict[str, Any]:
        del kind
        seen.append(set(done) - set(run.finished))
        return {}

    monkeypatch.setattr(_Run, "_beside", beside)
    lab.run(three)
    lab.run(three)
    assert seen == [{"first"}, {"second"}, {"page"}] * 2


@pytest.mark.parametrize(
    ("batch", "change"), [(2, "add images, or set epochs to"), (4, "set batch to 2, and")]
)
def test_the_advice_is_a_change(batch: int, change: str) -> None:
    """No batch that is set already, nor a larger one."""
    (said,) = few_steps(batch, cast(Any, SimpleNamespace(source_summary=SimpleNamespace(train=2))))
    assert change in said
