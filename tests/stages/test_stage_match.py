"""The match stage: what it leaves for MTT and MCT, and that it is the plain loop in a worker."""

from __future__ import annotations

import json
from dataclasses import replace
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from rayddl.data.pixels.space import Normalise
from rayddl.methods.trajectories import files
from rayddl.stages.context import Input
from rayddl.stages.match import stage as match
from rayddl.stages.match import worker as matcher
from rayddl.stages.runtime.sources import publish
from rayddl.storage import Folder
from tests.raising import raises

pytestmark = pytest.mark.ray

ITERATIONS, EVERY, STUDENTS = 60, 24, 2
"""Those of ``mct``."""
PAIRS = {"trajectory": "snapshots", "ipc": 2, "batch_syn": 7}
AS_IT_STARTED = {"iterations": 1, "lr_image": 1e-30, "lr_lr": 0}
"""Rates too small to change a pixel."""


@pytest.fixture(scope="module")
def mtt(stages, whole, tmp_path_factory):
    """MTT on experts with all snapshots."""
    return stages.match(whole, tmp_path_factory.mktemp("mtt"), **PAIRS)


@pytest.fixture(scope="module")
def untouched(stages, convex, tmp_path_factory):
    """A set that is still what it started from, with the experts' labels."""
    return stages.match(convex, tmp_path_factory.mktemp("start"), ipc=3, labels="expert", **AS_IT_STARTED)


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


def test_a_matching_that_is_cut_before_its_manifest_is_not_done_again(stages, convex, tmp_path):
    """The same command finds every iteration done, and the short evaluations."""
    context = stages._context("distill", tmp_path, {"experts": convex.as_input()}, None)
    config = stages.match_config(evaluate_every=2, evaluate_epochs=2)
    tables_ = []
    for _ in range(2):
        result = match.run(config, context)
        tables_.append([context.out.read(name) for name in ("metrics.parquet", "accuracy.parquet")])
    assert tables_[0] == tables_[1]
    assert matcher.CHECKPOINT in result.leftovers


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
    assert torch.equal(made.space.encode(stages.source.train.images[:9]), stages.splits[0].x[:9])
    assert made.info["method"] == "MCT"
    assert made.info["net"] == {"name": "convnet", "depth": 1, "width": 8, "norm": "instance"}
    assert made.info["source"] == stages.source_config.model_dump(mode="json")
    assert made.info["source_fingerprint"] == stages.source.fingerprint
    assert made.info["iterations"] == ITERATIONS


def test_the_definition_travels_with_the_set(mct):
    """The set's JSON holds the definition, so that whoever finds it knows how it was made."""
    described = json.loads((mct.out.local / "set" / "set.json").read_text())
    assert described["info"]["definition"]["name"] == "test"


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
        "lr_image": 20.0,
        "lr_lr": 1e-4,
        "bytes": 10 * 64 * 4,
        "seconds_per_iteration": sorted(table["seconds"])[ITERATIONS // 2],
        "accuracy_last": fmean(mct.table("accuracy.parquet")["accuracy"][-STUDENTS:]),
    }
    assert {key: summary[key] for key in expected} == expected
    assert summary["classes"] == list(mct.distilled.classes)


def test_short_evaluations_stand_at_their_iterations(mct):
    """Students are judged at the start, at every multiple, and at the end, as many as asked for."""
    table = mct.table("accuracy.parquet")
    assert list(table) == ["iteration", "seed", "accuracy"]
    assert table["iteration"] == [i for i in (0, 24, 48, 60) for _ in range(STUDENTS)]
    assert table["seed"] == [0, 1] * 4
    assert all(0.1 < a <= 1 for a in table["accuracy"])


def test_progress_shows_iterations_loss_and_learning_rate(mct_run):
    """The live line counts iterations up to all of them and carries the newest figures."""
    updates = mct_run.told.updates
    done = [d for d, _, _ in updates]
    assert done == sorted(done)
    assert len(set(done)) > 2
    assert updates[-1][:2] == (ITERATIONS, ITERATIONS)
    assert updates[-1][2].startswith(f"loss {mct_run.made.table('metrics.parquet')['loss'][-1]:.3f}  lr 0.0")


def test_one_worker_is_the_plain_loop(mct_run, stages, convex):
    """The stage gives bit for bit what the loop gives in a process without Ray."""
    loop, made = stages.plain_loop(convex, **mct_run.settings), mct_run.made
    assert torch.equal(made.distilled.images, loop.state.images)
    assert made.distilled.lr_student == float(loop.state.lr)
    assert made.rows() == [row[:-1] for row in loop.rows]


