"""Evaluation by hard labels on the digits: figures, DD-Ranking's training data, rates from a grid, side by side."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from rayddl.data.distilled import DistilledSet
from rayddl.data.pixels import space
from rayddl.data.sources import picking
from rayddl.methods.training.metrics import Confused
from rayddl.nets.config import NetConfig
from rayddl.stages.context import Input
from rayddl.stages.evaluate import distribution
from rayddl.stages.evaluate import stage as evaluate
from rayddl.stages.evaluate import worker as students
from rayddl.stages.evaluate.cautions import after
from rayddl.stages.evaluate.settings import EvaluateConfig
from rayddl.stages.evaluate.student_data import Student
from rayddl.stages.runtime.progress import LocalCounter, RayCounter
from rayddl.storage import Folder

pytestmark = pytest.mark.ray

NET = {"name": "mlp", "depth": 2, "width": 16}
QUICK = {"nets": [NET], "augment": "flip", "epochs": 20, "lr": 0.1, "whole_epochs": 1}
TESTED = 359


@pytest.fixture(scope="module")
def picked(stages: Any, tmp_path_factory: pytest.TempPathFactory) -> Input:
    """Two real digits of each class as a set, on which 7.5 seconds were spent."""
    train = stages.source.train
    places = picking.per_class(train.labels, train.classes, 2, torch.Generator().manual_seed(0))
    fitted = space.fit("normalise", train.images)
    info = {"method": "random", "source": stages.source_config.model_dump(mode="json")}
    made = DistilledSet(train.images[places], train.labels[places], 0.01, train.classes, fitted, info)
    out = Folder(str(tmp_path_factory.mktemp("picked")))
    made.save(out.child("set"))
    return Input("distill", "coreset", out, {}, {}, {"distill": 7.5})


@pytest.fixture(scope="module")
def ranked(stages: Any, picked: Input, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Everything that DD-Ranking's scores need."""
    return stages.evaluate(picked, tmp_path_factory.mktemp("ranked"), ranking=True, **QUICK)


def test_ranking_trains_what_its_scores_are_made_of(ranked: Any) -> None:
    """Five kinds of training data, each with its images; the scores are those of their accuracies."""
    rows = {row["data"]: row for row in ranked.summary["rows"]}

    assert {name: row["images"] for name, row in rows.items()} == {
        "distilled": 20, "random": 20, "whole": 1438, "distilled-bare": 20, "random-bare": 20,
    }  # fmt: skip
    (found,) = ranked.summary["scores"].values()
    assert set(found) == {"over_random", "of_whole", "hlr", "over_random_bare", "lrs", "ars"}
    assert found["hlr"]["mean"] == pytest.approx(rows["whole"]["mean"] - rows["distilled"]["mean"])
    assert rows["distilled"]["accuracies"] != rows["distilled-bare"]["accuracies"]
    assert ranked.distilled.info["metrics"]["scores"] == ranked.summary["scores"]


@pytest.mark.parametrize(
    "counts", [[5, 1, *[2] * 8], [1] * 5 + [0] * 5], ids=["uneven", "fewer than classes"]
)
def test_random_images_are_as_many_as_the_sets(
    stages: Any, picked: Input, tmp_path: Path, counts: list[int]
) -> None:
    """Of each class, also where classes differ: more images, or more classes, would teach more."""
    made = DistilledSet.load(picked.folder.child("set"))
    train = stages.source.train
    places = picking.per_class(train.labels, train.classes, counts, torch.Generator().manual_seed(0))
    uneven = replace(made, stored=train.images[places], labels=train.labels[places])
    uneven.save(Folder(str(tmp_path / "uneven" / "set")))
    given = replace(picked, folder=Folder(str(tmp_path / "uneven")))
    found = stages.evaluate(given, tmp_path / "out", **QUICK)

    assert uneven.counts == tuple(counts)
    assert [row["images"] for row in found.summary["rows"]] == [sum(counts)] * 2


def test_every_answer_is_written_down(ranked: Any) -> None:
    """The confusion matrix of each student counts every test image, and its diagonal is the accuracy."""
    table, students = ranked.table("confusion.parquet"), ranked.table("students.parquet")
    entries = list(zip(*(table[c] for c in ("data", "seed", "true", "predicted", "count")), strict=True))

    for data, seed, right, top5 in zip(
        *(students[c] for c in ("data", "seed", "accuracy", "top5")), strict=True
    ):
        own = [(t, p, n) for d, s, t, p, n in entries if (d, s) == (data, seed)]
        true, predicted, count = zip(*own, strict=True)
        assert sum(count) == TESTED
        assert sum(n for t, p, n in own if t == p) == round(right * TESTED)
        assert all(share is not None for share in Confused(true, predicted, count).per_class(10))
        assert right <= top5 <= 1
    assert ranked.summary["rows"][0]["top5"]["mean"] == pytest.approx(
        sum(students["top5"][:2]) / 2, rel=1e-12
    )


def test_a_set_knows_its_cost(ranked: Any) -> None:
    """Images, bytes as stored, and the seconds of every stage that it hangs on."""
    summary = ranked.summary
    assert (summary["ipc"], summary["classes"], summary["method"]) == (2, 10, "random")
    assert summary["bytes"] == 20 * 8 * 8 + 20 * 8
    assert summary["spent"] == {"distill": 7.5}


def test_nobody_knows_what_was_spent_on_an_imported_set(picked: Input) -> None:
    """The seconds of the import are not the set's; what the set itself says is taken."""
    made = DistilledSet.load(picked.folder.child("set"))
    imported = replace(made, info={**made.info, "imported": {"form": "set", "sha256": "5ba1e"}})

    assert evaluate._spent(made, picked) == {"distill": 7.5}
    assert evaluate._spent(imported, picked) == {}
    told = replace(imported, info={**imported.info, "metrics": {"spent": {"experts": 3.0}}})
    assert evaluate._spent(told, picked) == {"experts": 3.0}


