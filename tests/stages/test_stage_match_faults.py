"""The match stage when things go wrong: killed workers, killed drivers, runs that diverge, wrong experts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load

from rayddl.data import picking
from rayddl.data.config import SourceConfig
from rayddl.errors import ArtifactError, DivergedError, SourceError, StageError
from rayddl.matching.loop import ANCHOR, Loop, Matcher
from rayddl.matching.state import first_state
from rayddl.seeds import derive, generator
from rayddl.stages import match, matcher
from rayddl.stages.shared import publish
from rayddl.trajectories import files

pytestmark = pytest.mark.ray

ITERATIONS = 2 * ANCHOR + 10
"""Two checkpoints, and some iterations behind the last one."""
LONG = {"iterations": ITERATIONS}
THREE = {"workers": 3, "iterations": ANCHOR + 5, "resources": {"num_cpus": 0.5}}


@pytest.fixture(scope="module")
def spared(stages, convex, tmp_path_factory):
    """The run that nothing happened to."""
    return stages.match(convex, tmp_path_factory.mktemp("spared"), **LONG)


@pytest.fixture(autouse=True)
def often(monkeypatch):
    """Checkpoints wherever the loop may make one, and many looks at it."""
    monkeypatch.setattr(matcher, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(match, "SLICE_SECONDS", 0.2)


def rows(made: Any) -> list[tuple[float, ...]]:
    """What was recorded of every iteration, but for its wall time."""
    table = made.table("metrics.parquet")
    return list(zip(*(table[c] for c in table if c != "seconds"), strict=True))


def has(folder: Path, name: str) -> bool:
    return (folder / name).exists()


def test_a_killed_loop_goes_on_from_its_checkpoint(stages, convex, spared, killing, tmp_path):
    """The loop's worker is killed in the middle: the set comes out bit for bit as without that."""
    with killing("ray::MatchWorker", lambda: has(tmp_path, matcher.CHECKPOINT)) as killed:
        struck = stages.match(convex, tmp_path, **LONG)
    assert len(killed) == 1
    assert struck.set_bytes == spared.set_bytes
    assert rows(struck) == rows(spared)
    assert struck.out.names() == spared.out.names()


def test_a_stage_goes_on_from_the_checkpoint_of_a_killed_driver(
    stages, convex, spared, cut_when, cut, tmp_path
):
    """A second attempt takes up the first one's checkpoint and ends with the same bits."""
    with pytest.raises(cut):
        stages.match(convex, tmp_path, cut_when(lambda: has(tmp_path, matcher.CHECKPOINT)), **LONG)
    saved = load((tmp_path / matcher.CHECKPOINT).read_bytes())["more.rows"]
    assert len(saved) in (ANCHOR, 2 * ANCHOR)
    again = stages.match(convex, tmp_path, **LONG)
    assert again.set_bytes == spared.set_bytes
    assert rows(again) == rows(spared)
    # Only iterations that were not done again keep the wall times of the first attempt.
    assert again.table("metrics.parquet")["seconds"][: len(saved)] == saved[:, -1].tolist()


def test_short_evaluations_that_are_done_are_not_done_again(stages, convex, cut_when, cut, tmp_path):
    """A second attempt reads the students that the first one has judged, and trains the others."""
    settings = {**LONG, "evaluate_every": 20, "evaluate_epochs": 5}
    first = tmp_path / "student-000000-0.json"
    condition = lambda: first.exists() and has(tmp_path, "snapshot-000020.safetensors")  # noqa: E731
    with pytest.raises(cut):
        stages.match(convex, tmp_path, cut_when(condition), **settings)
    found = json.loads(first.read_text())
    first.write_text(json.dumps({**found, "accuracy": 0.123}))
    again = stages.match(convex, tmp_path, **settings)
    table = again.table("accuracy.parquet")
    assert table["iteration"] == [0, 20, 40, 60]
    assert table["accuracy"][0] == 0.123
    assert 0.123 not in table["accuracy"][1:]
    assert again.out.names() == ["accuracy.parquet", "metrics.parquet"]


def three_windows(stages, experts) -> Loop:
    """The same meta-batch of three windows, computed one after the other without Ray."""
    config = stages.match_config(**THREE)
    seed, cpu = derive(stages.seed, "distill"), torch.device("cpu")
    labels, classes = stages.source.train.labels, stages.source.train.classes
    picked = picking.per_class(labels, classes, config.ipc, generator(seed, "images"))
    opened = [files.open_trajectory(experts.out, files.file_name(i), "convex") for i in range(3)]
    settings = matcher.settings(config)
    fixed = Matcher(stages.steps, settings, opened, labels[picked], 10, seed, cpu)
    loop = Loop.begin(fixed, first_state(stages.splits[0].x[picked], None, settings))
    for _ in range(config.iterations):
        loop.step()
    return loop


