"""The refine stage in this process: what it makes, from what, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from rayddl.data.config import SourceConfig
from rayddl.data.distilled import DistilledSet
from rayddl.data.pixels import space
from rayddl.data.sources.summary import SourceSummary
from rayddl.methods.refinement.features import extractor_of
from rayddl.methods.refinement.refine import Refined
from rayddl.methods.training.observer import Observer, frozen
from rayddl.nets.build import build
from rayddl.nets.config import NetConfig
from rayddl.stages import parquet as tables
from rayddl.stages.context import Context, Input, Result, Silent
from rayddl.stages.coreset.settings import CoresetConfig
from rayddl.stages.estimates import PROCESS, Estimate, Machine, Outlook
from rayddl.stages.refine import stage as refine
from rayddl.stages.refine import worker
from rayddl.stages.refine.estimate import estimate
from rayddl.stages.refine.settings import RefineConfig
from rayddl.stages.runtime.in_process import InProcess
from rayddl.stages.settings import without_resources
from rayddl.stages.teacher.settings import TeacherConfig
from rayddl.storage import Folder
from tests.finishing import finished
from tests.raising import raises

SHAPE, CLASSES = (1, 8, 8), ("a", "b")


def pictures(count: int, seed: int, side: int = 8) -> Tensor:
    draws = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 1, side, side), generator=draws, dtype=torch.uint8)


def labelled(images: Tensor, *counts: int, classes: tuple[str, ...] = CLASSES, **info: Any) -> DistilledSet:
    labels = torch.cat([torch.full((n,), k) for k, n in enumerate(counts)])
    return DistilledSet(images, labels, 0.02, classes, space.fit("normalise", images), info)


START = labelled(pictures(20, 0), 10, 10, method="RDED", factor=2, net=None)
ANCHORS = labelled(pictures(90, 1), 50, 40)


def observer(net: NetConfig, side: int = 8, seed: int = 0) -> Observer:
    shape = (1, side, side)
    return Observer(frozen(build(net, shape, 2, seed=seed)), net, CLASSES, shape, (0.4,), (0.3,))


CONVNET = NetConfig(depth=2, width=4, norm="batch")
TEACHERS = {"one": observer(CONVNET), "two": observer(NetConfig(name="mlp", depth=2, width=6), seed=1)}


class Cut(Exception):
    """Ends a stage."""


class Cutting(Silent):
    """Ends the stage when some images, and not all, are done."""

    def update(self, done: float, total: float, metric: str = "") -> None:
        if 0 < done < total:
            raise Cut


Runs = Callable[..., tuple[Folder, Result]]


@pytest.fixture
def run(tmp_path: Path) -> Runs:
    """Runs the stage in this process, on sets and observers of the test."""

    def started(
        out: str = "out", start: DistilledSet = START, anchors: DistilledSet = ANCHORS,
        teachers: dict[str, Observer] = TEACHERS, progress: Silent | None = None, **changes: Any,
    ) -> tuple[Folder, Result]:  # fmt: skip
        inputs = {}
        for name, made in (("start", start), ("real", anchors)):
            inputs[name] = Input(name, "coreset", Folder(str(tmp_path / f"{out}-{name}")), {}, {})
            made.save(inputs[name].folder.child("set"))
        for name, teacher in teachers.items():
            inputs[name] = Input(name, "teacher", Folder(str(tmp_path / f"{out}-{name}")), {}, {})
            teacher.save(inputs[name].folder.child("observer"))
        base = {"kind": "refine", "set": "start", "anchors": "real", "observer": list(teachers), "steps": 8}
        config = RefineConfig.model_validate({**base, "augment": "crop", **changes})
        folder, source = Folder(str(tmp_path / out)), SourceConfig(name="digits")
        context = Context("refine", source, 3, folder, inputs, {}, progress or Silent(), backend=InProcess())
        return folder, finished(refine.run, config, context)

    return started


def made(folder: Folder) -> DistilledSet:
    return DistilledSet.load(folder.child("set"))


def test_a_set_comes_nearer_to_its_anchors(run: Runs) -> None:
    """Labels, rate and grid stay; pixels are whole numbers again; the table has every view with its anchor."""
    folder, result = run(augment="none")
    found, summary = made(folder), result.summary

    assert found.stored.dtype == torch.uint8
    assert torch.equal(found.labels, START.labels)
    assert (found.lr_student, found.info["factor"]) == (0.02, 2)
    assert (found.info["method"], found.info["protocol"]) == ("RDED + CIM", {"name": "soft"})
    assert found.info["net"] == CONVNET.model_dump(mode="json")
    assert summary["gap_after"] < 0.8 * summary["gap_before"]
    assert not torch.equal(found.stored, START.stored)

    table = tables.read(folder, "views.parquet")
    assert len(table["anchor"]) == 80
    assert sum(table["after"]) / 80 == pytest.approx(summary["gap_after"], rel=1e-5)
    # Anchors are of the view's class; a has enough, and each of its views has one of its own.
    assert all(
        (place < 50) == (name == "a") for place, name in zip(table["anchor"], table["class"], strict=True)
    )
    assert len(set(table["anchor"][:40])) == 40
    assert folder.names() == ["views.parquet"]


def test_a_run_that_was_cut_goes_on_to_the_same_bits(
    run: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finished blocks are read, not refined again."""
    whole, _ = run("whole")
    with pytest.raises(Cut):
        run("cut", progress=Cutting())
    folder = Folder(str(tmp_path / "cut"))
    assert "block-00000.safetensors" in folder.names()

    refined: list[range] = []
    one = worker.refine
    monkeypatch.setattr(
        worker, "refine", lambda job, block, *rest: (refined.append(block), one(job, block, *rest))
    )
    again, _ = run("cut")
    assert refined == [range(16, 20)]
    assert again.child("set").read("set.safetensors") == whole.child("set").read("set.safetensors")
    assert again.read("views.parquet") == whole.read("views.parquet")


