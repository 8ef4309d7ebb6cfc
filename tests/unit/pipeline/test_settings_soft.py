"""Settings of teachers and of soft-label evaluations: what they mean, refuse, and leave unchanged."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from rayddl.data.config import SourceConfig
from rayddl.methods.training.soft_settings import SoftSettings
from rayddl.pipeline.definition.schema import explain
from rayddl.stages.evaluate import protocol, stage
from rayddl.stages.evaluate.settings import EDC, EvaluateConfig
from rayddl.stages.evaluate.worker import looked_at
from rayddl.stages.rded.settings import RdedConfig
from rayddl.stages.refine import stage as refine
from rayddl.stages.settings import without_resources
from rayddl.stages.teacher.settings import TeacherConfig


def evaluate(**settings: Any) -> EvaluateConfig:
    return EvaluateConfig.model_validate({"kind": "evaluate", "set": "distill", **settings})


class Images(list[int]):
    """As much of a set as a protocol depends on: two images of each of ten classes."""

    ipc, classes, info, lr_student = 2, tuple("abcdefghij"), {}, 0.01  # type: ignore[var-annotated]


def teacher(**settings: Any) -> TeacherConfig:
    return TeacherConfig.model_validate({"kind": "teacher", **settings})


@pytest.mark.parametrize(
    "chosen",
    [
        {"recipe": "edc"},
        {"recipe": "edc", "loss": "kl"},
        {"recipe": "edc", "ema": 0.0, "crop_min": 0.5},
        {"recipe": "rd3", "schedule": "half_cosine"},
        {"recipe": "bps", "crop_min": 0.25},
        {"loss": "mse_gt", "schedule": "cosine"},
        {},
    ],
)
def test_what_is_stored_of_a_protocol_is_that_protocol(chosen: Mapping[str, Any]) -> None:
    """Also a choice that is RDED's, by another recipe; and a recipe's own choices are stored for the pages."""
    made: Any = Images(range(20))
    source: Any = SimpleNamespace(zoomed=False, classes=tuple("abcdefghij"))
    labels: Any = SimpleNamespace(where="teacher-1")
    asked = evaluate(
        observer="teacher",
        nets=[{"name": "convnet"}],
        compile=False,
        random=False,
        own_labels=False,
        **chosen,
    )
    settled = protocol.settled(asked, made, source, labels)
    task = protocol.EvaluateTask(settled, made, source, labels, 0)

    stored = stage.recipe(task)
    again = EvaluateConfig.model_validate({**stage.settings_of(stored, other=False), "observer": "teacher"})
    found = protocol.settled(again, made, source, labels)

    names = {*SoftSettings.model_fields, "loss", "epochs", "batch", "recipe"}
    assert found.model_dump(include=names) == settled.model_dump(include=names)
    if chosen == {"recipe": "edc"}:
        assert (stored["loss"], stored["ema"], stored["crop_min"]) == ("mse_gt", 0.99, 0.08)


@pytest.mark.parametrize("epochs", [1, 12, 52, 300, 1000])
def test_best_is_of_the_epochs_that_the_published_code_tests(epochs: int) -> None:
    """It counts epochs from 0, and tests after every tenth one and the last, of those after four fifths."""
    theirs = [e for e in range(epochs) if (e % 10 == 9 or e == epochs - 1) and e > 0.8 * epochs]

    assert [done - 1 for done in range(1, epochs + 1) if looked_at(done, epochs)] == theirs


def test_a_refined_set_has_no_accuracy_of_the_one_that_was_imported() -> None:
    """It has not been evaluated, and was made here."""
    made: Any = SimpleNamespace(
        info={
            "method": "mtt", "ipc": 1, "net": {"name": "convnet"}, "imported": {"form": "pt"},
            "metrics": {"accuracy": 0.5}, "evaluated_by": {"name": "x"},
        }
    )  # fmt: skip
    config: Any = SimpleNamespace(anchors="real", observers=("teacher",), steps=3)
    context: Any = SimpleNamespace(definition={"name": "mine"}, seed=3)

    info = refine.described(config, context, made, SimpleNamespace(observers=()))  # type: ignore[arg-type]

    assert not {"imported", "metrics", "evaluated_by"} & set(info)
    assert (info["method"], info["ipc"], info["definition"]) == ("mtt + CIM", 1, {"name": "mine"})


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


def test_the_largest_logits_are_enough_for_kl_alone() -> None:
    """The others are made up so that the softmax is the same; a loss of all logits would learn these."""
    top = {"observer": "t", "labels": "stored", "label_top": 3}
    assert evaluate(**top).check({}) == evaluate(**top, recipe="edc", loss="kl").check({}) == []
    for losses in ({"recipe": "edc"}, {"loss": "gift"}):
        (said,) = evaluate(**top, **losses).check({})
        assert "label_top" in said


def test_edc_is_revised_for_more_than_ten_classes() -> None:
    """Its crops, epochs and batch follow the number of classes, which were those of CIFAR-10 for all."""
    edc = evaluate(observer="t", recipe="edc")
    names = ("digits", "cifar10", "cifar100", "tinyimagenet", "parquet")
    found = [EDC in edc.revisions(SourceConfig.model_validate({"name": n, "root": "x"})) for n in names]
    assert found == [False, False, True, True, True]
    assert EDC not in evaluate(observer="t").revisions(SourceConfig(name="cifar100"))


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
