"""Settings that follow the number of training images where nothing is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rayddl.pipeline import api
from rayddl.pipeline.plan import Plan
from rayddl.pipeline.tables import as_text
from rayddl.stages.experts.settings import ExpertsConfig
from rayddl.stages.settings import FEWEST_STEPS
from rayddl.stages.teacher.settings import TeacherConfig


def _plan(photos: Path, **trained: Any) -> Plan:
    stages = {"experts": {"kind": "experts", **trained}, "teacher": {"kind": "teacher", **trained}}
    source = {"name": "imagefolder", "root": str(photos), "holdout": 0.2}
    return api.plan({"name": "d", "source": source, "stages": stages}, out=str(photos.parent / "runs"))


def test_few_images_get_small_batches_that_the_plan_shows(photos: Path) -> None:
    """The result is that of a definition that has the batch, and so are its folders; a batch that is set stays."""
    plan, same, other = _plan(photos), _plan(photos, batch=4), _plan(photos, batch=48)
    told = as_text(plan)
    for name in ("experts", "teacher"):
        assert f"{name}: batch 4, for 48 training images; set it to have another" in told
    assert [stage.fingerprint for stage in plan.stages] == [stage.fingerprint for stage in same.stages]
    assert {stage.fingerprint for stage in other.stages}.isdisjoint(
        stage.fingerprint for stage in plan.stages
    )
    assert plan.definition.to_json()["stages"]["experts"]["batch"] == 4
    assert "batch" not in as_text(same)
    assert api.estimate(plan).warnings.get("experts", ()) == ()
    assert "1 step, too few" in api.estimate(other).warnings["experts"][0]


@pytest.mark.parametrize(("images", "batch"), [(20, 2), (240, 16), (1024, 64), (1025, 256), (50_000, 256)])
def test_an_epoch_has_steps_to_learn_in(images: int, batch: int) -> None:
    """The usual batch is kept where it leaves enough of them."""
    fitted = ExpertsConfig(kind="experts").fitted(images)
    assert fitted.batch == batch
    assert -(-images // fitted.batch) >= FEWEST_STEPS
    assert TeacherConfig(kind="teacher").fitted(images).batch == (128 if images > 512 else batch)


def test_what_trains_nothing_keeps_its_settings() -> None:
    """Imported experts, and a teacher's weights that others trained."""
    for config in (
        ExpertsConfig(kind="experts", replay="buffers"),
        TeacherConfig(kind="teacher", weights="DEFAULT", net={"name": "tv_resnet18"}),  # type: ignore[arg-type]
    ):
        assert config.fitted(20) is config
