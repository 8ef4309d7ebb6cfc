"""A search whose command is killed with SIGKILL in the middle, and started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests import warm

pytestmark = pytest.mark.ray

PATIENCE = 280.0
"""Seconds in which a run has to reach any point, on a busy machine too."""
TRIALS = 7
DEFINITION = f"""
name: search
source: {{name: digits}}
stages:
  experts:
    {{kind: experts, net: {{name: convnet, depth: 1, width: 4}}, count: 1, epochs: 3, batch: 256, lr: 0.05,
     augment: none, compile: false}}
  distill:
    {{kind: match, experts: experts, ipc: 1, iterations: 12, syn_steps: 3, expert_epochs: 1, max_start_epoch: 2,
     lr_image: 5, lr_student: 0.03, augment: none, evaluate_every: 4, evaluate_epochs: 20, compile: false}}
  search:
    {{kind: tune, of: distill, samples: {TRIALS}, scheduler: asha, held_out: 1,
     space: {{lr_image: {{loguniform: [1, 1000]}}, lr_student: {{loguniform: [0.005, 0.2]}}}}}}
"""


def test_killed_in_mid_search_and_started_again(tmp_path: Path) -> None:
    """The same command goes on: no trial that had ended runs again, and the outcome is complete."""
    (tmp_path / "search.yaml").write_text(DEFINITION, encoding="utf-8")
    process = _start(tmp_path)
    deadline = time.monotonic() + PATIENCE
    while len(_ended(tmp_path)) < 2:
        assert process.poll() is None, _log(tmp_path)
        assert time.monotonic() < deadline, _log(tmp_path)
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait(PATIENCE)
    before = {path: path.stat().st_mtime_ns for path in _ended(tmp_path)}
    code = _start(tmp_path).wait(PATIENCE)
    (folder,) = (tmp_path / "runs").glob("search-*")
    table = pq.read_table(folder / "trials.parquet").to_pydict()

    assert code == 0, _log(tmp_path)
    assert 2 <= len(before) < TRIALS
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert table["trial"] == list(range(TRIALS))
    assert (folder / "best.yaml").is_file()
    assert (folder / "set" / "set.json").is_file()
    assert (folder / "manifest.json").is_file()
    assert not (folder / "work").exists()


def _start(folder: Path) -> subprocess.Popen[str]:
    line = [sys.executable, "-m", "rayddl", "run", "search.yaml", "--out", "runs", "--num-cpus", "2"]
    with (folder / "log.txt").open("a", encoding="utf-8") as log:
        return warm.Popen(line, cwd=folder, stdout=log, stderr=log, text=True)


def _log(folder: Path) -> str:
    return (folder / "log.txt").read_text(encoding="utf-8")[-3000:]


def _ended(folder: Path) -> list[Path]:
    return sorted(p for p in (folder / "runs").glob("search-*/trials/*.json") if ".tmp-" not in p.name)