def test_three_workers_average_three_windows(stages, convex, tmp_path):
    """A meta-batch spread over three workers is the same windows averaged in one process, bit for bit."""
    made, loop = stages.match(convex, tmp_path, **THREE), three_windows(stages, convex)
    assert torch.equal(made.distilled.images, loop.state.images)
    assert rows(made) == [row[:-1] for row in loop.rows]


@pytest.mark.parametrize("title", ["ray::WindowWorker", "ray::MatchWorker"])
def test_a_meta_batch_survives_any_killed_worker(stages, convex, killing, title, tmp_path):
    """Whichever of the three workers is killed in the middle, the result is the same."""
    with killing(title, lambda: has(tmp_path, matcher.CHECKPOINT)) as killed:
        struck = stages.match(convex, tmp_path, **THREE)
    assert len(killed) == 1
    assert torch.equal(struck.distilled.images, three_windows(stages, convex).state.images)


def test_more_workers_than_cpus_share_them(stages, convex, tmp_path):
    """Three workers on two CPUs all get a part of one: they run together or not at all."""
    settings = {**THREE, "iterations": 2, "resources": {}}
    assert stages.match(convex, tmp_path, **settings).summary["iterations"] == 2


def test_workers_that_never_fit_together_are_refused(stages, convex, tmp_path):
    """A meta-batch that would wait for CPUs for ever says so at once."""
    with pytest.raises(StageError) as caught:
        stages.match(convex, tmp_path, **{**THREE, "resources": {"num_cpus": 1}})
    assert str(caught.value) == (
        "3 workers run together at 1 CPU and 0 GPU each, and the cluster holds 2 of them (2 CPU, 0 GPU). "
        "Lower the stage's workers or its resources, or add nodes."
    )


def test_evaluations_wait_for_the_loop_where_it_has_all_cpus(stages, convex, tmp_path):
    """With every CPU given to the loop, short evaluations run after it instead of never."""
    settings = {"evaluate_every": 2, "evaluate_epochs": 1, "resources": {"num_cpus": 2}}
    made = stages.match(convex, tmp_path, **settings)
    assert made.table("accuracy.parquet")["iteration"] == [0, 2, 4]


def test_a_run_gone_astray_stops_with_the_facts_and_keeps_the_last_good_set(stages, convex, tmp_path):
    """A thousand times the rate diverges within a few iterations: the error names everything needed."""
    with pytest.raises(DivergedError) as caught:
        stages.match(convex, tmp_path, iterations=40, lr_image=2e7, retries=0)
    text = str(caught.value)
    assert text.startswith("diverged at iteration ")
    for fact in ("expert ", "start epoch ", "lr_image 2e+07", "student learning rate 0.05"):
        assert fact in text
    assert "Try a smaller lr_image (it was 2e+07) or lr_lr (it was 0.0001)." in text
    images, labels, lr = matcher.read_snapshot(_folder(tmp_path), "last-good.safetensors")
    assert (tuple(images.shape), labels.tolist()) == ((10, 1, 8, 8), list(range(10)))
    assert torch.isfinite(images).all()
    assert lr == 0.05
    assert not has(tmp_path, "set/set.json")


def _folder(path: Path) -> Any:
    from rayddl.storage import Folder

    return Folder(str(path))


def test_a_run_taken_back_says_so(stages, convex, told, tmp_path):
    """A run that goes astray and recovers at a tenth of its rates is told about on the screen."""
    progress = told()
    made = stages.match(convex, tmp_path, progress, iterations=6, lr_image=2e7, lr_lr=0, retries=9)
    assert made.summary["retries"] > 0
    assert any("went astray and was taken back; rates are now" in note for note in progress.notes)
    assert torch.isfinite(made.distilled.images).all()


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


def test_experts_that_stand_still_are_refused(stages, tmp_path):
    """Experts that do not move over any window stop the run with a reason, from inside its worker."""
    still = stages.experts(tmp_path / "experts", count=1, lr=1e-12, momentum=0.0)
    with pytest.raises(StageError, match=r"no expert moves over 1 epochs from epochs up to 3: 20 windows"):
        stages.match(still, tmp_path / "out")


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
