"""An evaluate stage's section: the protocol of its students, and the source of the labels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rayddl.report import numbers
from rayddl.stages.evaluate import figures
from rayddl.stages.evaluate.report import section


def facts(make: Any, **protocol: Any) -> dict[str, str]:
    made = make.evaluate()
    summary = {**made.stage.summary, "protocol": protocol}
    shown = section(replace(made, stage=replace(made.stage, summary=summary)), alone=True)
    return {fact.label: fact.value for fact in shown.facts}


def test_soft_labels_are_shown_with_their_observer(make: Any) -> None:
    """Protocol, where the labels came from, and the observer with its accuracy."""
    observer = {"stage": "teacher", "net": "resnet18", "accuracy": 0.934, "folder": "observer"}
    shown = facts(make, name="soft", labels="stored", epochs=300, batch=50, observer=observer)

    assert (shown["protocol"], shown["labels"], shown["epochs each"]) == ("soft", "stored", "300")
    assert shown["observer"] == f"ResNet-18, {numbers.percent(0.934)} right"


@pytest.mark.parametrize("observer", [None, {}, {"stage": "teacher", "net": "convnet", "accuracy": None}])
def test_an_observer_that_is_not_known_is_not_made_up(make: Any, observer: Any) -> None:
    """Hard labels show none; without an accuracy there is only its name."""
    shown = facts(make, name="hard", observer=observer)
    assert shown["protocol"] == "hard"
    assert shown.get("observer") == ("ConvNet" if observer else None)


def test_scores_stand_in_a_table_of_their_own(make: Any) -> None:
    """Points for differences, percent for scores, each with its deviation; the gain alone needs no table."""
    made = make.evaluate()
    gain = {"over_random": {"mean": 0.2, "std": 0.01}}
    scores = {"convnet": {**gain, "hlr": {"mean": 0.25, "std": 0.02}, "lrs": {"mean": 0.26, "std": 0.004}}}

    def tables(scores: dict[str, Any]) -> dict[str, Any]:
        stage = replace(made.stage, summary={**made.stage.summary, "scores": scores})
        return {table.caption: table for table in section(replace(made, stage=stage), alone=True).tables}

    table = tables(scores)["What the accuracy is worth"]
    assert [cell.text for cell in table.rows[0]] == [
        "ConvNet",
        "+20.0 ± 1.0",
        "+25.0 ± 2.0",
        "26.0\u00a0% ± 0.4",
    ]
    assert [column.name for column in table.columns][2:] == [
        "Hard-label recovery, HLR (points)",
        "Label-robust score",
    ]
    assert "What the accuracy is worth" not in tables({"convnet": gain})


def test_students_mistakes_are_shown_where_they_were_written_down(make: Any) -> None:
    """A matrix for each network trained on the set; stages of older versions have none."""
    made = make.evaluate()
    texts = {"data": np.array(["distilled", "random"]), "net": np.array(["convnet", "convnet"])}
    counts = {"true": np.array([0, 1]), "predicted": np.array([1, 1]), "count": np.array([3, 9])}
    (shown,) = section(
        replace(made, confusion={**texts, **counts}, classes=("cat", "dog")), alone=True
    ).matrices

    assert shown.alt == "Confusion matrix of ConvNet: 0.0\u00a0% right; most often cat is taken for dog"
    assert section(made, alone=True).matrices == ()


def test_further_lessons_are_named_in_words(make: Any) -> None:
    """Students without augmentation, and with hard labels, are distinguished from the others."""
    rows = [make.row(data, "convnet", 10, [0.5]) for data in ("distilled-bare", "random-bare", "whole-hard")]
    found = figures.rows([make.evaluate(rows=rows).stage])

    assert [row.what for row in found] == [
        "10\u00a0distilled images, not augmented",
        "10\u00a0random real images, not augmented",
        "all 10\u00a0images, hard labels",
    ]
