"""A team of two compiled workers, interrupted at its start and in its training, and resumed by the same command."""

from __future__ import annotations

import signal
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from safetensors.torch import load

from rayddl.data.config import SourceConfig
from rayddl.stages import parquet as tables
from rayddl.stages.context import Context
from rayddl.stages.runtime.in_process import InProcess
from rayddl.stages.teacher import stage as teacher
from rayddl.stages.teacher.settings import TeacherConfig
from rayddl.storage import Folder
from tests.e2e.attempts import Attempts

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

EPOCHS = 120
NET = {"name": "convnet", "depth": 1, "width": 8, "norm": "batch"}
TEACHER = {"kind": "teacher", "net": NET, "epochs": EPOCHS, "compile": True}
DEFINITION = {
    "name": "team",
    "source": {"name": "digits"},
    "stages": {"teacher": {**TEACHER, "workers": 2}},
}


def test_an_interrupted_team_goes_on_and_agrees_with_one_worker(tmp_path: Path) -> None:
    definition = tmp_path / "team.yaml"
    definition.write_text(yaml.safe_dump(DEFINITION), encoding="utf-8")
    run = Attempts(tmp_path, definition)
    moments = [
        ("at its start", run.shows("teacher: started"), signal.SIGTERM),
        ("training", run.wrote("teacher", teacher.PARTIAL), signal.SIGINT),
    ]
    for moment, when, how in moments:
        code = run.interrupted(when, how)

        assert code == 130, (moment, run.printed[-3000:])
        assert run.left() == [], moment
        assert run.states()["teacher"] == "interrupted", moment
        for noise in ("Traceback", "Aborted", "Exception ignored", "*** SIG", "(raylet)"):
            assert noise not in run.printed, (moment, run.printed[-3000:])
    saved = run.file("teacher", teacher.PARTIAL)
    assert saved is not None
    before = load(saved.read_bytes())["numbers.history"][:, -1].tolist()
    assert 0 < len(before) < EPOCHS

    assert run.finished() == 0, run.printed[-3000:]
    assert "uncompiled" not in run.printed
    metrics = run.file("teacher", "metrics.parquet")
    assert metrics is not None
    curve = pq.read_table(metrics).to_pydict()
    assert curve["epoch"] == list(range(1, EPOCHS + 1))
    # Wall times do not repeat: these epochs were not trained again.
    assert curve["seconds"][: len(before)] == before

    alone = Context(
        "teacher",
        SourceConfig(name="digits"),
        0,
        Folder(str(tmp_path / "alone")),
        {},
        {},
        backend=InProcess(),
    )
    expected = teacher.run(TeacherConfig.model_validate({**TEACHER, "compile": False}), alone)
    losses = tables.read(alone.out, "metrics.parquet")["train_loss"]
    assert curve["train_loss"][:5] == pytest.approx(losses[:5], rel=1e-3)
    assert curve["test_accuracy"][-1] == pytest.approx(expected.summary["accuracy"], abs=0.03)