def test_an_image_does_not_depend_on_its_company(run: Runs) -> None:
    """With other images around it, and one fewer in the last block, an image has the same bits. Its draws are its own:
    a copy of it becomes another image.
    """
    pixels = START.stored.clone()
    pixels[2:10] = pictures(8, 9)
    pixels[2] = pixels[1]
    others = replace(START, stored=pixels[:19], labels=START.labels[:19])
    anchors = labelled(ANCHORS.stored[[0, 89]], 1, 1)  # one of each class, so that views have the same ones

    (first, _), (second, _) = run("first", anchors=anchors), run("second", others, anchors)
    alike = [0, 1, *range(10, 19)]
    assert torch.equal(made(first).stored[alike], made(second).stored[alike])
    assert not torch.equal(made(first).stored[3], made(second).stored[3])
    assert not torch.equal(made(second).stored[1], made(second).stored[2])


def test_sets_of_floats_and_of_soft_labels_are_refined(run: Runs) -> None:
    """A matched set, which has no grid: its pixels are the start, its labels stay."""
    labels = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    start = replace(START, stored=START.images[:3], labels=labels, info={"method": "MTT"})
    folder, result = run(start=start, teachers={"one": TEACHERS["one"]}, augment="none")

    assert torch.equal(made(folder).labels, labels)
    assert made(folder).stored.shape == (3, *SHAPE)
    assert result.summary["gap_after"] < result.summary["gap_before"]
    assert [name for name, _ in zip("aba", range(3), strict=True)] == tables.read(folder, "views.parquet")[
        "class"
    ]


def test_pixels_are_rounded_and_a_trial_takes_one_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trial, whose memory is measured, writes no file."""
    steps: list[int] = []

    def refined(
        job: worker.RefineTask, places: list[int], images: Tensor, anchors: Tensor, device: Any
    ) -> Refined:
        del places, device
        steps.append(job.config.steps)
        return Refined(
            torch.full(images.shape, 99.7 / 255), torch.zeros(len(anchors)), torch.ones(len(anchors))
        )

    monkeypatch.setattr(worker, "_refined", refined)
    base = {"kind": "refine", "set": "s", "anchors": "r", "observer": "x", "steps": 8}
    job = worker.RefineTask(RefineConfig.model_validate(base), (), 2, 3, Folder(str(tmp_path)), 0, 1)
    worker.refine(job, range(3), pictures(3, 0), pictures(12, 1))
    assert worker.read_block(job, range(3))["images"].unique().tolist() == [100]
    worker.tried(job, pictures(3, 0), pictures(12, 1))
    assert steps == [8, 1]
    assert job.out.names() == [job.file(range(3))]


def test_features_are_those_of_the_named_layer() -> None:
    """The module's output, one row an image; by default the input of the last linear layer."""
    seen = observer(CONVNET)
    x = pictures(3, 0).float() / 255
    scaled = (x - 0.4) / 0.3
    blocks = seen.module.get_submodule("blocks")

    first = extractor_of(seen, "blocks.0")
    torch.testing.assert_close(first.scaled(x), scaled)
    expected = blocks[0](scaled.permute(0, 2, 3, 1))
    torch.testing.assert_close(first.features(first.scaled(x)), expected.flatten(1))
    last = extractor_of(seen, None)
    logits = seen.module.get_submodule("classifier")(last.features(last.scaled(x)))
    torch.testing.assert_close(logits, seen.module(scaled))
    pruned = seen.pruned(("b",))
    torch.testing.assert_close(extractor_of(pruned, "blocks.0").features(scaled), expected.flatten(1))


