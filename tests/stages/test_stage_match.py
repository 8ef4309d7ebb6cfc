"""The match stage: what it leaves for MTT and MCT, and that it is the plain loop in a worker."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rayddl.data import picking
from rayddl.matching.loop import Loop, Matcher
from rayddl.matching.state import first_state
from rayddl.seeds import derive, generator
from rayddl.stages import match, matcher
from rayddl.trajectories import files

pytestmark = pytest.mark.ray

ITERATIONS, EVERY, STUDENTS = 30, 12, 2
LONG = {"iterations": ITERATIONS, "evaluate_every": EVERY, "evaluate_seeds": STUDENTS, "evaluate_epochs": 20}
AS_IT_STARTED = {"iterations": 1, "lr_image": 1e-30, "lr_lr": 0}
"""Rates too small to change a pixel."""


@pytest.fixture(scope="module")
def mct(stages, convex, tmp_path_factory):
    """MCT on convex experts, with short evaluations beside it."""
    return stages.match(convex, tmp_path_factory.mktemp("mct"), **LONG)


@pytest.fixture(scope="module")
def mtt(stages, whole, tmp_path_factory):
    """MTT on experts with all snapshots."""
    return stages.match(whole, tmp_path_factory.mktemp("mtt"), trajectory="snapshots", ipc=2, batch_syn=7)


def plain_loop(stages, experts, **changes: Any) -> Loop:
    """The same run without Ray: the loop of floor 1 on the experts' files, in this process."""
    config = stages.match_config(**changes)
    labels = stages.source.train.labels
    seed = derive(stages.seed, "distill")
    draws = generator(seed, "images")
    picked = picking.per_class(labels, stages.source.train.classes, config.ipc, draws)
    opened = [
        files.open_trajectory(experts.out, files.file_name(i), config.trajectory)
        for i in range(experts.summary["count"])
    ]
    settings = matcher.settings(config)
    fixed = Matcher(stages.steps, settings, opened, labels[picked], 10, seed, torch.device("cpu"))
    loop = Loop.begin(fixed, first_state(stages.splits[0].x[picked], None, settings))
    for _ in range(config.iterations):
        loop.step()
    return loop


def rows(made: Any) -> list[tuple[float, ...]]:
    """What was recorded of every iteration, but for its wall time."""
    table = made.table("metrics.parquet")
    return list(zip(*(table[c] for c in table if c != "seconds"), strict=True))


def is_real(images: Tensor, labels: Tensor, stages: Any) -> list[bool]:
    """For each image, whether it is a training image of its class."""
    train = stages.splits[0]
    return [
        bool((train.x[train.y == label] == image).all((1, 2, 3)).any())
        for image, label in zip(images, labels, strict=True)
    ]


def test_the_folder_holds_the_set_and_two_tables(mct):
    """Nothing that the run needed on its way is left: checkpoints, snapshots, students' files."""
    assert mct.out.names() == ["accuracy.parquet", "metrics.parquet"]
    assert mct.out.folders() == ["set"]


def test_every_iteration_is_recorded(mct, convex):
    """The table has a row per iteration from 1, with windows inside the range asked for."""
    table = mct.table("metrics.parquet")
    assert list(table) == ["iteration", "loss", "lr_student", "start", "expert", "seconds"]
    assert table["iteration"] == list(range(1, ITERATIONS + 1))
    assert all(0 < loss < 10 for loss in table["loss"])
    assert all(0 <= start <= 3 for start in table["start"])
    assert any(start != int(start) for start in table["start"])
    assert set(table["expert"]) == set(range(convex.summary["count"]))
    assert all(s > 0 for s in table["seconds"])


def test_matching_lowers_the_loss_and_learns_the_learning_rate(mct):
    """The set gets better at leading students along the experts, and takes its learning rate with it."""
    table = mct.table("metrics.parquet")
    assert mct.summary["loss_last"] < 0.9 * mct.summary["loss_first"]
    assert len(set(table["lr_student"])) == ITERATIONS
    assert mct.distilled.lr_student == table["lr_student"][-1] != 0.05


