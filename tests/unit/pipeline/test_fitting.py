"""Settings that follow the number of training images where nothing is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rayddl.nets.config import NetConfig
from rayddl.pipeline import api
from rayddl.pipeline.plan import Plan
from rayddl.pipeline.tables import as_text
from rayddl.stages.experts.settings import ExpertsConfig
from rayddl.stages.match.settings import MatchConfig
from rayddl.stages.settings import FEWEST_STEPS, without_resources
from rayddl.stages.teacher.settings import TeacherConfig


def _plan(photos: Path, **trained: Any) -> Plan:
    stages = {"experts": {"kind": "experts", **trained}, "teacher": {"kind": "teacher", **trained}}
    source = {"name": "imagefolder", "root": str(photos), "holdout": 0.2}
    return api.plan({"name": "d", "source": source, "stages": stages}, out=str(photos.parent / "runs"))


def test_few_images_get_small_batches_that_the_plan_shows(photos: Path) -> None:
    """The result is that of a definition that has the batch, and so are its folders; a batch that is set stays."""
    plan, same, other = _plan(photos), _plan(photos, batch=4), _plan(photos, batch=48)
    # The learning rate is not that of a batch that is given.
    lower = _plan(photos, batch=4, lr=0.0016)
    told = as_text(plan)
    assert "experts: batch 4, for 48 training images; set it to change" in told
    assert "teacher: lr 0.0016, batch 4, for 48 training images; set them to change" in told
    assert plan.stages[0].fingerprint == same.stages[0].fingerprint
    assert plan.stages[1].fingerprint == lower.stages[1].fingerprint != same.stages[1].fingerprint
    assert {stage.fingerprint for stage in other.stages}.isdisjoint(
        stage.fingerprint for stage in plan.stages
    )
    assert plan.definition.to_json()["stages"]["experts"]["batch"] == 4
    assert "batch" not in as_text(same)
    assert [stage.get("fitted") for stage in plan.to_json()["stages"]] == [
        {"batch": 4},
        {"lr": 0.0016, "batch": 4},
    ]
    assert all("fitted" not in stage for stage in same.to_json()["stages"])
    assert api.estimate(plan).warnings.get("experts", ()) == ()
    assert "1 step, too few" in api.estimate(other).warnings["experts"][0]


@pytest.mark.parametrize(("images", "batch"), [(20, 2), (240, 16), (1024, 64), (1025, 256), (50_000, 256)])
def test_an_epoch_has_steps_to_learn_in(images: int, batch: int) -> None:
    """The usual batch is kept where it leaves enough of them."""
    fitted = ExpertsConfig(kind="experts").fitted(images, {})
    assert fitted.batch == batch
    assert -(-images // fitted.batch) >= FEWEST_STEPS
    assert TeacherConfig(kind="teacher").fitted(images, {}).batch == (128 if images > 512 else batch)


def test_what_trains_nothing_keeps_its_settings() -> None:
    """Imported experts, and a teacher's weights that others trained."""
    for config in (
        ExpertsConfig(kind="experts", replay="buffers"),
        TeacherConfig(kind="teacher", weights="DEFAULT", net={"name": "tv_resnet18"}),  # type: ignore[arg-type]
    ):
        assert config.fitted(20, {}) is config


def _windows(images: int, match: dict[str, Any], **experts: Any) -> dict[str, float]:
    trained = {"e": ExpertsConfig(kind="experts", **experts)}
    fitted = MatchConfig.model_validate({"kind": "match", "experts": "e", "ipc": 1, **match}).fitted(
        images, trained
    )
    return {
        name: getattr(fitted, name)
        for name in ("expert_epochs", "max_start_epoch", "syn_steps", "lr_image", "lr_lr")
    }


@pytest.mark.parametrize(
    ("images", "match", "experts", "found"),
    [
        # Epochs of 196 steps have the windows of the papers; below, the number of steps counts.
        (50_000, {}, {}, (2, 2, 20, 1000, 1e-5)),
        (240, {}, {}, (5, 10, 20, 200, 4e-7)),
        (240, {}, {"lr": 0.05}, (5, 10, 20, 1000, 9e-6)),
        (240, {"expert_epochs": 20, "lr_image": 7, "lr_lr": 0}, {}, (20, 10, 20, 7, 0)),
        # No window reaches beyond the experts' end.
        (240, {}, {"epochs": 9}, (3, 6, 20, 100, 1e-7)),
        (240, {"expert_epochs": 6}, {"epochs": 9}, (6, 3, 20, 200, 5e-7)),
        (240, {}, {"batch": 240}, (16, 34, 20, 40, 2e-8)),
        (240, {}, {"batch": 240, "keep": "all"}, (70, 150, 20, 200, 3e-7)),
        # The length of imported experts is not known yet.
        (240, {}, {"replay": "buffers"}, (2, 2, 20, 1000, 1e-5)),
    ],
)
def test_windows_have_enough_steps_of_an_expert(
    images: int, match: dict[str, Any], experts: dict[str, Any], found: tuple[float, ...]
) -> None:
    """What is given stays; the rates follow the length of the experts' path in a window."""
    assert tuple(_windows(images, match, **experts).values()) == found


def test_experts_that_keep_all_epochs_are_as_long_as_the_windows(photos: Path) -> None:
    """Their length follows from windows that follow the number of images; the plan shows both."""
    stages = {
        "experts": {"kind": "experts", "keep": "all"},
        "distill": {"kind": "match", "experts": "experts", "ipc": 1, "trajectory": "snapshots"},
    }
    source = {"name": "imagefolder", "root": str(photos), "holdout": 0.2}
    plan = api.plan({"name": "d", "source": source, "stages": stages}, out=str(photos.parent / "runs"))
    settings = {stage.name: stage.stage.config for stage in plan.stages}
    assert isinstance(settings["distill"], MatchConfig)
    assert isinstance(settings["experts"], ExpertsConfig)
    assert settings["experts"].epochs == settings["distill"].last_epoch == 6 + 12
    told = as_text(plan)
    assert "experts: epochs 18, batch 4, for 48 training images" in told
    assert (
        "distill: expert_epochs 6, max_start_epoch 12, lr_image 200, lr_lr 3e-07, for 48 training images"
        in told
    )


def test_windows_enter_the_fingerprint_with_their_defaults() -> None:
    """They were required once, and definitions that give them keep their folders."""
    config = MatchConfig.model_validate(
        {"kind": "match", "experts": "e", "ipc": 1, "expert_epochs": 2, "max_start_epoch": 2, "syn_steps": 20}
    )
    assert without_resources(config) == {
        "kind": "match", "experts": "e", "ipc": 1, "expert_epochs": 2.0, "max_start_epoch": 2.0, "syn_steps": 20,
    }  # fmt: skip


def test_any_setting_can_follow_the_number_of_images(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plugin's kind may choose a text, a network or a number of seven digits."""
    chosen = {"augment": "none", "net": NetConfig(name="mlp", norm="none"), "epochs": 1_234_567}
    monkeypatch.setattr(TeacherConfig, "fitted", lambda config, *_: config.model_copy(update=chosen))
    plan = _plan(photos)
    told = " ".join(as_text(plan).split())
    assert "augment none" in told
    assert "epochs 1234567" in told
    (stage,) = (each for each in plan.to_json()["stages"] if each["stage"] == "teacher")
    assert (stage["fitted"]["augment"], stage["fitted"]["net"]["name"]) == ("none", "mlp")
    json.dumps(plan.to_json())
