"""A node that is lost with idle workers, and tasks that reserve no CPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests import warm

pytestmark = pytest.mark.ray


def test_idle_workers_of_a_lost_node_cost_a_unit_one_try(bench, tmp_path: Path) -> None:
    """The unit at work there goes on once another node comes: those beside it that were idle, and more of them than a
    unit is tried again, are not given it one after another. The head runs no task.
    """
    with bench.Nodes.up(tmp_path / "log.txt", "CPU:1,GPU:6") as nodes:
        words = [
            sys.executable,
            str(Path(__file__).with_name("idle.py")),
            nodes.address,
            str(tmp_path / "lost"),
        ]
        with warm.Popen(words, stdout=subprocess.PIPE, text=True) as driver:
            assert driver.stdout is not None
            assert driver.stdout.readline() == "[0, 1, 2, 3] 0\n"
            assert driver.stdout.readline() == "idle 6\n"
            assert driver.stdout.readline() == "begun\n"
            nodes.say("remove")
            (tmp_path / "lost").touch()
            nodes.say("add CPU:1,GPU:6")
            assert "[(6, 6)]\n" in driver.stdout.readlines()  # beside Ray's own on the lost node
