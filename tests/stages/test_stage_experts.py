"""The experts stage: what it leaves, that workers do not matter, and that it goes on where it stopped."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
import torch
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.torch import load
from torch import Tensor

from rayddl import seeds
from rayddl.methods.training.observer import Observer, frozen
from rayddl.methods.trajectories import files
from rayddl.methods.trajectories.convex import convexify
from rayddl.methods.trajectories.curriculum import el2n
from rayddl.methods.trajectories.expert import Training
from rayddl.nets.build import build, initial
from rayddl.nets.config import NetConfig
from rayddl.seeds import derive
from rayddl.stages.context import Input
from rayddl.stages.experts import stage as experts
from rayddl.stages.experts import worker as expertwork
from rayddl.stages.experts.artifact import ExpertsTask
from rayddl.stages.match import stage as match
from rayddl.stages.runtime import workers
from rayddl.stages.runtime.sizes import Share
from rayddl.stages.runtime.sources import fit_space, publish
from rayddl.stages.settings import without_resources
from rayddl.storage import Folder
from tests.experts import train_expert
from tests.raising import raises

pytestmark = pytest.mark.ray

COUNT, EPOCHS = 3, 5
PARAMETERS = 80 + 16 + 16 * 8 * 10 + 10
"""One 3x3 convolution of 8 channels, its norm, and the classifier on 4x4 positions."""


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def header(made: Any, index: int) -> dict[str, Any]:
    with safe_open(str(made.out.local / files.file_name(index)), framework="pt") as file:
        read: dict[str, Any] = json.loads(file.metadata()["rayddl"])
    return read


def test_a_folder_holds_one_file_per_expert_the_space_and_the_table(convex):
    """The folder holds the experts, their pixel space and their curves, and nothing unfinished."""
    experts = [f"expert-{i:04d}.safetensors" for i in range(COUNT)]
    assert convex.out.names() == [*experts, "metrics.parquet", "space.json", "space.safetensors"]


def test_the_table_has_a_row_per_expert_and_epoch_from_the_start(convex):
    """Epoch 0 is the untrained network, without a loss; every epoch after it has all figures."""
    table = convex.table("metrics.parquet")
    assert list(table) == ["expert", "epoch", "train_loss", "test_accuracy", "step_norm", "seconds"]
    assert table["expert"] == [i for i in range(COUNT) for _ in range(EPOCHS + 1)]
    assert table["epoch"] == list(range(EPOCHS + 1)) * COUNT
    rows = np.array([table[c] for c in ("train_loss", "test_accuracy", "step_norm", "seconds")]).T
    start = np.array(table["epoch"]) == 0
    assert np.isnan(rows[start, 0]).all()
    assert (rows[start, 2:] == 0).all()
    assert np.isfinite(rows[~start]).all()
    assert (rows[~start, 2:] > 0).all()
    assert ((rows[:, 1] >= 0) & (rows[:, 1] <= 1)).all()


def test_the_table_says_what_the_snapshots_say(whole, stages):
    """Accuracies and step lengths in the table are those of the stored snapshots."""
    table, test = whole.table("metrics.parquet"), stages.splits[1]
    for index in range(COUNT):
        snapshots = whole.expert(index)["snapshots"]
        moved = (snapshots[1:].double() - snapshots[:-1].double()).norm(dim=1)
        rows = slice(index * (EPOCHS + 1), (index + 1) * (EPOCHS + 1))
        assert table["step_norm"][rows] == pytest.approx([0.0, *moved.tolist()], rel=1e-12)
        hits = [
            float((stages.steps.logits(theta, test.x).argmax(1) == test.y).double().mean())
            for theta in snapshots
        ]
        assert table["test_accuracy"][rows] == pytest.approx(hits, abs=1.5 / len(test.y))


def test_experts_learn_and_are_different(whole):
    """Every expert ends far above chance, and no two are the same."""
    table = whole.table("metrics.parquet")
    final = [table["test_accuracy"][(i + 1) * (EPOCHS + 1) - 1] for i in range(COUNT)]
    assert min(final) > 0.5
    assert len({whole.expert(i)["snapshots"].numpy().tobytes() for i in range(COUNT)}) == COUNT


def test_the_summary_counts_what_is_on_disk(convex, stages):
    """The summary's figures are those of the files and the table."""
    summary, table = convex.summary, convex.table("metrics.parquet")
    on_disk = sum((convex.out.local / files.file_name(i)).stat().st_size for i in range(COUNT))
    final = [table["test_accuracy"][(i + 1) * (EPOCHS + 1) - 1] for i in range(COUNT)]
    assert summary["bytes_kept"] == on_disk
    assert summary["parameters"] == PARAMETERS
    assert summary["bytes_snapshots"] == COUNT * (EPOCHS + 1) * PARAMETERS * 4
    assert summary["bytes_kept"] < summary["bytes_snapshots"]
    assert summary["test_accuracy"] == pytest.approx({"mean": np.mean(final), "std": np.std(final)})
    expected = {
        "count": COUNT,
        "epochs": EPOCHS,
        "keep": "convex",
        "waypoints": [0, EPOCHS],
        "net": {"name": "convnet", "depth": 1, "width": 8, "norm": "instance"},
        "classes": list(stages.source.train.classes),
        "space": f"normalise:{stages.source.fingerprint}",
        "shape": [1, 8, 8],
    }
    assert {key: summary[key] for key in expected} == expected
    assert summary["seconds"] > 0


