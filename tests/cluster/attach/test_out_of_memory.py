"""Workers that Ray's memory monitor kills are tried a bounded number of times, and the figures reach the user."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rayddl.stages.runtime import failures, machine
from tests import warm

pytestmark = pytest.mark.ray
NEEDED_GIB = 10
"""What has to be free: 2 GiB are taken, more if the monitor is late, and other tests run beside this one."""

ROUNDED = 0.06
"""By how much two figures in GiB differ at most of which one has one digit after the point, and the other has two."""


def eaten(max_retries: int, **variables: str) -> dict[str, Any]:
    """How a task ended that takes more memory than it may."""
    free = machine.free_bytes() / 2**30
    if free < NEEDED_GIB:
        pytest.skip(
            f"{free:.0f} GiB of memory are free, and {NEEDED_GIB} are needed to run out of some of it"
        )
    here = Path(__file__)
    ended = subprocess.run(
        [sys.executable, str(here.with_name("eats.py")), str(max_retries)],
        env={**os.environ, "PYTHONPATH": warm.python_path(str(here.parents[3])), **variables},
        capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-3000:]
    told: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return told


def test_a_task_that_ray_tries_again() -> None:
    """A task that never fits ends by itself, after the tries that rayddl allows: Ray's default has no limit. The
    message has what the worker needs, what its node has, and what to change.
    """
    told = eaten(max_retries=3)

    assert told["ended"], told
    # One that is killed before it begins, because others take memory meanwhile, was tried as well.
    assert told["begun"] <= failures.OOM_RETRIES + 1
    assert (told["out_of_memory"], told["lost"]) == (True, False)
    needs, has, whole, most, others = (
        float(figure)
        for figure in re.search(
            r"needs more than ([\d.]+) GiB, and node \S+ has ([\d.]+) GiB for it: of ([\d.]+) GiB at most ([\d.]+) may "
            r"be used, and other processes hold ([\d.]+)\.",
            told["message"],
        ).groups()
    )
    # What is the machine's and was asked for, in GiB.
    assert whole == pytest.approx(machine.memory_bytes() / 2**30, abs=ROUNDED)
    assert most == pytest.approx(told["limit"], abs=ROUNDED)
    # Ray reads the node and the worker at two moments, between which others may take or return memory: the figures are
    # compared with its own report of these two readings, not with each other.
    said = told["said"]
    killed = [line for line in said.splitlines() if "Selected to kill" in line] or [said]
    held = max(float(each) for each in re.findall(r"memory used=([\d.]+)GB", "\n".join(killed)))
    used, limit = map(float, re.search(r"([\d.]+)GB(?: used)? / ([\d.]+)GB", said).groups())
    assert limit == pytest.approx(whole, abs=ROUNDED)
    assert needs == pytest.approx(held, abs=ROUNDED)
    assert others == pytest.approx(max(0, used - held), abs=ROUNDED)
    assert has == pytest.approx(max(0, most - others), abs=3 * ROUNDED)
    assert "resources.at_once" in told["message"]
    assert "a node with more memory" in told["message"]