def test_the_set_says_where_it_comes_from(mct, stages):
    """The set loads by itself, with classes, pixel space, method, network and source."""
    made = mct.distilled
    assert (tuple(made.images.shape), made.images.dtype) == ((10, 1, 8, 8), torch.float32)
    assert made.labels.tolist() == list(range(10))
    assert made.classes == stages.source.train.classes
    torch.testing.assert_close(
        made.space.encode(stages.source.train.images[:9]), stages.splits[0].x[:9], rtol=0, atol=0
    )
    assert made.info["method"] == "MCT"
    assert made.info["net"] == {"name": "convnet", "depth": 1, "width": 8, "norm": "instance"}
    assert made.info["source"] == stages.source_config.model_dump(mode="json")
    assert made.info["source_fingerprint"] == stages.source.fingerprint
    assert made.info["iterations"] == ITERATIONS


def test_the_summary_repeats_the_tables(mct):
    """The summary's figures are those of the tables and of the set."""
    summary, table = mct.summary, mct.table("metrics.parquet")
    expected = {
        "method": "MCT",
        "ipc": 1,
        "images": 10,
        "iterations": ITERATIONS,
        "loss_first": sum(table["loss"][:10]) / 10,
        "loss_last": sum(table["loss"][-10:]) / 10,
        "lr_student": table["lr_student"][-1],
        "skipped": 0,
        "retries": 0,
        "bytes": 10 * 64 * 4,
        "seconds_per_iteration": sorted(table["seconds"])[ITERATIONS // 2],
        "accuracy_last": mct.table("accuracy.parquet")["accuracy"][-1],
    }
    assert {key: summary[key] for key in expected} == expected
    assert summary["classes"] == list(mct.distilled.classes)


def test_short_evaluations_stand_at_their_iterations(mct):
    """Students are judged at the start, at every multiple, and at the end, as many as asked for."""
    table = mct.table("accuracy.parquet")
    assert list(table) == ["iteration", "seed", "accuracy"]
    assert table["iteration"] == [i for i in (0, 12, 24, 30) for _ in range(STUDENTS)]
    assert table["seed"] == [0, 1] * 4
    assert all(0.1 < a <= 1 for a in table["accuracy"])


def test_one_worker_is_the_plain_loop(mct, stages, convex):
    """The stage gives bit for bit what the loop gives in a process without Ray."""
    loop = plain_loop(stages, convex, **LONG)
    assert torch.equal(mct.distilled.images, loop.state.images)
    assert mct.distilled.lr_student == float(loop.state.lr)
    assert rows(mct) == [row[:-1] for row in loop.rows]


def test_the_same_run_again_gives_the_same_bits(mct, stages, convex, tmp_path):
    """Two runs write the same set file and the same accuracies; looking more rarely changes nothing."""
    again = stages.match(convex, tmp_path, **{**LONG, "evaluate_every": 2 * EVERY})
    assert again.set_bytes == mct.set_bytes
    assert rows(again) == rows(mct)
    first, second = (
        dict(zip(zip(t["iteration"], t["seed"], strict=True), t["accuracy"], strict=True))
        for t in (mct.table("accuracy.parquet"), again.table("accuracy.parquet"))
    )
    assert second == {key: first[key] for key in second}
    assert {iteration for iteration, _ in second} == {0, 24, 30}


def test_mtt_starts_at_whole_epochs(mtt, whole, stages):
    """``trajectory: snapshots`` is MTT: whole start epochs below the largest, the plain loop's result."""
    table = mtt.table("metrics.parquet")
    assert mtt.summary["method"] == mtt.distilled.info["method"] == "MTT"
    assert set(table["start"]) <= {0.0, 1.0, 2.0}
    loop = plain_loop(stages, whole, trajectory="snapshots", ipc=2, batch_syn=7)
    assert torch.equal(mtt.distilled.images, loop.state.images)


def test_several_images_per_class_lie_in_class_order(mtt):
    """``ipc: 2`` gives two images of every class, side by side."""
    assert mtt.distilled.labels.tolist() == [c for c in range(10) for _ in range(2)]
    assert (mtt.distilled.ipc, mtt.summary["images"]) == (2, 20)


def test_without_evaluations_the_accuracy_table_is_empty(mtt):
    """``evaluate_every`` left out: the table is there, with its columns and no row."""
    assert mtt.table("accuracy.parquet") == {"iteration": [], "seed": [], "accuracy": []}
    assert mtt.summary["accuracy_last"] is None


def test_convex_matching_of_whole_experts_is_that_of_convex_ones(mct, stages, whole, tmp_path):
    """Experts kept whole can be matched by MCT, with the very same result."""
    made = stages.match(whole, tmp_path, iterations=8)
    assert rows(made) == rows(mct)[:8]


def test_a_run_starts_from_real_images_of_the_right_classes(stages, convex, tmp_path):
    """The starting images are different training images of their classes, unchanged."""
    made = stages.match(convex, tmp_path, ipc=3, **AS_IT_STARTED).distilled
    assert made.labels.tolist() == [c for c in range(10) for _ in range(3)]
    assert all(is_real(made.images, made.labels, stages))
    assert len({image.numpy().tobytes() for image in made.images}) == 30


def test_expert_labels_are_probabilities(stages, convex, tmp_path):
    """``labels: expert`` stores a float32 distribution per image, which the experts are rather sure of."""
    made = stages.match(convex, tmp_path, ipc=2, labels="expert", **AS_IT_STARTED).distilled
    assert (tuple(made.labels.shape), made.labels.dtype) == ((20, 10), torch.float32)
    torch.testing.assert_close(made.labels.sum(1), torch.ones(20))
    assert (made.labels > 0).all()
    right = made.labels.argmax(1) == torch.arange(10).repeat_interleave(2)
    assert right.double().mean() > 0.5


def test_noise_and_learned_labels(stages, convex, tmp_path):
    """``start_from: noise`` starts from unit noise; ``labels: learned`` makes distributions that move."""
    settings = {"start_from": "noise", "labels": "learned", "ipc": 2, **AS_IT_STARTED}
    one = stages.match(convex, Path(tmp_path, "one"), **settings, lr_label=1e-30).distilled
    other = stages.match(convex, Path(tmp_path, "other"), **settings, lr_label=100.0).distilled
    assert not any(is_real(one.images, torch.arange(10).repeat_interleave(2), stages))
    assert abs(float(one.images.mean())) < 0.1
    assert float(one.images.std()) == pytest.approx(1, abs=0.1)
    assert torch.equal(one.images, other.images)
    for made in (one, other):
        assert (tuple(made.labels.shape), made.labels.dtype) == ((20, 10), torch.float32)
        torch.testing.assert_close(made.labels.sum(1), torch.ones(20))
    assert not torch.equal(one.labels, other.labels)


def test_progress_shows_iterations_loss_and_accuracy(stages, convex, told, monkeypatch, tmp_path):
    """The live line counts iterations and carries loss, learning rate and the newest accuracy."""
    monkeypatch.setattr(match, "SLICE_SECONDS", 0.001)
    progress = told()
    stages.match(convex, tmp_path, progress, iterations=6, evaluate_every=3, evaluate_epochs=1)
    done, total, shown = progress.updates[-1]
    assert (done, total) == (6, 6)
    assert shown.startswith("loss 0.")
    assert "lr 0.0" in shown
    counted = [d for d, _, _ in progress.updates]
    assert counted == sorted(counted)


def test_the_definition_travels_with_the_set(mct):
    """The set's JSON holds the definition, so that whoever finds it knows how it was made."""
    described = json.loads((mct.out.local / "set" / "set.json").read_text())
    assert described["info"]["definition"]["name"] == "test"