def test_side_by_side_makes_the_students_that_are_trained_alone(
    stages: Any, picked: Input, ranked: Any, tmp_path: Path
) -> None:
    """One after the other every seed answers as it did beside the others, but for rounding."""
    alone = stages.evaluate(picked, tmp_path, together=False, **QUICK)

    assert ranked.summary["protocol"]["together"] is True
    for row, other in zip(alone.summary["rows"], ranked.summary["rows"], strict=False):
        assert row["data"] == other["data"]
        assert row["accuracies"] == pytest.approx(other["accuracies"], abs=2.5 / TESTED)


def test_a_group_that_lost_a_result_is_trained_again_to_the_same_bits(
    stages: Any, picked: Input, ranked: Any, tmp_path: Path
) -> None:
    """A result that was written stays; the one that was not comes out as in an uninterrupted run."""
    kept = {"accuracy": 0.125, "top5": 0.5, "data": "distilled", "net": "mlp-d2-w16", "seed": 1, "images": 20}
    confused = {"true": [0], "predicted": [0], "count": [1]}
    more = {"confused": confused, "lr": 0.1, "seconds": 1.0}
    (tmp_path / "student-distilled-0-1.json").write_text(json.dumps({**kept, **more}))
    found = stages.evaluate(picked, tmp_path, random=False, **QUICK)

    assert found.summary["rows"][0]["accuracies"] == [ranked.summary["rows"][0]["accuracies"][0], 0.125]


def test_a_long_training_is_seen_to_go_on(
    stages: Any, picked: Input, tmp_path: Path, told: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Progress counts parts of students, never goes back, and ends with all of them."""
    monkeypatch.setattr(distribution, "LONG_SECONDS", 1.0)
    opened = RayCounter.open

    def started() -> RayCounter:
        counter = opened()
        counter.read()  # on a busy machine its process would start after the students' end
        return counter

    monkeypatch.setattr(RayCounter, "open", started)
    progress = told()
    slow = {"nets": [{"name": "convnet", "depth": 2, "width": 32}], "epochs": 1500}
    stages.evaluate(picked, tmp_path, progress, random=False, seeds=2, together=False, **(QUICK | slow))
    done = [update[0] for update in progress.updates]

    assert any(0 < value % 1 < 1 for value in done)
    assert done == sorted(done)
    assert progress.updates[-1][:2] == (2, 2)
    assert re.fullmatch(r"the set \d+\.\d ± \d+\.\d %", progress.updates[-1][2])


class _Reports(LocalCounter):
    """A counter that keeps all reports."""

    def __init__(self) -> None:
        super().__init__()
        self.reports: list[tuple[str, float]] = []

    def report(self, who: str, done: float, metric: str) -> None:
        self.reports.append((who, done))


def test_a_training_tells_now_and_then_and_at_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A word every two seconds at most; a group counts as often as it has students."""
    now, counter = [0.0], _Reports()
    monkeypatch.setattr(students.time, "monotonic", lambda: now[0])
    group = [Student("distilled", NetConfig(), seed, f"student-{seed}.json") for seed in range(3)]
    report = students.reporter(SimpleNamespace(counter=counter), group, 10)  # type: ignore[arg-type]
    for epoch in range(1, 12):
        now[0] += 0.6
        report(epoch)
    students.reporter(SimpleNamespace(counter=None), group, 10)(10)  # type: ignore[arg-type]

    assert [(who, pytest.approx(done)) for who, done in counter.reports] == [
        ("student-0.json", 1.2), ("student-0.json", 2.4), ("student-0.json", 3.0), ("student-0.json", 3.0)
    ]  # fmt: skip


def test_a_rate_is_found_on_a_part_of_the_train_split(stages: Any, picked: Input, tmp_path: Path) -> None:
    """Of a hopeless and a good rate each kind of data takes the good one, and ends as if it had been given."""
    tuned = {**{k: v for k, v in QUICK.items() if k != "lr"}, "lr_grid": [1e-6, 0.1]}
    found = stages.evaluate(picked, tmp_path / "tuned", whole=True, **tuned)
    given = stages.evaluate(picked, tmp_path / "given", **QUICK)

    assert set(found.table("students.parquet")["lr"]) == {0.1}
    assert found.out.names() == ["confusion.parquet", "students.parquet"]
    rows = {row["data"]: row["accuracies"] for row in found.summary["rows"]}
    assert [rows["distilled"], rows["random"]] == [row["accuracies"] for row in given.summary["rows"]]
    assert found.summary["protocol"]["lr_grid"] == [1e-6, 0.1]
    assert found.distilled.info["protocol"]["lr_grid"] == [1e-6, 0.1]


def test_one_rate_and_a_choice_of_rates_exclude_each_other() -> None:
    """The message names both keys."""
    with pytest.raises(ValidationError, match=r"lr is one rate and lr_grid are rates to choose from; leave"):
        EvaluateConfig.model_validate({"kind": "evaluate", "set": "x", "lr": 0.1, "lr_grid": [0.1, 0.2]})


@pytest.mark.parametrize("together", [True, False])
def test_students_that_diverge_are_counted(picked, stages, tmp_path, together):
    """Their accuracy is that of a constant answer, which the table alone would show as a poor set."""
    found = stages.evaluate(picked, tmp_path, together=together, **(QUICK | {"lr": 1e30}))
    assert all(row["diverged"] == len(row["accuracies"]) for row in found.summary["rows"])
    assert set(found.table("students.parquet")["unanswered"]) == {found.summary["tested"]}
    first, *_ = after(found.summary)
    assert "on the set diverged" in first
