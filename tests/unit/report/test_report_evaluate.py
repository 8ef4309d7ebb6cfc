"""An evaluate stage's own section: by which protocol its students were trained, and who labelled."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from rayddl.report import numbers
from rayddl.report.evaluate import section


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
