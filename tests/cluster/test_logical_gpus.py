"""Runs on nodes with logical GPUs: every stage kind, where its workers are, and what it costs to lose some."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors.torch import load_file

from rayddl.pipeline.definition.load import load as load_definition
from rayddl.stages.context import Context, Input
from rayddl.stages.rded import stage as rded
from rayddl.stages.runtime.in_process import InProcess
from rayddl.storage import Folder
from tests import warm

pytestmark = pytest.mark.ray

EVERY_KIND = """
name: kinds
source: {name: digits}
stages:
  experts: {kind: experts, net: together, count: 4, epochs: 4, batch: 256, augment: flip_color, compile: false}
  distill: &distill
    {kind: match, experts: experts, ipc: 1, iterations: 12, syn_steps: 4, expert_epochs: 1, max_start_epoch: 3,
     lr_image: 20, lr_student: 0.05, augment: flip_color, compile: false, evaluate_every: 6, evaluate_epochs: 5,
     resources: {num_cpus: 0.5}}
  other: {<<: *distill, lr_image: 10, evaluate_every: null}
  four: {<<: *distill, workers: 4, iterations: 4, evaluate_every: null, resources: {}}
  teacher:
    {kind: teacher, net: {name: convnet, depth: 1, width: 8, norm: batch}, epochs: 1, augment: crop,
     allow_weak: true, compile: false, resources: {num_cpus: 0.5}}
  picked: {kind: rded, teacher: teacher, ipc: 1, factor: 1, mipc: 60, num_crops: 5, precision: fp32}
  herded: {kind: coreset, method: herding, ipc: 1, features: teacher, resources: {at_once: 1}}
  hard: &hard {kind: evaluate, set: distill, seeds: 2, epochs: 5, compile: false, together: false, random: false}
  longer: {<<: *hard, epochs: 8}
  soft: {kind: evaluate, set: picked, observer: teacher, seeds: 1, epochs: 1, random: false, compile: false}
  searched: &search
    {kind: tune, of: distill, samples: 2, space: {lr_image: {choice: [10, 30]}}, searcher: random, held_out: 1,
     max_iterations: 2, report_every: 2, resources: {at_once: 1}}
  found: {<<: *search, of: picked, space: {num_crops: {choice: [2, 3]}}, max_iterations: null,
     report_every: null, students: {epochs: 1}}
  report: {kind: report}
"""
PLUGIN = """
import os, pathlib, time
import ray
import rayddl

BEGUN = pathlib.Path("FOLDER")

def together(num_classes, channels, size):
    from rayddl.nets.build import build
    from rayddl.nets.config import NetConfig

    if ray.is_initialized() and ray.get_runtime_context().get_accelerator_ids()["GPU"]:
        (BEGUN / str(os.getpid())).touch()
        deadline = time.monotonic() + 100
        while len(list(BEGUN.iterdir())) < 3 and time.monotonic() < deadline:
            time.sleep(0.05)
    return build(NetConfig(name="convnet", depth=1, width=8), (channels, size, size), num_classes, seed=0)

plugin = rayddl.Plugin(name="together", nets={"together": together})
"""
"""Its network begins on a GPU once three processes have begun: none does the work of all, and the teacher has a GPU."""
EXPERTS = EVERY_KIND.partition("  distill:")[0]
SETS = ("distill", "other", "four", "picked", "herded", "searched", "found")
EVALUATIONS = ("hard", "longer", "soft")


@pytest.fixture(scope="module")
def gpus(bench: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A node of a CPU, and two of two CPUs and two logical GPUs each."""
    log = tmp_path_factory.mktemp("gpus") / "log.txt"
    with bench.Nodes.up(log, "CPU:1", "CPU:2,GPU:2", "CPU:2,GPU:2") as cluster:
        yield cluster


def placed(folder: Path) -> list[dict[str, Any]]:
    """What was recorded of each unit: node, GPU, process, unit."""
    return [json.loads(line) for line in (folder / "placed.jsonl").read_text().splitlines()]


