"""The shipped definition of a refinement, on Ray and in this process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import rayddl
from rayddl.data.distilled import DistilledSet
from rayddl.stages.context import Context, Input
from rayddl.stages.refine import stage as refine
from rayddl.stages.refine.settings import RefineConfig
from rayddl.stages.runtime.in_process import InProcess
from rayddl.storage import Folder

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("kept_ray")]

SHIPPED = Path(__file__).resolve().parents[2] / "pipelines" / "quickstart-refine.yaml"
SHORT = {
    "teacher.epochs": 2, "teacher.allow_weak": True, "refined.steps": 20, "stitched.ipc": 4, "anchors.ipc": 16,
    "anchors.mipc": 20, "stitched.mipc": 20,
    "refined.resources.num_cpus": 1,
    **{f"evaluate-{name}.{key}": value for name in ("stitched", "refined")
       for key, value in {"epochs": 2, "seeds": 1, "own_labels": False, "random": False}.items()},
}  # fmt: skip


def test_the_shipped_definition_runs_and_workers_change_no_bit(tmp_path: Path) -> None:
    """From teacher to page; a task for each of three blocks leaves what this process leaves."""
    done = rayddl.run(str(SHIPPED), overrides=SHORT, out=str(tmp_path / "runs"), progress=False)
    folders = {name: Folder(where) for name, where in done.folders.items()}

    kinds = {"stitched": "rded", "anchors": "coreset", "teacher": "teacher"}
    inputs = {name: Input(name, kind, folders[name], {}, {}) for name, kind in kinds.items()}
    configs = {stage.name: stage.config for stage in done.plan.definition.stages}
    config = configs["refined"]
    assert isinstance(config, RefineConfig)
    own, source = Folder(str(tmp_path / "own")), done.plan.definition.source
    refine.run(config, Context("refined", source, 0, own, inputs, {}, backend=InProcess()))

    made = [DistilledSet.load(folder.child("set")) for folder in (own, folders["refined"])]
    assert len(made[0]) == 40 > 64 // 4
    assert torch.equal(made[0].stored, made[1].stored)
    assert own.read("views.parquet") == folders["refined"].read("views.parquet")
    assert list(done.tables) == ["evaluate-stitched", "evaluate-refined"]
    summary = done.summaries["refined"]
    assert summary["gap_after"] < summary["gap_before"]
    assert "nearer to real images" in Folder(done.folders["report"]).read("report.html").decode()
