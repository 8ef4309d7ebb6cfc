"""Workers that train together, by Ray Train on the local Ray, one of them killed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from safetensors.torch import load

from rayddl.data.config import SourceConfig
from rayddl.stages import parquet as tables
from rayddl.stages.context import Context
from rayddl.stages.runtime.in_process import InProcess
from rayddl.stages.runtime.shards import Shards
from rayddl.stages.teacher import stage as teacher
from rayddl.stages.teacher.settings import TeacherConfig
from rayddl.storage import Folder

pytestmark = pytest.mark.ray

NET = {"name": "convnet", "depth": 1, "width": 8, "norm": "instance"}
SOURCE = SourceConfig(name="digits")
EPOCHS = 40


def settings(**changes: Any) -> TeacherConfig:
    base = {"kind": "teacher", "net": NET, "epochs": EPOCHS, "compile": False, "augment": "crop"}
    return TeacherConfig.model_validate({**base, **changes})


def context(out: Path, progress: Any, **more: Any) -> Context:
    return Context("teacher", SOURCE, 5, Folder(str(out)), {}, {}, progress, **more)


def test_a_team_that_loses_a_worker_goes_on(
    local_ray: None,
    tmp_path: Path,
    told: Callable[..., Any],
    killing: Callable[..., Any],
    capfd: pytest.CaptureFixture[str],
) -> None:
    """From its last epochs' end, to the result that one worker has, with progress, and nothing printed or left."""
    progress = told()
    where = context(tmp_path / "team", progress)
    seen: list[bytes] = []

    def when() -> bool:
        if where.out.has(teacher.PARTIAL):
            seen[:] = [where.out.read(teacher.PARTIAL)]
        return bool(seen)

    home = set(Path.home().glob("ray_results*"))
    with killing("ray::RayTrainWorker", when) as killed:
        result = teacher.run(settings(workers=2), where)
    assert killed
    before = load(seen[0])["numbers.history"]
    curve = tables.read(where.out, "metrics.parquet")
    assert curve["epoch"] == list(range(1, EPOCHS + 1))
    # An epoch that was trained again would have other seconds.
    assert curve["seconds"][: len(before)] == before[:, -1].tolist()
    assert 0 < len(before) < EPOCHS
    assert any(0 < done < total for done, total, _ in progress.updates)
    assert where.out.names() == ["checked.json", "metrics.parquet"]
    assert set(Path.home().glob("ray_results*")) == home
    assert "ray" not in capfd.readouterr().err.lower()

    alone = context(tmp_path / "alone", told(), backend=InProcess())
    expected = teacher.run(settings(), alone)
    losses = tables.read(alone.out, "metrics.parquet")["train_loss"]
    assert curve["train_loss"][:5] == pytest.approx(losses[:5], rel=1e-3)
    assert result.summary["accuracy"] == pytest.approx(expected.summary["accuracy"], abs=0.03)


def test_images_are_picked_out_of_shards_in_any_order(local_ray: None) -> None:
    """By tasks that need no CPU; a grey image has as many channels as the others."""
    whole = torch.randint(
        0, 256, (50, 1, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    counts = (7, 13, 1, 9, 20)
    refs = tuple(ray.put(part.numpy()) for part in whole.split(counts))
    batches = torch.randperm(50, generator=torch.Generator().manual_seed(1)).split(12)
    found = list(Shards(refs, counts, 3).along(batches, 48))
    assert all(
        torch.equal(images, whole[batch].expand(-1, 3, -1, -1))
        for images, batch in zip(found, batches, strict=True)
    )
