"""Where units of work go on clusters of logical GPUs.

    uv run python -m tests.bench.layout [--seconds 60]

Ray nodes with `num_gpus` on this machine stand for machines with GPUs; a unit's work is a sleep, but for the last
case, whose students train. Everything else is rayddl's own: sizes, slots, workers. Printed for each case: how many
different GPUs were used before any had two units, how many were at work at the same time, the most units on one,
processes, and how many of them had two GPUs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests import warm
from tests.bench import machine
from tests.cluster.conftest import Nodes

CASES = {
    "5 students on 4 GPUs": (5, ["CPU:4,GPU:4"]),
    "8 experts on 3 nodes of 4 GPUs": (8, ["CPU:4,GPU:4"] * 3),
    "100 experts on 8 nodes of 8 GPUs": (100, ["CPU:16,GPU:8"] * 8),
}
LARGE = "3 students of a large network on 2 GPUs of 1 GiB"


def unit(seconds: float) -> dict[str, Any]:
    """A unit of work: where it was, and from when to when."""
    import ray

    from rayddl.stages.runtime import devices

    began = time.time()
    time.sleep(seconds)
    gpu = f"{ray.get_runtime_context().get_node_id()[:8]}/{devices.assigned()[0]}"
    return {"gpu": gpu, "process": f"{gpu[:8]}/{os.getpid()}", "began": began, "ended": time.time()}


def driver(address: str, units: int, seconds: float) -> list[dict[str, Any]]:
    """In a process of its own: the units on the cluster, by the stages' own means."""
    from rayddl.stages.runtime import cluster, sizes, workers

    cluster.configure(address=address)
    cluster.start()
    share = cluster.spread(sizes.Resources(), units=units)
    with workers.opened(share, "unit") as free:
        found = [row for _, row in free.each(range(units), lambda _: (unit, seconds), lambda i: f"unit {i}")]
    cluster.stop()
    return found


def figures(rows: Sequence[dict[str, Any]]) -> dict[str, str]:
    """What the layout was."""
    rows = sorted(rows, key=lambda row: row["began"])
    before: set[str] = set()
    for k, row in enumerate(rows):
        if any(other["gpu"] == row["gpu"] and other["ended"] > row["began"] for other in rows[:k]):
            break
        before.add(row["gpu"])
    most, at_once = 0, 0
    for row in rows:
        here = Counter(o["gpu"] for o in rows if o["began"] <= row["began"] < o["ended"])
        most, at_once = max(most, *here.values()), max(at_once, len(here))
    homes = defaultdict(set)
    for row in rows:
        homes[row["process"]].add(row["gpu"])
    return {
        "GPUs used before one is shared": str(len(before)),
        "GPUs at work at once": str(at_once),
        "most units on one": str(most),
        "processes": str(len(homes)),
        "of them on two GPUs": str(sum(len(found) > 1 for found in homes.values())),
        "seconds": f"{max(r['ended'] for r in rows) - min(r['began'] for r in rows):.0f}",
    }


def large(folder: Path) -> list[dict[str, Any]]:
    """Three students of a wide ConvNet, whose training takes more than half of a logical GPU."""
    definition = """
name: large
source: {name: digits}
stages:
  some: {kind: coreset, method: random, ipc: 20}
  judged:
    {kind: evaluate, set: some, nets: [{name: convnet, depth: 1, width: 1024}], seeds: 3, epochs: 40, random: false,
     compile: false, together: false}
"""
    (folder / "large.yaml").write_text(definition)
    record = folder / "placed.jsonl"
    switch = {"RAYDDL_LOGICAL_GPUS": str(record), "RAYDDL_LOGICAL_GPU_BYTES": str(2**30)}
    with Nodes.up(folder / "nodes.txt", "CPU:2,GPU:2") as nodes:
        run = [sys.executable, "-m", "rayddl", "run", str(folder / "large.yaml"), "--address", nodes.address]
        subprocess.run([*run, "--out", str(folder / "runs")], env={**os.environ, **switch}, check=True)
    return [json.loads(line) for line in record.read_text().splitlines()]


def main() -> None:
    """Measure and print."""
    parser = machine.parser(__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="of a unit's work")
    parser.add_argument("--only", choices=[*CASES, LARGE])
    parser.add_argument("--driver", nargs=2, metavar=("ADDRESS", "UNITS"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.driver:
        print(json.dumps(driver(given.driver[0], int(given.driver[1]), given.seconds)))
        return
    # Where units go does not depend on how their processes start.
    os.environ["PYTHONPATH"] = warm.python_path(os.environ.get("PYTHONPATH", ""))
    warm.start()
    print(machine.figures(), flush=True)
    rows = []
    for case, (units, nodes) in CASES.items():
        if given.only not in (None, case):
            continue
        with tempfile.TemporaryDirectory() as folder, Nodes.up(Path(folder) / "nodes.txt", *nodes) as up:
            words = [sys.executable, "-m", __name__ if __name__ != "__main__" else "tests.bench.layout"]
            words += ["--seconds", str(given.seconds), "--driver", up.address, str(units)]
            told = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout
        rows.append({"case": case, **figures(json.loads(told.splitlines()[-1]))})
        print(rows[-1], flush=True)
    if given.only in (None, LARGE):
        with tempfile.TemporaryDirectory() as folder:
            for row in large(Path(folder)):
                print(row, flush=True)
    if rows:
        print(machine.table(rows))


if __name__ == "__main__":
    main()
