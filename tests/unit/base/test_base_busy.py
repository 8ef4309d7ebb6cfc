"""A run on this machine says so if other processes use the processors that it was going to use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rayddl.stages.runtime import cluster, machine


def stat(root: Path, user: int, idle: int) -> None:
    (root / "proc").mkdir(exist_ok=True)
    (root / "proc/stat").write_text(f"cpu  {user} 10 20 {idle} 5 1 2 0 0 0\ncpu0 1 2 3 4 5 6 7 0 0 0\n")


def test_busy_processors_are_counted_from_the_kernels_ticks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    clock = iter([100.0, 102.0])
    monkeypatch.setattr(machine, "cpus", lambda root: os.cpu_count())
    monkeypatch.setattr(machine.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(machine.time, "sleep", lambda _: stat(tmp_path, 1000 + 3 * ticks, 900 + ticks))
    stat(tmp_path, 1000, 900)
    assert machine.busy_cpus(root=tmp_path) == pytest.approx(1.5)


def test_unknown_use_counts_as_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.time, "sleep", lambda _: None)
    monkeypatch.setattr(machine, "cpus", lambda root: os.cpu_count())
    assert machine.busy_cpus(root=tmp_path) == 0
    monkeypatch.setattr(machine, "cpus", lambda root: (os.cpu_count() or 1) + 1)
    stat(tmp_path, 1, 1)
    assert machine.busy_cpus(root=tmp_path) == 0


@pytest.mark.parametrize(
    ("wanted", "used", "advice"),
    [(8, 3.2, "--num-cpus 5"), (8, 8.0, "--num-cpus 1"), (8, 0.4, ""), (4, 3.2, ""), (1, 8.0, "")],
)
def test_a_shared_machine_is_noted_with_what_to_do(
    wanted: int, used: float, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(cluster._wanted, "note", said.append)
    monkeypatch.setattr(machine, "cpus", lambda: 8)
    monkeypatch.setattr(machine, "busy_cpus", lambda: used)
    cluster._note_if_shared(wanted)
    assert len(said) == bool(advice)
    assert all(f"use {used} of this machine's 8 CPUs" in text and advice in text for text in said)