def test_layers_are_one_for_each_observer_or_one_for_all(run: Runs) -> None:
    """Another layer gives other images."""
    base = {"kind": "refine", "set": "s", "anchors": "r", "observer": ["x", "y"]}
    with pytest.raises(ValidationError, match="3 layers for 2 observers"):
        RefineConfig.model_validate({**base, "layers": ["a", "b", "c"]})
    several = RefineConfig.model_validate({**base, "layers": ["a", "b"]})
    assert [several.layer_of(k) for k in (0, 1)] == ["a", "b"]
    alone = RefineConfig.model_validate({**base, "layers": ["a"]})
    assert [alone.layer_of(k) for k in (0, 1)] == ["a", "a"]

    one = {"one": TEACHERS["one"]}
    (usual, _), (early, _) = run("a", teachers=one), run("b", teachers=one, layers=["blocks.0"])
    assert not torch.equal(made(usual).stored, made(early).stored)


def test_the_observer_is_named_as_that_of_an_evaluation() -> None:
    """By one name, in a list or not, which is the same definition, or by several; by no other key."""
    base = {"kind": "refine", "set": "s", "anchors": "r"}
    one, alone, two = (
        RefineConfig.model_validate({**base, "observer": given}) for given in ("t", ["t"], ["t", "u"])
    )
    assert without_resources(one) == without_resources(alone) == {**base, "observer": "t"}
    assert (one.observers, two.observers) == (("t",), ("t", "u"))
    for wrong in ({"observer": []}, {"observers": ["t"]}, {}):
        with pytest.raises(ValidationError):
            RefineConfig.model_validate({**base, **wrong})


def test_what_does_not_fit_is_refused_before_work_begins(run: Runs) -> None:
    """Layers, sizes, classes, and classes without an anchor."""
    one = {"one": TEACHERS["one"]}
    for layer in ("blocks.7", ""):
        with raises("no-such-layer"):
            run(teachers=one, layers=[layer])
    with raises("observer-of-another-size"):
        run(teachers={"large": observer(CONVNET, 16)})
    with raises("anchors-of-another-source"):
        run(anchors=labelled(ANCHORS.stored, 50, 40, classes=("a", "c")))
    with raises("anchors-of-another-source"):
        run(anchors=labelled(pictures(4, 0, side=10), 2, 2))
    with raises("class-without-anchors"):
        run(anchors=labelled(ANCHORS.stored[:5], 5, 0))


def test_a_layer_without_a_tensor_is_refused() -> None:
    """A module that no forward pass uses, such as one that only holds others."""
    seen = observer(CONVNET)
    seen.module.add_module("unused", torch.nn.Identity())
    with raises("layer-without-features"):
        extractor_of(seen, "unused").features(torch.zeros(1, *SHAPE))


def test_an_estimate_counts_images_and_a_step_of_every_observer() -> None:
    """Two observers take twice the memory of one; images as uint8, twice: as tensors and as pictures."""
    stages: dict[str, Any] = {
        "start": CoresetConfig(kind="coreset", method="random", ipc=5),
        "one": TeacherConfig.model_validate({"kind": "teacher", "net": {"name": "convnet", "depth": 2}}),
        "other": TeacherConfig.model_validate({"kind": "teacher", "net": {"name": "vgg11", "norm": "batch"}}),
    }
    base = {"kind": "refine", "set": "start", "anchors": "start"}
    here = Outlook(
        SourceConfig(name="digits"), SourceSummary((1, 8, 8), 10, 1000, 100), Machine(4, 2**33, ())
    )

    def expected(*observers: str) -> Estimate:
        return estimate(RefineConfig.model_validate({**base, "observer": list(observers)}), stages, here)

    one, two, unknown = expected("one"), expected("one", "one"), expected("one", "other")
    assert one.work == "50 images × 200 steps"
    assert one.memory is not None
    assert two.memory is not None
    assert two.memory - PROCESS == 2 * (one.memory - PROCESS)
    assert unknown.memory is None
    assert one.written == 50 * 64 * 2 + here.space
