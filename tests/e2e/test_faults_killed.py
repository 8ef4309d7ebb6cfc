"""The command killed with SIGKILL in the middle of every stage, and started again."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from tests import warm

pytestmark = pytest.mark.ray

PATIENCE = 240.0
"""Seconds in which a run has to reach any point, on a busy machine too."""
DEFINITION = """
name: faults
source: {name: digits}
stages:
  experts:
    {kind: experts, net: {name: convnet, depth: 2, width: 16}, count: 6, epochs: 6, batch: 64, lr: 0.05,
     keep: all, augment: flip_color, compile: false}
  distill:
    {kind: match, experts: experts, trajectory: snapshots, ipc: 2, iterations: 20, syn_steps: 8,
     expert_epochs: 2, max_start_epoch: 4, lr_image: 50, lr_student: 0.03, augment: flip_scale,
     evaluate_every: 10, evaluate_epochs: 30, compile: false}
  evaluate:
    {kind: evaluate, set: distill, seeds: 3, epochs: 60, augment: flip_scale, compile: false,
     together: false}
  report: {kind: report}
"""


class Command:
    """The command on one definition and one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.out = folder, folder / "runs"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "faults.yaml").write_text(DEFINITION, encoding="utf-8")

    def start(self, popen: type[subprocess.Popen[str]] = warm.Popen) -> subprocess.Popen[str]:
        """Start the command; what it prints goes to a file."""
        log = (self.folder / "log.txt").open("a", encoding="utf-8")
        line = [sys.executable, "-m", "rayddl", "run", "faults.yaml", "--out", "runs", "--num-cpus", "2"]
        with log:
            return popen(line, cwd=self.folder, stdout=log, stderr=log, text=True)

    def finish(self, popen: type[subprocess.Popen[str]] = warm.Popen) -> str:
        """Run it to its end; what it printed. Fails where it fails."""
        code = self.start(popen).wait(PATIENCE)
        printed = (self.folder / "log.txt").read_text(encoding="utf-8")

        assert code == 0, printed[-3000:]
        return printed

    def stage(self, name: str) -> Path | None:
        """The stage's folder, once it is there."""
        return next(iter(self.out.glob(f"{name}-*")), None)

    def files(self, stage: str, pattern: str) -> list[Path]:
        """The stage's files by pattern, without unfinished ones."""
        folder = self.stage(stage)
        return [] if folder is None else sorted(p for p in folder.glob(pattern) if ".tmp-" not in p.name)

    def interrupt(self, when: Callable[[], bool], how: signal.Signals) -> int:
        """Start the command, send a signal once ``when`` holds, and wait for its end; its exit code."""
        process = self.start()
        deadline = time.monotonic() + PATIENCE
        while not when():
            assert process.poll() is None, (self.folder / "log.txt").read_text(encoding="utf-8")[-3000:]
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(process.pid, how)
        return process.wait(PATIENCE)

    def outcome(self) -> dict[str, object]:
        """Everything that the run found out, without wall times."""
        table = pq.read_table(self.files("evaluate", "students.parquet")[0]).to_pydict()
        metrics = pq.read_table(self.files("distill", "metrics.parquet")[0]).to_pydict()
        (made,) = self.files("evaluate", "set")
        return {
            "students": list(zip(table["data"], table["net"], table["seed"], table["accuracy"], strict=True)),
            "loss": metrics["loss"],
            "short": pq.read_table(self.files("distill", "accuracy.parquet")[0]).to_pydict(),
            "set": (made / "set.safetensors").read_bytes(),
        }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Command:
    """A run that nothing disturbed, of a command that was not forked."""
    command = Command(tmp_path_factory.mktemp("whole"))
    command.finish(subprocess.Popen)
    return command


def same_experts(one: Command, other: Command) -> bool:
    files = [(a, b) for a, b in zip(*(c.files("experts", "expert-*") for c in (one, other)), strict=True)]
    return len(files) == 6 and all(
        torch.equal(load_file(a)["snapshots"], load_file(b)["snapshots"]) for a, b in files
    )


def test_killed_and_started_again(whole: Command, tmp_path: Path) -> None:
    """Killed in the middle of one stage after another, the same command ends with the same numbers bit for bit.

    Experts that were finished are not trained again.
    """
    command = Command(tmp_path / "run")
    finished: dict[Path, int] = {}
    for stage, sign, least in (
        ("experts", "expert-*", 2),
        ("distill", "snapshot-000010*", 1),
        ("evaluate", "student-distilled-*", 1),
    ):
        code = command.interrupt(
            lambda stage=stage, sign=sign, least=least: len(command.files(stage, sign)) >= least,
            signal.SIGKILL,
        )

        assert code == -signal.SIGKILL
        assert command.files(stage, "manifest.json") == []
        assert {p: p.stat().st_mtime_ns for p in finished} == finished, stage
        finished = {p: p.stat().st_mtime_ns for p in command.files("experts", "expert-*")}
        assert finished
    command.finish()

    assert {p: p.stat().st_mtime_ns for p in finished} == finished
    assert same_experts(whole, command)
    assert command.outcome() == whole.outcome()


def test_a_finished_run_is_not_done_again(whole: Command) -> None:
    """The same command on a finished run takes every stage as it is and starts no Ray."""
    before = {p: p.stat().st_mtime_ns for p in whole.out.rglob("*") if p.is_file() and p.suffix != ".json"}
    printed = whole.finish()
    last = printed[printed.rindex("experts: ") :] if "experts: " in printed else printed

    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert printed.count("starting Ray") == 1
    assert re.search(r"cached", last)