def test_experts_kept_whole_give_the_same_run(mct_run, stages, whole, tmp_path):
    """MCT on experts with all snapshots is MCT on the same experts kept convex: the same file, bit for bit.

    Looking at it more rarely changes none of the accuracies.
    """
    mct, again = mct_run.made, stages.match(whole, tmp_path, **{**mct_run.settings, "evaluate_every": 48})
    assert again.set_bytes == mct.set_bytes
    assert again.rows() == mct.rows()
    first, second = (
        dict(zip(zip(t["iteration"], t["seed"], strict=True), t["accuracy"], strict=True))
        for t in (mct.table("accuracy.parquet"), again.table("accuracy.parquet"))
    )
    assert second == {key: first[key] for key in second}
    assert {iteration for iteration, _ in second} == {0, 48, 60}


def test_mtt_starts_at_whole_epochs(mtt, whole, stages):
    """``trajectory: snapshots`` is MTT: whole start epochs below the largest, the plain loop's result."""
    table = mtt.table("metrics.parquet")
    assert mtt.summary["method"] == mtt.distilled.info["method"] == "MTT"
    assert set(table["start"]) <= {0.0, 1.0, 2.0}
    assert torch.equal(mtt.distilled.images, stages.plain_loop(whole, **PAIRS).state.images)


def test_several_images_per_class_lie_in_class_order(mtt):
    """``ipc: 2`` gives two images of every class, side by side."""
    assert mtt.distilled.labels.tolist() == [c for c in range(10) for _ in range(2)]
    assert (mtt.distilled.ipc, mtt.summary["images"]) == (2, 20)


def test_without_evaluations_the_accuracy_table_is_empty(mtt):
    """``evaluate_every`` left out: the table is there, with its columns and no row."""
    assert mtt.table("accuracy.parquet") == {"iteration": [], "seed": [], "accuracy": []}
    assert mtt.summary["accuracy_last"] is None


def test_a_run_starts_from_real_images_of_the_right_classes(untouched, stages):
    """The starting images are different training images of their classes, unchanged."""
    images = untouched.distilled.images
    assert all(is_real(images, torch.arange(10).repeat_interleave(3), stages))
    assert len({image.numpy().tobytes() for image in images}) == 30


def test_expert_labels_are_probabilities(untouched):
    """``labels: expert`` stores a float32 distribution per image, mostly with the right class on top."""
    labels = untouched.distilled.labels
    assert (tuple(labels.shape), labels.dtype) == ((30, 10), torch.float32)
    torch.testing.assert_close(labels.sum(1), torch.ones(30))
    assert (labels > 0).all()
    right = labels.argmax(1) == torch.arange(10).repeat_interleave(3)
    assert right.double().mean() > 0.5


def test_noise_and_learned_labels(stages, convex, tmp_path):
    """``start_from: noise`` starts from unit noise; ``labels: learned`` stores what was learned."""
    settings = {"start_from": "noise", "labels": "learned", "lr_label": 100.0, "ipc": 2, **AS_IT_STARTED}
    made = stages.match(convex, tmp_path, **settings).distilled
    assert not any(is_real(made.images, torch.arange(10).repeat_interleave(2), stages))
    assert abs(float(made.images.mean())) < 0.1
    assert float(made.images.std()) == pytest.approx(1, abs=0.1)
    assert (tuple(made.labels.shape), made.labels.dtype) == ((20, 10), torch.float32)
    torch.testing.assert_close(made.labels.sum(1), torch.ones(20))
    assert len({label.numpy().tobytes() for label in made.labels}) == 20


def test_datm_starts_from_images_that_an_expert_classifies_correctly(stages, whole, tmp_path):
    """Real images of each class, which the first expert knows; the labels are those of the experts that are right."""
    settings = {
        "start_from": "correct",
        "labels": "learned",
        "trajectory": "snapshots",
        "ipc": 2,
        "lr_label": 1e-30,
    }
    done = stages.match(whole, tmp_path, **settings, **AS_IT_STARTED)
    made, labels = done.distilled, torch.arange(10).repeat_interleave(2)
    assert all(is_real(made.images, labels, stages))
    experts = [
        files.open_trajectory(whole.out, files.file_name(i), "snapshots")
        for i in range(whole.summary["count"])
    ]
    assert stages.match_config(**settings).last_epoch < experts[0].last
    said = torch.stack([stages.steps.net(t.at(t.last), made.images) for t in experts])
    assert bool((said[0].argmax(1) == labels).all())
    for n, label in enumerate(labels.tolist()):
        right = [row[n] for row in said if int(row[n].argmax()) == label]
        torch.testing.assert_close(
            made.labels[n], torch.stack(right).mean(0).softmax(0), rtol=1e-3, atol=1e-4
        )
    assert made.info["method"] == done.summary["method"] == "DATM"


