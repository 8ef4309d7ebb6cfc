"""Settings of teachers and of soft-label evaluations: what they mean, refuse, and leave unchanged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from pydantic import ValidationError

from rayddl.pipeline.definition.schema import explain
from rayddl.stages.evaluate.settings import EvaluateConfig
from rayddl.stages.rded.settings import RdedConfig
from rayddl.stages.settings import without_resources
from rayddl.stages.teacher.settings import TeacherConfig


def evaluate(**settings: Any) -> EvaluateConfig:
    return EvaluateConfig.model_validate({"kind": "evaluate", "set": "distill", **settings})


def teacher(**settings: Any) -> TeacherConfig:
    return TeacherConfig.model_validate({"kind": "teacher", **settings})


@pytest.mark.parametrize(
    "settings", [{}, {"epochs": 1000}, {"batch": 256}, {"epochs": 1000, "batch": 256}, {"protocol": None}]
)
def test_hard_defaults_written_down_are_still_the_defaults(settings: Mapping[str, Any]) -> None:
    """A definition that spells hard's defaults out finds the folders of one that does not."""
    assert without_resources(evaluate(**settings)) == {"kind": "evaluate", "set": "distill"}


def test_other_numbers_and_those_of_soft_labels_count() -> None:
    """Where an evaluation may be soft, 1000 epochs are no default and stay."""
    assert without_resources(evaluate(epochs=300))["epochs"] == 300
    assert without_resources(evaluate(epochs=1000, observer="teacher"))["epochs"] == 1000
    assert without_resources(evaluate(batch=256, protocol="soft"))["batch"] == 256


def test_soft_labels_without_an_observer_are_refused() -> None:
    """Asked for, or because the set comes from RDED: the definition is refused before anything runs."""
    rded = RdedConfig.model_validate({"kind": "rded", "teacher": "t", "ipc": 1})
    problem = (
        "soft labels come from an observer: set observer to the name of a teacher stage, or protocol: hard"
    )
    assert evaluate(protocol="soft").check({}) == [problem]
    assert evaluate().check({"set": rded}) == [problem]
    assert evaluate(observer="t").check({"set": rded}) == []
    assert evaluate(protocol="hard").check({"set": rded}) == []
    assert evaluate().check({}) == []


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"recipe": "edc"}, "recipe: edc is of soft labels; name an observer, or leave recipe out"),
        ({"report": "best"}, "report: best is of soft labels; name an observer, or leave report out"),
        (
            {"protocol": "hard", "zoom": False, "ema": 0.9},
            "ema: 0.9, zoom: false are of soft labels; name an observer in place of protocol: hard, or leave them out",
        ),
    ],
)
def test_soft_choices_without_soft_labels_are_refused(settings: Mapping[str, Any], named: str) -> None:
    """Each that is given is named; with an observer they count."""
    assert evaluate(**settings).check({}) == [named]
    assert evaluate(**{**settings, "protocol": "soft", "observer": "t"}).check({}) == []


def test_smoothing_of_labels_needs_a_loss_that_has_them() -> None:
    """``kl`` takes no labels of the images' own; EDC's recipe and a named loss do."""
    said = "label_smoothing is of loss: mse_gt and loss: gift; set one of these, or leave it out"
    smooth = {"observer": "t", "label_smoothing": 0.1}
    assert evaluate(**smooth).check({}) == evaluate(**smooth, recipe="edc", loss="kl").check({}) == [said]
    assert evaluate(**smooth, recipe="edc").check({}) == evaluate(**smooth, loss="gift").check({}) == []


def test_a_list_with_a_wrong_item_is_not_also_too_short() -> None:
    """pydantic counts only valid items; an empty list is too short."""
    for nets, expected in (([{"name": "resnet18", "width": 7}], [("nets", 0)]), ([], [("nets",)])):
        with pytest.raises(ValidationError) as error:
            evaluate(nets=nets)
        assert [fault.key for fault in explain(error.value, EvaluateConfig)] == expected


def test_the_most_students_count_those_of_own_labels() -> None:
    """Which only soft labels have."""
    assert (evaluate().most_units, evaluate(observer="t").most_units) == (10, 15)
    assert evaluate(observer="t", own_labels=False, random=False).most_units == 5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"protocol": "hard", "observer": "t"}, "protocol: hard has no use for an observer"),
        ({"protocol": "hard", "labels": "stored"}, "labels: stored belong to protocol: soft"),
    ],
)
def test_evaluations_that_contradict_themselves_are_refused(
    settings: Mapping[str, Any], message: str
) -> None:
    """What one protocol has no use for is not quietly ignored."""
    with pytest.raises(ValidationError, match=message):
        evaluate(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classes": ["a"]}, "classes belong to weights; a teacher trained here needs none"),
        ({"size": 32, "download": True}, "download and size belong to weights"),
        ({"weights": "w.pt"}, "weights from a file need classes: what the outputs stand for"),
        (
            {"weights": "w.pt", "classes": "source", "download": True},
            "download belongs to torchvision's weights",
        ),
        ({"weights": "DEFAULT", "mean": [0.5]}, "mean and std belong together"),
        ({"weights": "DEFAULT", "mean": [0.5], "std": [0.0]}, "std must be above 0 in every channel"),
        ({"augment": "crop_turn"}, "unknown augmentation 'turn'"),
        ({"batch": 1}, "greater than or equal to 2"),
    ],
)
def test_teachers_that_contradict_themselves_are_refused(settings: Mapping[str, Any], message: str) -> None:
    """Settings of ready weights without weights, and the other way round, are named."""
    with pytest.raises(ValidationError, match=message):
        teacher(**settings)


def test_a_ready_teacher_takes_classes_as_list_file_or_source() -> None:
    """The three ways to say what outputs stand for."""
    for classes in (["a", "b"], "names.txt", "source"):
        assert teacher(weights="w.pt", classes=classes).classes == (
            tuple(classes) if isinstance(classes, list) else classes
        )
