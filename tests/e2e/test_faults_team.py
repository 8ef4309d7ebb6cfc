"""A team of two compiled workers, interrupted at its start and in its training, and resumed by the same command."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from safetensors.torch import load

from rayddl.stages.teacher.stage import PARTIAL
from tests.e2e.attempts import Attempts

pytestmark = pytest.mark.ray

EPOCHS = 120


def written(folder: Path, **settings: Any) -> Path:
    """A definition of one teacher in ``folder``, which is made."""
    net = {"name": "convnet", "depth": 1, "width": 8, "norm": "batch"}
    teacher = {"kind": "teacher", "net": net, "epochs": EPOCHS, **settings}
    folder.mkdir()
    path = folder / "team.yaml"
    keys = {"name": "team", "source": {"name": "digits"}, "stages": {"teacher": teacher}}
    path.write_text(yaml.safe_dump(keys), encoding="utf-8")
    return path


def test_an_interrupted_team_goes_on_and_agrees_with_one_worker(tmp_path: Path) -> None:
    run = Attempts(tmp_path / "team", written(tmp_path / "team", workers=2, compile=True))
    moments = [
        ("at its start", run.shows("teacher: started"), signal.SIGTERM),
        ("training", run.wrote("teacher", PARTIAL), signal.SIGINT),
    ]
    for moment, when, how in moments:
        code = run.interrupted(when, how)

        assert code == 130, (moment, run.printed[-3000:])
        assert run.left() == [], moment
        assert run.states()["teacher"] == "interrupted", moment
        for noise in ("Traceback", "Aborted", "Exception ignored", "*** SIG", "(raylet)"):
            assert noise not in run.printed, (moment, run.printed[-3000:])
    saved = run.file("teacher", PARTIAL)
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

    alone = Attempts(tmp_path / "alone", written(tmp_path / "alone", compile=False))
    assert alone.finished() == 0, alone.printed[-3000:]
    metrics = alone.file("teacher", "metrics.parquet")
    assert metrics is not None
    expected = pq.read_table(metrics).to_pydict()
    assert curve["train_loss"][:5] == pytest.approx(expected["train_loss"][:5], rel=1e-3)
    assert curve["test_accuracy"][-1] == pytest.approx(expected["test_accuracy"][-1], abs=0.03)