def test_a_run_may_go_on_from_another_stages_set(stages, convex, mct, tmp_path):
    """The images are that set's to the last bit, also where they are darker than black, with its labels."""
    made = stages.match(convex, tmp_path, start=mct, **AS_IT_STARTED).distilled
    given = mct.distilled
    beyond = given.space.invert(given.images)
    assert beyond.min() < -0.02 or beyond.max() > 1.02
    assert torch.equal(made.images, given.images)
    assert torch.equal(made.labels, given.labels)


def test_learned_labels_go_on_from_another_stages_set(stages, convex, mct, tmp_path):
    """As they were learned, and not as the experts' anew; hard ones begin as the experts'."""
    learned = {"labels": "learned", "lr_label": 1e-30, **AS_IT_STARTED}
    first = stages.match(
        convex, tmp_path / "first", start=mct, labels="learned", lr_label=500.0, iterations=2
    )
    anew = stages.match(convex, tmp_path / "anew", start=mct, **learned).distilled
    again = stages.match(convex, tmp_path / "again", start=first, **learned).distilled

    torch.testing.assert_close(again.labels, first.distilled.labels, atol=1e-5, rtol=1e-4)
    assert float((again.labels - anew.labels).abs().max()) > 1e-3
    assert torch.equal(again.images, first.distilled.images)


def test_waypoints_are_chosen_where_experts_are_kept_whole(stages, whole, mct_run, tmp_path):
    """Several choices can be tried on the same experts: each is the loop on their snapshots convexified so."""
    last = whole.summary["epochs"]
    changed = {**mct_run.settings, "waypoints": [0, 2, last], "iterations": 6, "evaluate_every": None}
    loop, made = stages.plain_loop(whole, **changed), stages.match(whole, tmp_path, **changed)
    assert torch.equal(made.distilled.images, loop.state.images)
    assert [row[1] for row in made.rows()] != [row[1] for row in mct_run.made.rows()[:6]]


@pytest.mark.parametrize("asked", [None, 0.07])
def test_the_student_goes_on_at_the_learned_rate_unless_told(stages, convex, mct, tmp_path, asked):
    """``start_set`` brings its learning rate with it; one in the definition has precedence."""
    made = stages.match(convex, tmp_path, start=mct, **{**AS_IT_STARTED, "lr_student": asked}).distilled
    assert made.lr_student == pytest.approx(asked or mct.distilled.lr_student, rel=1e-12)
    assert mct.distilled.lr_student != 0.05


def test_the_literatures_rate_is_the_students_where_none_is_given(stages, convex, tmp_path):
    """Without ``start_set``, and likewise from a set that learned none."""
    made = stages.match(convex, tmp_path, **{**AS_IT_STARTED, "lr_student": None}).distilled
    assert made.lr_student == pytest.approx(0.01, rel=1e-12)


def test_graphs_are_handed_to_the_steps(stages, convex, mct, monkeypatch, tmp_path):
    """``cuda_graphs`` reaches the student's step functions, is on for GPUs, and is refused without compiling."""
    asked: list[Any] = []
    monkeypatch.setattr(matcher, "steps_for", lambda *given: asked.append(given) or stages.steps)
    trajectories = [files.open_trajectory(convex.out, files.file_name(i), "convex") for i in range(3)]
    monkeypatch.setattr(files, "open_trajectory", lambda *_: trajectories[0])
    for graphs, device in ((False, "cuda"), (True, "cpu"), (None, "cpu"), (None, "cuda")):
        config = stages.match_config(compile=None, cuda_graphs=graphs)
        job = SimpleNamespace(
            config=config, source=publish(stages.source_config), experts=convex.out, count=3, compile=True,
            net=stages.experts_config().net, labels=torch.arange(10), seed=0,
        )  # fmt: skip
        matcher.make_matcher(job, SimpleNamespace(type=device))

    assert [given[4:] for given in asked] == [(True, False), (True, True), (True, False), (True, True)]
    with pytest.raises(ValidationError, match="leave compile out or set it to true"):
        stages.match_config(compile=False, cuda_graphs=True)


def test_a_set_of_another_pixel_space_is_started_from_as_pixels(stages, convex, mct, tmp_path):
    """Its pixels, in the experts' space."""
    given = mct.distilled
    half = torch.full((1,), 0.5, dtype=torch.float64)
    other = replace(given, stored=given.pixels(), space=Normalise(given.space.shape, half, half.clone()))
    other.save(Folder(str(tmp_path / "other" / "set")))
    start = Input("start", "rded", Folder(str(tmp_path / "other")), {}, {})
    made = stages.match(convex, tmp_path, start=start, **AS_IT_STARTED).distilled
    assert torch.allclose(made.images, given.space.encode(given.pixels()), atol=1e-6)


def test_a_set_of_another_size_cannot_be_started_from(stages, convex, mct, tmp_path):
    """The message has both numbers."""
    with raises("start-set-does-not-fit"):
        stages.match(convex, tmp_path, start=mct, ipc=2)
