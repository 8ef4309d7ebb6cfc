"""The match stage when things go wrong: killed workers, killed drivers, runs that diverge, wrong experts."""

from __future__ import annotations

import json
import shutil
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from safetensors.torch import load

from rayddl.data.config import SourceConfig
from rayddl.errors import ArtifactError, DivergedError, SourceError, StageError
from rayddl.methods.matching.loop import ANCHOR
from rayddl.methods.trajectories import files
from rayddl.stages.match import short_evaluations
from rayddl.stages.match import stage as match
from rayddl.stages.match import worker as matcher
from rayddl.stages.match.short_evaluations import ShortEvaluations
from rayddl.stages.runtime import cluster
from rayddl.stages.runtime.sources import publish
from rayddl.storage import Folder
from tests.raising import raises

pytestmark = pytest.mark.ray

THREE = {"workers": 3, "iterations": ANCHOR + 5, "resources": {}}
"""Three workers, which get two thirds of a CPU each."""


@pytest.fixture(autouse=True)
def often(monkeypatch):
    """Checkpoints wherever the loop may make one, and many looks at it."""
    monkeypatch.setattr(matcher, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(match, "SLICE_SECONDS", 0.2)
    monkeypatch.setattr(short_evaluations, "GRACE_SECONDS", 300.0)


def has(folder: Path, name: str) -> bool:
    return (folder / name).exists()


def test_a_killed_loop_goes_on_from_its_checkpoint(stages, convex, mct_run, killing, tmp_path):
    """The loop's worker is killed in the middle: the set comes out bit for bit as without that.

    A short evaluation that an earlier attempt has finished is read, not done again.
    """
    done = {
        "data": "short",
        "net": "convnet-d1-w8",
        "seed": 1,
        "images": 10,
        "accuracy": 0.123,
        "seconds": 1.0,
    }
    (tmp_path / "student-000000-1.json").write_text(json.dumps(done))
    with killing("ray::MatchWorker", lambda: has(tmp_path, matcher.CHECKPOINT)) as killed:
        struck = stages.match(convex, tmp_path, **mct_run.settings)
    spared = mct_run.made
    assert len(killed) == 1
    assert struck.set_bytes == spared.set_bytes
    assert struck.rows() == spared.rows()
    accuracies = spared.table("accuracy.parquet")
    accuracies["accuracy"][1] = 0.123
    assert struck.table("accuracy.parquet") == accuracies
    assert struck.out.names() == spared.out.names()


def test_a_stage_goes_on_from_the_checkpoint_of_a_killed_driver(stages, convex, mct, cut_when, cut, tmp_path):
    """A second attempt takes up the first one's checkpoint and ends with the same bits."""
    progress = cut_when(partial(has, tmp_path, matcher.CHECKPOINT))
    with pytest.raises(cut):
        stages.match(convex, tmp_path, progress, iterations=60)
    saved = load((tmp_path / matcher.CHECKPOINT).read_bytes())["more.rows"]
    assert len(saved) in (ANCHOR, 2 * ANCHOR)
    again = stages.match(convex, tmp_path, iterations=60)
    assert again.set_bytes == mct.set_bytes
    assert again.rows() == mct.rows()
    # Only iterations that were not done again keep the wall times of the first attempt.
    assert again.table("metrics.parquet")["seconds"][: len(saved)] == saved[:, -1].tolist()


def test_three_workers_average_three_windows(stages, convex, tmp_path):
    """A meta-batch spread over three workers is the same windows averaged in one process, bit for bit.

    It is so too where the cluster has fewer CPUs than workers: they share them.
    """
    made, loop = stages.match(convex, tmp_path, **THREE), stages.plain_loop(convex, **THREE)
    assert torch.equal(made.distilled.images, loop.state.images)
    assert made.rows() == [row[:-1] for row in loop.rows]


def test_a_meta_batch_survives_killed_workers(stages, convex, killing, tmp_path):
    """A helper and the loop itself are killed in the middle, and the result is the same."""
    when = partial(has, tmp_path, matcher.CHECKPOINT)
    with killing("ray::WindowWorker", when) as helper, killing("ray::MatchWorker", when) as loop:
        struck = stages.match(convex, tmp_path, **THREE)
    assert len(helper) == len(loop) == 1
    assert torch.equal(struck.distilled.images, stages.plain_loop(convex, **THREE).state.images)


def test_workers_that_never_fit_together_are_refused(stages, convex, tmp_path):
    """A meta-batch that would wait for CPUs for ever says so at once."""
    with pytest.raises(StageError) as caught:
        stages.match(convex, tmp_path, **{**THREE, "resources": {"num_cpus": 1}})
    assert str(caught.value) == (
        "3 workers run together at 1 CPU and 0 GPU each. That takes 1 CPU in 3 places, and the cluster has 2 of them "
        f"({cluster.capacity_now()}). Lower the stage's workers or its resources, or add nodes."
    )


def test_the_loop_waits_for_evaluations_where_it_has_all_cpus(stages, convex, told, tmp_path, monkeypatch):
    """With every CPU given to the loop, each short evaluation is done before the next iteration; none is left out."""
    monkeypatch.setattr(short_evaluations, "BACKLOG", 1)
    progress = told()
    settings = {"evaluate_every": 2, "evaluate_epochs": 1, "evaluate_seeds": 3, "resources": {"num_cpus": 2}}
    made = stages.match(convex, tmp_path, progress, **settings)
    assert made.table("accuracy.parquet")["iteration"] == [0] * 3 + [2] * 3 + [4] * 3
    assert not [note for note in progress.notes if "left out" in note]


def test_evaluations_that_take_too_long_are_left_out(stages, convex, told, tmp_path, monkeypatch):
    """They come due faster than they are done: few wait, the loop waits for none, and at its end the last one counts.

    Two students, one of the start and one of the end, take three seconds each; those between would take thirty more.
    """
    monkeypatch.setattr(short_evaluations, "BACKLOG", 2)
    monkeypatch.setattr(short_evaluations, "GRACE_SECONDS", 0.0)
    monkeypatch.setattr(short_evaluations.students, "train_one", slowly)
    monkeypatch.setattr(ShortEvaluations, "finish", finished_and_cancelled)
    progress = told()
    made = stages.match(convex, tmp_path, progress, iterations=24, evaluate_every=2)
    found = made.table("accuracy.parquet")["iteration"]
    assert found[-1] == 24
    assert len(found) < 13
    (note,) = [note for note in progress.notes if "left out" in note]
    assert note == (
        f"{13 - len(found)} short evaluations were left out: they take longer than the iterations between two of them. "
        "Raise evaluate_every, or lower evaluate_epochs or evaluate_seeds."
    )
    assert made.out.names() == ["accuracy.parquet", "metrics.parquet"]


def test_evaluations_end_with_a_stage_that_fails(stages, convex, tmp_path, monkeypatch):
    """They would keep CPUs that other stages are to have, and write into a folder that is no longer locked."""
    monkeypatch.setattr(short_evaluations.students, "train_one", endlessly)
    monkeypatch.setattr(match, "_distil", failing(match._distil))
    began = time.monotonic()
    with raises("for-a-test"):
        stages.match(convex, tmp_path, evaluate_every=2)
    while ray.available_resources().get("CPU", 0) < ray.cluster_resources()["CPU"]:
        assert time.monotonic() - began < 60, "a short evaluation still has its CPU"
        time.sleep(0.1)


def endlessly(shared: Any, data: Any, student: Any) -> dict[str, Any]:
    """A student that does not end."""
    time.sleep(600.0)
    return {"accuracy": 0.5}


def failing(distil: Any) -> Any:
    """The loop, and then an error."""

    def failed(*given: Any) -> None:
        distil(*given)
        raise StageError("for a test", code="for-a-test")

    return failed


finish = ShortEvaluations.finish


def finished_and_cancelled(short: ShortEvaluations) -> list[tuple[int, int, float]]:
    """The end of the evaluations, and the seconds in which Ray cancels those left out, before the stage goes on."""
    rows = finish(short)
    time.sleep(2.0)
    return rows


def slowly(shared: Any, data: Any, student: Any) -> dict[str, Any]:
    """A student that takes its time."""
    time.sleep(3.0)
    return {"accuracy": 0.5}


def test_a_run_gone_astray_stops_with_the_facts_and_keeps_the_last_good_set(stages, convex, told, tmp_path):
    """Rates much too high: taken back once, which is told, then stopped with everything one needs to know."""
    progress = told()
    with pytest.raises(DivergedError) as caught:
        stages.match(convex, tmp_path, progress, iterations=40, lr_image=2e8, retries=1)
    text = str(caught.value)
    assert text.startswith("diverged at iteration ")
    for fact in ("expert ", "start epoch ", "lr_image 2e+07", "student learning rate 0.05"):
        assert fact in text
    assert "The last good state was restored 1 times, each time with a tenth of the rates." in text
    assert "Try a smaller lr_image (it was 2e+08) or lr_lr (it was 0.0001)." in text
    assert progress.notes == [
        "iteration 0: diverged; restored the last good state with lr_image at 2e+07 and lr_lr at 1e-05"
    ]
    images, labels, lr = matcher.read_snapshot(_folder(tmp_path), "last-good.safetensors")
    assert (tuple(images.shape), labels.tolist()) == ((10, 1, 8, 8), list(range(10)))
    assert torch.isfinite(images).all()
    assert lr == 0.05
    assert not has(tmp_path, "set/set.json")


def _folder(path: Path) -> Any:
    return Folder(str(path))


def test_a_damaged_expert_is_named(stages, convex, tmp_path):
    """An expert's file that cannot be read is an error about that file, not about a lost worker."""
    experts = tmp_path / "experts"
    shutil.copytree(convex.out.local, experts)
    (experts / files.file_name(2)).write_bytes(b"no tensors")
    damaged = type(convex)(_folder(experts), convex.result, "experts", "experts", convex.config)
    with pytest.raises(ArtifactError) as caught:
        stages.match(damaged, tmp_path / "out")
    assert str(caught.value).startswith(f"{experts}/expert-0002.safetensors is not an expert's file (")
    assert str(caught.value).endswith("Delete it and run the same command again to train it anew.")


def test_experts_of_another_pixel_space_are_refused(stages, convex, tmp_path):
    """Experts trained on whitened images do not fit a source that is not: both are named."""
    id_ = convex.summary["space"].partition(":")[2]
    with pytest.raises(ArtifactError) as caught:
        stages.match(convex.as_input(space=f"zca:{id_}"), tmp_path)
    assert str(caught.value) == (
        f"the experts of 'experts' were trained in pixel space zca on images {id_[:12]}; the source 'digits' is "
        f"normalise on {id_[:12]}. Match with the source that trained them, or train new ones."
    )


def test_experts_of_other_classes_are_refused(stages, convex, tmp_path):
    """Experts whose classes stand in another order would be matched wrongly: they are refused."""
    names = list(reversed(convex.summary["classes"]))
    with pytest.raises(ArtifactError) as caught:
        stages.match(convex.as_input(classes=names), tmp_path)
    assert str(caught.value) == (
        "the experts of 'experts' know the classes 9, 8, 7, 6, 5 … (10), the source has 0, 1, 2, 3, 4 … (10). "
        "Classes are matched by name and order; train new experts."
    )


def test_a_space_file_of_other_images_is_refused(stages, convex, tmp_path):
    """The pixel space kept with the experts must be the source's own."""
    experts = tmp_path / "experts"
    shutil.copytree(convex.out.local, experts)
    head = json.loads((experts / "space.json").read_text())
    (experts / "space.json").write_text(json.dumps({**head, "id": "zca:0123456789abcdef"}))
    moved = type(convex)(_folder(experts), convex.result, "experts", "experts", convex.config)
    with pytest.raises(ArtifactError) as caught:
        stages.match(moved, tmp_path / "out")
    ours = publish(SourceConfig(name="digits")).fingerprint[:12]
    assert str(caught.value) == (
        f"{experts} was made in pixel space zca of the images 0123456789ab, but this definition's source has "
        f"normalise of {ours}. Use the source that made it, or make it anew."
    )


def test_too_few_images_of_a_class_are_refused(stages, convex, tmp_path):
    """More images per class than there are real ones to start from: class, number and ways out."""
    fewest = torch.bincount(stages.source.train.labels)
    short = int((fewest < 150).sum())
    name = stages.source.train.classes[int((fewest < 150).nonzero()[0])]
    with pytest.raises(SourceError) as caught:
        stages.match(convex, tmp_path, ipc=150)
    others = f", and {short - 1} more classes are short" if short > 1 else ""
    assert str(caught.value) == (
        f"class {name!r} has {int(fewest[fewest < 150][0])} images and 150 are asked for{others}. Lower ipc, or say "
        "what to do with short_class: cap (fewer images of that class) or repeat (some of them more than once)."
    )
