"""The quickstart interrupted by signals at every kind of moment, and resumed by the same command."""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file

from tests import warm

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

PATIENCE = 280.0
"""Seconds in which a run has to reach any point, and to end, on a busy machine too."""
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
MARK = "RAYDDL_TEST_RUN"
COMMAND = """
import signal, sys
# What runs in the background of a script ignores SIGINT, and what nohup runs SIGHUP.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
from rayddl.cli import main
main(sys.argv[1:])
"""


@dataclass
class Attempts:
    """The command, started again and again on one folder."""

    folder: Path
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    printed: str = ""
    """What the last attempt has printed."""

    def interrupted(self, when: Callable[[], bool], *how: signal.Signals) -> int:
        """Start the command, send the signals once ``when`` holds, and wait for its end; its exit code."""
        log = self.folder / "log.txt"
        words = [word for text in SMALLER for word in ("--set", text)]
        line = [sys.executable, "-c", COMMAND, "run", str(QUICKSTART), "--num-cpus", "2", *words]
        with log.open("wb") as out:
            process = warm.Popen(
                line,
                cwd=self.folder,
                # The titles that Ray's processes give themselves otherwise overwrite the mark.
                env={**os.environ, MARK: self.mark, "SPT_NOENV": "1"},
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        deadline = time.monotonic() + PATIENCE
        self.printed = ""
        while not when():
            self.printed = log.read_text(encoding="utf-8", errors="replace")
            assert process.poll() is None, self.printed[-3000:]
            assert time.monotonic() < deadline, self.printed[-3000:]
            time.sleep(0.02)
        for number in how:
            # To its process group, as terminals and schedulers do.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            time.sleep(0.2)
        code = process.wait(PATIENCE)
        self.printed = log.read_text(encoding="utf-8", errors="replace")
        return code

    def shows(self, text: str) -> Callable[[], bool]:
        """Whether the attempt has printed ``text``."""
        return lambda: text in self.printed

    def recorded(self) -> bool:
        """Whether there is a record of the run, which is written before anything starts, after the plan is shown."""
        return self.record.exists()

    @property
    def record(self) -> Path:
        """The run's record."""
        return self.folder / "runs" / "quickstart.run.json"

    def wrote(self, stage: str, pattern: str) -> Callable[[], bool]:
        """Whether the stage's folder has a whole file of that pattern."""
        return lambda: self.file(stage, pattern) is not None

    def file(self, stage: str, pattern: str) -> Path | None:
        """The first whole file of that pattern in the stage's folder."""
        found = sorted(self.folder.glob(f"runs/{stage}-*/{pattern}"))
        return next((path for path in found if ".tmp-" not in path.name), None)

    def states(self) -> dict[str, str]:
        """The stages' states in the run's record."""
        record = json.loads(self.record.read_text(encoding="utf-8"))
        return {name: entry["state"] for name, entry in record["stages"].items()}

    def left(self) -> list[str]:
        """The processes of any attempt that are still there."""
        importlib.import_module("ray")  # psutil comes with it
        psutil = importlib.import_module("psutil")
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                alive = process.status() != psutil.STATUS_ZOMBIE
                if alive and process.environ().get(MARK) == self.mark:
                    found.append(" ".join(process.cmdline()))
        return found


def test_each_moment_ends_alike(tmp_path: Path) -> None:
    """Exit code 130, the command to resume, a record that says so, no traceback, and no process that stays.

    The matching loop is resumed from the iteration that it was at.
    """
    run = Attempts(tmp_path)
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