def test_keep_all_stores_every_snapshot_and_says_so(whole):
    """``keep: all`` leaves a row per epoch in float32, from the fresh network on."""
    assert whole.summary["waypoints"] is None
    for index in range(COUNT):
        tensors = whole.expert(index)
        assert set(tensors) == {"snapshots", "history"}
        assert (tuple(tensors["snapshots"].shape), tensors["snapshots"].dtype) == (
            (EPOCHS + 1, PARAMETERS),
            torch.float32,
        )
        assert header(whole, index)["keep"] == "all"


def test_keep_convex_stores_the_same_training_convexified(whole, convex):
    """``keep: convex`` trains the very same expert and keeps its two ends and its step lengths."""
    for index in range(COUNT):
        sizes = header(convex, index)["sizes"]
        wanted = convexify(whole.expert(index)["snapshots"], sizes)
        kept = convex.expert(index)
        assert set(kept) == {"waypoints", "lengths", "history"}
        assert torch.equal(kept["waypoints"], wanted.waypoints)
        assert torch.equal(kept["lengths"], wanted.lengths)
        assert torch.equal(kept["history"], whole.expert(index)["history"])


def test_waypoints_and_bfloat16_are_kept_as_asked(stages, whole, tmp_path):
    """Waypoints between the ends are stored, in half the bytes when ``disk: bfloat16``."""
    made = stages.experts(tmp_path, count=1, waypoints=[0, 2, EPOCHS], disk="bfloat16")
    sizes = header(made, 0)["sizes"]
    wanted = convexify(whole.expert(0)["snapshots"], sizes, (0, 2, EPOCHS))
    assert made.summary["waypoints"] == header(made, 0)["epochs"] == [0, 2, EPOCHS]
    assert torch.equal(made.expert(0)["waypoints"], wanted.waypoints.to(torch.bfloat16))
    opened = files.open_trajectory(made.out, files.file_name(0), "convex")
    assert opened.at(1.5).dtype == torch.float32
    torch.testing.assert_close(opened.at(1.5), wanted.at(1.5), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("at_once", [1, 2])
def test_experts_do_not_depend_on_who_trains_them(stages, whole, tmp_path, at_once):
    """Any number of experts at a time, on any worker, gives the same experts bit for bit."""
    again = stages.experts(tmp_path, keep="all", resources={"at_once": at_once})
    assert all(same(again.expert(i), whole.expert(i)) for i in range(COUNT))


def test_only_missing_experts_are_trained(stages, whole, tmp_path):
    """A stage that finds some experts trains the others, which come out as they would have."""
    kept = [0, 2]
    for index in kept:
        shutil.copy2(whole.out.local / files.file_name(index), tmp_path)
    before = [(tmp_path / files.file_name(i)).stat().st_mtime_ns for i in kept]
    again = stages.experts(tmp_path, keep="all")
    assert [(tmp_path / files.file_name(i)).stat().st_mtime_ns for i in kept] == before
    assert same(again.expert(1), whole.expert(1))
    assert len(again.table("metrics.parquet")["epoch"]) == COUNT * (EPOCHS + 1)


def test_a_finished_stage_trains_nothing(stages, whole, told, tmp_path):
    """With every expert there, the table and the summary are made again and nothing else."""
    shutil.copytree(whole.out.local, tmp_path, dirs_exist_ok=True)
    (tmp_path / "metrics.parquet").unlink()
    progress = told()
    again = stages.experts(tmp_path, progress, keep="all")
    assert progress.updates == []
    assert again.out.read("metrics.parquet") == whole.out.read("metrics.parquet")
    first, second = whole.summary, again.summary
    assert {**first, "seconds": 0} == {**second, "seconds": 0}


def unfinished(stages: Any, index: int, epochs: int) -> Training:
    """What an expert's worker holds after some epochs; its epochs took 7 seconds each."""
    config = stages.experts_config()
    seed = seeds.derive(seeds.derive(stages.seed, "experts"), "expert", index)
    start = initial(config.net, (1, 8, 8), 10, seed=seeds.derive(seed, "start"))
    config = config.model_copy(update={"epochs": epochs})
    training = train_expert(stages.steps, config, start, *stages.splits, 10, seed)
    slow = tuple(type(e)(e.epoch, e.train_loss, e.test_accuracy, e.step_norm, 7.0) for e in training.history)
    return Training(training.snapshots, training.velocity, slow)


def test_an_expert_goes_on_from_a_partial_file(stages, whole, tmp_path):
    """A partial file saves its epochs, and the expert comes out as if it had never been stopped."""
    (tmp_path / "partial-0001.safetensors").write_bytes(unfinished(stages, 1, 3).dump())
    made = stages.experts(tmp_path, keep="all", count=2)
    assert same(made.expert(1), whole.expert(1))
    seconds = made.table("metrics.parquet")["seconds"][EPOCHS + 1 :]
    assert seconds[:4] == [7.0] * 4
    assert 7.0 not in seconds[4:]
    assert not [name for name in made.out.names() if name.startswith("partial")]


@pytest.mark.parametrize("together", [2, 3])
def test_experts_in_turns_come_out_the_same(stages, whole, tmp_path, together):
    """However many experts a task trains in turns, each has its bits; a partial one among them goes on."""
    (tmp_path / "partial-0001.safetensors").write_bytes(unfinished(stages, 1, 3).dump())
    made = stages.experts(tmp_path, keep="all", experts_per_task=together)
    assert all(same(made.expert(i), whole.expert(i)) for i in range(COUNT))
    assert not [name for name in made.out.names() if name.startswith("partial")]


def test_a_killed_worker_of_several_experts_costs_nothing_but_time(
    stages, told, killing, monkeypatch, tmp_path
):
    """All experts of a killed task come out as they would have; those that were finished are left alone."""
    monkeypatch.setattr(workers, "POLL_SECONDS", 0.05)
    settings = {"keep": "all", "count": 3, "epochs": 30}
    progress = told()
    with killing("ray::expert", progress.under_way) as killed:
        struck = stages.experts(Path(tmp_path, "struck"), progress, experts_per_task=2, **settings)
    spared = stages.experts(Path(tmp_path, "spared"), **settings)
    assert len(killed) == 1
    assert all(same(struck.expert(i), spared.expert(i)) for i in range(3))


def test_throughput_is_measured_without_a_trace(stages, tmp_path):
    """Measuring trains real steps of several experts, and leaves no file; without a GPU one expert is chosen."""
    config, source = stages.experts_config(), publish(stages.source_config)
    out = Folder(str(tmp_path))
    job = ExpertsTask(
        config, source, ray.put(fit_space(source, out)), out, stages.seed, compile=False, threads=1
    )
    before = out.names()
    trainer = expertwork.Trainer(job, torch.device("cpu"))
    assert all(0 < trainer.rate(count) < float("inf") for count in (1, 3))
    assert ray.get(ray.remote(expertwork.measured).remote(job, 4, 1.0)) == 1
    assert out.names() == before


def test_how_many_a_worker_trains(stages):
    """As asked; else measured on a GPU, and never so many that a worker has nothing to do."""
    free = Measuring()
    cpu, gpu = Share(1, 0, None, 2), Share(1, 0.25, None, 4, gpus=1)

    def together(share: Share, missing: int, **settings: Any) -> int:
        config = stages.experts_config(**settings)
        job = SimpleNamespace(config=config, compile=bool(config.compile))
        return experts._together(job, None, share, free, missing)

    assert together(cpu, 100) == 1
    assert together(cpu, 3, experts_per_task=8) == 3
    assert together(gpu, 100, experts_per_task=8) == 8
    assert together(gpu, 100, cuda_graphs=True, compile=True) == 1
    assert together(gpu, 100, compile=True) == 1
    assert together(gpu, 4) == 1
    assert free.asked == []
    assert together(gpu, 100) == 25
    assert together(gpu, 5) == 2
    assert together(gpu, 5, cuda_graphs=False, compile=True) == 2
    assert free.asked == [25, 2, 2]


class Measuring:
    """Workers that find as many as they may."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def one(self, work: tuple[Any, ...], name: str) -> int:
        function, _, most, gpu = work
        assert (function, gpu) == (experts.measured, 0.25)
        self.asked.append(most)
        return most


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cuda_graphs": True, "experts_per_task": 2}, "set experts_per_task to 1"),
        ({"cuda_graphs": True, "compile": False}, "leave compile out"),
        ({"experts_per_task": 0}, "greater than or equal to 1"),
    ],
)
def test_settings_that_do_not_go_together(stages, settings, message):
    """What cannot be done is refused when the definition is read."""
    with pytest.raises(ValidationError, match=message):
        stages.experts_config(**{"compile": True, **settings})


def test_graphs_bring_compiling_with_them(stages):
    """Work too short to pay for compiling is compiled where its steps are to be replayed."""
    source = publish(stages.source_config)
    short, graphs = (stages.experts_config(compile=None, cuda_graphs=g) for g in (False, True))
    assert [experts.compiled(config, source) for config in (short, graphs)] == [False, True]
    config = stages.match_config(compile=None, cuda_graphs=True)
    assert match.compiled(config, short.net, source, 10)


def test_how_many_a_task_trains_is_no_part_of_the_result(stages):
    """The number of experts in a task moves no folder."""
    plain, turns = (stages.experts_config(experts_per_task=n) for n in (None, 3))
    assert without_resources(plain) == without_resources(turns)


def test_partial_files_of_finished_experts_go(stages, whole, tmp_path):
    """A worker killed after writing its expert leaves a partial file; the stage clears it away."""
    shutil.copytree(whole.out.local, tmp_path, dirs_exist_ok=True)
    (tmp_path / "partial-0002.safetensors").write_bytes(b"left over")
    stages.experts(tmp_path, keep="all")
    assert not (tmp_path / "partial-0002.safetensors").exists()


def test_a_killed_worker_costs_nothing_but_time(stages, told, killing, monkeypatch, tmp_path):
    """An expert whose worker is killed in the middle is trained again by another, bit for bit the same."""
    monkeypatch.setattr(workers, "POLL_SECONDS", 0.05)
    settings = {"keep": "all", "count": 2, "epochs": 100}
    progress = told()
    with killing("ray::expert", progress.under_way) as killed:
        struck = stages.experts(Path(tmp_path, "struck"), progress, **settings)
    spared = stages.experts(Path(tmp_path, "spared"), **settings)
    assert len(killed) == 1
    assert all(same(struck.expert(i), spared.expert(i)) for i in range(2))


def test_progress_counts_epochs_and_tells_the_newest_accuracy(stages, told, monkeypatch, tmp_path):
    """The live line counts epochs of all experts up to the whole, and shows an accuracy."""
    monkeypatch.setattr(workers, "POLL_SECONDS", 0.05)
    progress = told()
    stages.experts(tmp_path, progress, count=2, epochs=40)
    done = [d for d, _, _ in progress.updates]
    assert done == sorted(done)
    assert progress.updates[-1][:2] == (80, 80)
    assert any(re.match(r"expert [01]: test \d", text) for _, _, text in progress.updates)
    assert re.fullmatch(r"test \d+\.\d ± \d+\.\d % over experts", progress.updates[-1][2])


def test_a_curriculum_follows_the_scores_of_a_teacher(stages, tmp_path):
    """The stage's expert is the one trained by the EL2N scores of the teacher's network."""
    net = NetConfig(depth=1, width=8, norm="batch")
    seen = Observer(
        frozen(build(net, (1, 8, 8), 10, seed=3)), net, stages.source.train.classes, (1, 8, 8), (0.3,), (0.4,)
    )
    teacher = Input("teacher", "teacher", Folder(str(tmp_path / "teacher")), {}, {})
    seen.save(teacher.folder.child("observer"))
    curriculum = {"first": 0.5, "complete": 2, "drop": [[2, 0.3]]}
    config = stages.experts_config(count=1, epochs=4, keep="all", scores="teacher", curriculum=curriculum)
    context = stages._context("experts", tmp_path / "out", {"teacher": teacher}, None)
    experts.run(config, context)

    train, test = stages.splits
    logits = seen.module((stages.source.train.images / 255 - 0.3) / 0.4)
    seed = derive(derive(stages.seed, "experts"), "expert", 0)
    start = initial(config.net, (1, 8, 8), 10, seed=derive(seed, "start"))
    expected = train_expert(stages.steps, config, start, train, test, 10, seed, scores=el2n(logits, train.y))
    found = load(context.out.read("expert-0000.safetensors"))["snapshots"][-1]
    torch.testing.assert_close(found, expected.snapshots[-1])
    kept = load(context.out.read("el2n.safetensors"))["scores"]
    torch.testing.assert_close(kept, el2n(logits, train.y))


def test_an_expert_that_diverges_ends_the_stage(stages, tmp_path):
    """With its number, the epoch and what to lower: matched, its trajectory would give nothing."""
    with raises("expert-diverged") as caught:
        stages.experts(tmp_path, count=1, epochs=3, lr=1e30)
    found = (
        r"expert 0 diverged in epoch \d: its loss is \S+, its step of length \S+\. Lower lr \(1e\+30 now\)"
    )
    assert re.match(found, str(caught.value))
    assert not list(tmp_path.glob("expert-*"))
