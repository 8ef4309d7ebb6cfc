"""Stages that run at the same time on nodes with logical GPUs, with the bits of stages that run one by one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1200)]

NET = "{name: convnet, depth: 1, width: 8}"
DEFINITION = f"""
name: side
source: {{name: digits}}
stages:
  experts: {{kind: experts, net: {NET}, count: 3, epochs: 4, batch: 256, augment: flip_color, compile: false}}
  teacher:
    {{kind: teacher, net: {{name: convnet, depth: 1, width: 8, norm: batch}}, epochs: 1, augment: crop,
     allow_weak: true, compile: false, resources: {{num_cpus: 1}}}}
  match-a: &match
    {{kind: match, experts: experts, ipc: 1, iterations: 12, syn_steps: 4, expert_epochs: 1, max_start_epoch: 3,
     lr_image: 20, lr_student: 0.05, augment: flip_color, compile: false, resources: {{num_cpus: 1}}}}
  match-b: {{<<: *match, lr_image: 10}}
  a-short: &evaluation {{kind: evaluate, set: match-a, seeds: 1, epochs: 5, compile: false, random: false}}
  a-long: {{<<: *evaluation, epochs: 8}}
  b-short: {{<<: *evaluation, set: match-b}}
  b-long: {{<<: *evaluation, set: match-b, epochs: 8}}
"""
MATCHES, EVALUATIONS = ("match-a", "match-b"), ("a-short", "a-long", "b-short", "b-long")


@pytest.fixture(scope="module")
def gpus(bench: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A node of a CPU, and two of two CPUs and two logical GPUs each."""
    log = tmp_path_factory.mktemp("gpus") / "log.txt"
    with bench.Nodes.up(log, "CPU:1", "CPU:2,GPU:2", "CPU:2,GPU:2") as cluster:
        yield cluster


def spans(log: str) -> dict[str, tuple[int, int]]:
    """The lines of the log at which each stage starts and ends."""
    found: dict[str, list[int]] = {}
    for number, line in enumerate(log.splitlines()):
        stage, _, rest = line.partition(": ")
        if rest == "started" or rest.startswith("done after"):
            found.setdefault(stage, []).append(number)
    return {stage: (start, end) for stage, (start, end) in found.items()}


def overlapping(found: dict[str, tuple[int, int]], one: str, other: str) -> bool:
    """Whether both stages have started before either has ended."""
    return max(found[one][0], found[other][0]) < min(found[one][1], found[other][1])


def test_stages_overlap_with_the_same_bits(bench: Any, gpus: Any, tmp_path: Path) -> None:
    """Teacher and experts, both matches, and the evaluations of a set run at the same time on four GPUs. Sets and
    figures are those of a local Ray of one CPU, where each stage ends before the next one starts.
    """
    placed = tmp_path / "side" / "placed.jsonl"
    side = bench.Run(tmp_path / "side", gpus.address, "", DEFINITION, {"RAYDDL_LOGICAL_GPUS": str(placed)})
    side.finish(side.start(), 800)
    found = spans(side.log)
    for pair in (("experts", "teacher"), MATCHES):
        assert overlapping(found, *pair), (pair, side.log[-3000:])
    # Those of the match that ends first: the other match and the teacher leave them two GPUs.
    assert any(overlapping(found, *pair) for pair in (EVALUATIONS[:2], EVALUATIONS[2:])), side.log[-3000:]
    rows = [json.loads(line) for line in placed.read_text().splitlines()]
    loops = {(row["node"], row["gpu"], row["process"]) for row in rows if row["unit"] == "match"}
    assert len({place[:2] for place in loops}) == 2

    turns = bench.Run(tmp_path / "turns", "", "", DEFINITION)
    turns.finish(turns.start("--num-cpus", "1"), 800)
    found = spans(turns.log)
    assert not any(overlapping(found, one, other) for one in found for other in found if one < other)
    for match in MATCHES:
        name = "set/set.safetensors"
        assert side.file(match, name).read_bytes() == turns.file(match, name).read_bytes()
    for stage in EVALUATIONS:
        one, other = (pq.read_table(run.file(stage, "students.parquet")) for run in (side, turns))
        assert one.select(["data", "seed", "accuracy"]) == other.select(["data", "seed", "accuracy"])
    observers = [run.file("teacher", "observer/observer.safetensors").read_bytes() for run in (side, turns)]
    assert observers[0] == observers[1]