def switched(folder: Path, **more: str) -> dict[str, str]:
    """The environment in which logical GPUs stand for real ones."""
    return {"RAYDDL_LOGICAL_GPUS": str(folder / "placed.jsonl"), **more}


def run_every_kind(bench: Any, folder: Path, address: str, *options: str, **environment: str) -> Any:
    """A finished run of every stage kind."""
    run = bench.Run(folder, address, "", EVERY_KIND, environment)
    begun = folder / "gpus"
    begun.mkdir()
    (folder / "together.py").write_text(PLUGIN.replace("FOLDER", str(begun)))
    run.finish(run.start("--plugin", "together.py", *options))
    return run


@pytest.fixture(scope="module")
def everything(bench: Any, gpus: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Every stage kind, on logical GPUs."""
    folder = tmp_path_factory.mktemp("kinds")
    # A whole GPU for the matching, whose short evaluations take a part of it.
    whole = "distill.resources.num_gpus=1"
    return run_every_kind(bench, folder, gpus.address, "--set", whole, **switched(folder))


@pytest.fixture(scope="module")
def in_turn(bench: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The same on a local Ray of one CPU."""
    return run_every_kind(bench, tmp_path_factory.mktemp("plain"), "", "--num-cpus", "1")


def test_every_kind_has_the_bits_of_a_cpu(everything: Any, in_turn: Any) -> None:
    """Experts, sets, winners, observer and figures are those of a local Ray without GPUs."""
    for stage in SETS:
        name = "set/set.safetensors"
        assert everything.file(stage, name).read_bytes() == in_turn.file(stage, name).read_bytes(), stage
    for stage in EVALUATIONS:
        one, other = (pq.read_table(run.file(stage, "students.parquet")) for run in (everything, in_turn))
        assert one.select(["data", "seed", "accuracy"]) == other.select(["data", "seed", "accuracy"])
    for path in sorted(everything.folder.glob("runs/experts-*/expert-*.safetensors")):
        here, there = (load_file(p) for p in (path, in_turn.file("experts", path.name)))
        assert all(here[k].equal(there[k]) for k in here if k != "history")
    winners, observers = "winners.parquet", "observer/observer.safetensors"
    assert pq.read_table(everything.file("picked", winners)) == pq.read_table(in_turn.file("picked", winners))
    one, other = (run.file("teacher", observers).read_bytes() for run in (everything, in_turn))
    assert one == other


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


def test_stages_overlap_where_there_is_room(everything: Any, in_turn: Any) -> None:
    """On four GPUs teacher and experts, both matches, and evaluations and other stages run at the same time; on one CPU
    only the matches, of half a CPU each.
    """
    found = spans(everything.log)
    for pair in (("experts", "teacher"), ("distill", "other")):
        assert overlapping(found, *pair), (pair, everything.log[-3000:])
    # Which ones are beside them depends on who asks for the last GPU first.
    others = [stage for stage in found if stage not in EVALUATIONS]
    assert any(overlapping(found, one, other) for one in EVALUATIONS for other in others), everything.log[
        -3000:
    ]
    found = spans(in_turn.log)
    for pair in (("experts", "teacher"), ("hard", "longer")):
        assert not overlapping(found, *pair), (pair, in_turn.log[-3000:])


def test_a_process_has_one_gpu_for_good(everything: Any) -> None:
    """Whatever units a process does, it does them on the GPU that it was given first."""
    where = defaultdict(set)
    for row in placed(everything.folder):
        where[row["process"]].add((row["node"], row["gpu"]))
    assert all(len(found) == 1 for found in where.values())


def test_every_kind_is_on_gpus(everything: Any) -> None:
    """Each kind's units are recorded on logical GPUs, and those of many workers on different ones."""
    units = defaultdict(set)
    for row in placed(everything.folder):
        units[row["unit"].rstrip("0123456789–")].add((row["node"], row["gpu"]))
    assert len(units["match window "] | units["match"]) == 4
    assert len(units["expert "]) >= 3
    for kind in ("expert ", "teacher", "rded judge", "coreset of classes ", "trial ", "match"):
        assert units[kind], kind
    assert any(kind.startswith("student distilled") for kind in units)


def test_short_evaluations_share_the_gpu_of_the_matching(everything: Any) -> None:
    """They run on its GPU in processes of their own, not on CPUs that wait for an end; those of a trial in its own."""
    rows = placed(everything.folder)
    doing = {
        unit: {r["process"] for r in rows if r["unit"].startswith(unit)}
        for unit in ("match", "trial", "student short together")
    }
    apart = doing["student short together"] - doing["trial"]
    assert apart
    assert not apart & doing["match"]
    loops = {(r["node"], r["gpu"]) for r in rows if r["unit"] == "match"}
    short = {(r["node"], r["gpu"]) for r in rows if r["process"] in apart}
    assert len(short) == 1
    assert short <= loops


def test_two_meta_batches_at_once_both_finish(bench: Any, gpus: Any, everything: Any, tmp_path: Path) -> None:
    """Two runs want all GPUs of the cluster, four workers each: neither holds half of them and waits."""
    (trained,) = everything.folder.glob("runs/experts-*")
    runs = []
    for rate in (10, 30):
        folder = tmp_path / str(rate)
        shutil.copytree(trained, folder / "runs" / trained.name)
        four = f"""  four:
    {{kind: match, experts: experts, ipc: 1, workers: 4, iterations: 30, syn_steps: 4, expert_epochs: 1,
     max_start_epoch: 3, lr_image: {rate}, lr_student: 0.05, augment: flip_color, compile: false}}
"""
        runs.append(bench.Run(folder, gpus.address, "", EXPERTS + four, switched(folder)))
    processes = [run.start("--plugin", str(everything.folder / "together.py")) for run in runs]
    for run, process in zip(runs, processes, strict=True):
        run.finish(process)
        units = [row["unit"] for row in placed(run.folder)]
        assert not any(unit.startswith("expert") for unit in units)
        rows = [r for r in placed(run.folder) if r["unit"].startswith("match window")]
        assert len({(r["node"], r["gpu"]) for r in rows}) == 3


SMALL = """
name: small
source: {name: digits}
stages:
  teacher:
    {kind: teacher, net: {name: convnet, depth: 1, width: 8, norm: batch}, epochs: 1, augment: crop,
     allow_weak: true, compile: false}
  picked: {kind: rded, teacher: teacher, ipc: 1, factor: 1, mipc: 60, num_crops: 5, precision: fp32}
"""


def test_a_node_of_one_cpu_and_one_gpu_is_enough(bench: Any, tmp_path: Path) -> None:
    """Cutters and judges share its CPU: neither takes it whole and waits for the other."""
    with bench.Nodes.up(tmp_path / "log.txt", "CPU:1,GPU:1") as one:
        run = bench.Run(tmp_path / "run", one.address, "", SMALL, switched(tmp_path))
        run.finish(run.start())
    assert {row["unit"] for row in placed(tmp_path)} >= {"teacher", "rded judge"}


IMAGES, TOGETHER = int(os.environ.get("RAYDDL_TEST_STREAM", "5000")), 8
"""Images of the stream, and how many of them are one chunk; `RAYDDL_TEST_STREAM=40000` makes it 5,000 chunks, which
take longer than a test may: `-o timeout=0 -o faulthandler_timeout=0`."""
JUDGE, CUTTER = "ray::MapWorker(MapBatches(RdedJudge", "ray::MapBatches(rded_cut"
STREAM = """
name: stream
source: {name: parquet, root: "ROOT"}
stages:
  teacher:
    {kind: teacher, net: {name: convnet, depth: 1, width: 8, norm: batch}, epochs: 1, augment: crop,
     allow_weak: true, compile: false, batch: 500, resources: {num_cpus: 1}}
  picked: {kind: rded, teacher: teacher, ipc: 3, factor: 1, mipc: MIPC, num_crops: 2, precision: fp32}
"""


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny images of ten classes as Parquet, in row groups of a thousand."""
    folder = tmp_path_factory.mktemp("many")
    draws = np.random.default_rng(0)
    for split, count in (("train", IMAGES), ("test", 200)):
        labels = np.arange(count) % 10
        pixels = draws.integers(0, 256, (count, 8, 8), dtype=np.uint8) // 4 + 16 * labels[:, None, None]
        images = []
        for picture in pixels.astype(np.uint8):
            sink = io.BytesIO()
            Image.fromarray(picture).save(sink, "PNG", compress_level=0)
            images.append(sink.getvalue())
        table = pa.table({"image": images, "label": [f"c{label}" for label in labels]})
        pq.write_table(table, folder / f"{split}-00000.parquet", row_group_size=1000)
    return folder


def test_a_stream_of_many_chunks_and_three_losses(bench: Any, gpus: Any, many: Path, tmp_path: Path) -> None:
    """Cutters and judges apart on three nodes; a judge, a cutter and a node are killed: the winners of one process."""
    folder = tmp_path / "run"
    chunks = {"CHUNK": str(TOGETHER)}
    definition = STREAM.replace("MIPC", str(IMAGES // 10))
    run = bench.Run(folder, gpus.address, str(many), definition, switched(folder, **chunks))
    process = run.start()
    for goal, title in ((IMAGES // 40, JUDGE), (IMAGES // 20, CUTTER)):
        run.until(lambda goal=goal: run.units("cut") * TOGETHER >= goal, process)
        assert kill(gpus, title), title
    run.until(lambda: run.units("cut") * TOGETHER >= IMAGES // 10, process)
    gpus.say("remove CPU:2,GPU:2")
    run.finish(process)
    assert run.units("cut") == IMAGES // TOGETHER
    alone = without_ray(run, tmp_path / "alone")
    assert pq.read_table(run.file("picked", "winners.parquet")) == pq.read_table(alone)


def without_ray(run: Any, out: Path) -> Path:
    """The winners of the run's stage ``picked``, selected in this process with the run's teacher."""
    loaded = load_definition(str(run.folder / "nodes.yaml"))
    (config,) = (stage.config for stage in loaded.stages if stage.name == "picked")
    observer = run.file("teacher", "observer/observer.safetensors").parents[1]
    teacher = Input("teacher", "teacher", Folder(str(observer)), {}, {})
    context = Context(
        "picked", loaded.source, loaded.seed, Folder(str(out)), {"teacher": teacher}, {}, backend=InProcess()
    )
    with pytest.MonkeyPatch.context() as patch:
        # Objects are shared by handing them on.
        for name in ("ray.put", "ray.get"):
            patch.setattr(name, lambda value: value)
        rded.run(config, context)
    return out / "winners.parquet"


def kill(nodes: Any, title: str) -> bool:
    """Kill a worker of the cluster that does what ``title`` says, as soon as there is one."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for worker in nodes.workers(title):
            os.kill(worker, signal.SIGKILL)
            return True
        time.sleep(0.02)
    return False


def test_what_a_stage_holds_is_free_after_it(gpus: Any, everything: Any) -> None:
    """A run that has ended leaves no group, and no process of its own on a GPU."""
    script = (
        "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False)\n"
        "from ray.util.placement_group import placement_group_table\n"
        "print([g['state'] for g in placement_group_table().values() if g['state'] != 'REMOVED'],"
        " ray.cluster_resources()['GPU'] - ray.available_resources().get('GPU', 0))"
    )
    found = warm.run(
        [sys.executable, "-c", script, gpus.address], stdout=subprocess.PIPE, text=True, timeout=60
    )
    assert found.stdout.strip() == "[] 0.0"
    del everything
