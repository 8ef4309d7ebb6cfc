"""The quickstart interrupted by signals at every kind of moment, and resumed by the same command."""

from __future__ import annotations

import signal
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file

from tests.e2e.attempts import Attempts

pytestmark = pytest.mark.ray

QUICKSTART = Path(__file__).parents[2] / "pipelines" / "quickstart.yaml"
SMALLER = (
    "experts.net.depth=1",
    "experts.net.width=8",
    "experts.count=4",
    "experts.epochs=8",
    "experts.compile=false",
    "distill.iterations=60",
    "distill.compile=false",
    "distill.evaluate_every=20",
    "distill.evaluate_epochs=20",
    "evaluate.seeds=3",
    "evaluate.epochs=60",
    "evaluate.compile=false",
)


def test_each_moment_ends_alike(tmp_path: Path) -> None:
    """Exit code 130, the command to resume, a record that says so, no traceback, and no process that stays.

    The matching loop is resumed from the iteration that it was at.
    """
    run = Attempts(tmp_path, QUICKSTART, SMALLER)
    moments = [
        ("before Ray", "experts", run.recorded, (signal.SIGHUP,)),
        ("at its start", "experts", run.shows("starting Ray"), (signal.SIGTERM, signal.SIGTERM)),
        ("experts", "experts", run.wrote("experts", "expert-*.safetensors"), (signal.SIGTERM,)),
        ("match", "distill", run.wrote("distill", "snapshot-000020*"), (signal.SIGINT, signal.SIGINT)),
        ("evaluate", "evaluate", run.wrote("evaluate", "student-*"), (signal.SIGHUP,)),
    ]
    checkpoint: dict[str, list[float]] = {}
    for moment, stage, when, how in moments:
        code = run.interrupted(when, *how)

        assert code == 130, (moment, run.printed[-3000:])
        assert run.left() == [], moment
        assert run.states()[stage] == "interrupted", moment
        assert "resume with:\n  rayddl run " in run.printed, (moment, run.printed[-3000:])
        assert run.printed.rstrip().endswith("--num-cpus 2"), (moment, run.printed[-3000:])
        for noise in ("Traceback", "Aborted", "Exception ignored", "*** SIG", "(raylet)"):
            assert noise not in run.printed, (moment, run.printed[-3000:])
        if moment == "match":
            saved = run.file("distill", "checkpoint.safetensors")
            assert saved is not None
            checkpoint["seconds"] = load_file(saved)["more.rows"][:, -1].tolist()

    metrics = run.file("distill", "metrics.parquet")
    assert metrics is not None
    done = len(checkpoint["seconds"])
    assert done >= 20
    # Wall times do not repeat: these iterations were not run again.
    assert pq.read_table(metrics).to_pydict()["seconds"][:done] == checkpoint["seconds"]
