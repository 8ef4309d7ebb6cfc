"""The coreset stage: what it chooses, from where, and what stops it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.nn.utils import vector_to_parameters

from rayddl.data.config import SourceConfig
from rayddl.data.distilled import DistilledSet
from rayddl.data.pixels import space
from rayddl.data.sources import registry as sources
from rayddl.methods.selection.features import before_last
from rayddl.methods.selection.select import easiest, herding, k_center, medium
from rayddl.methods.training.observer import Observer, frozen
from rayddl.nets.build import build
from rayddl.nets.config import NetConfig
from rayddl.stages import parquet as tables
from rayddl.stages.context import Input
from rayddl.stages.coreset import stage as coreset
from rayddl.stages.coreset.settings import CoresetConfig
from rayddl.stages.experts.settings import ExpertsConfig
from rayddl.stages.runtime import shards
from rayddl.stages.runtime import sources as runtime_sources
from tests.finishing import finished
from tests.raising import raises

pytestmark = pytest.mark.ray

PER_CLASS = 6


@pytest.fixture
def choose(stages, tmp_path):
    """Runs the stage on the digits, or another source, and gives what it left."""

    def run(
        read: Input | None = None,
        source: SourceConfig | None = None,
        out: str = "out",
        progress: Any = None,
        **said: Any,
    ) -> Input:
        given = {"kind": "coreset", "ipc": 2, **said, **({} if read is None else {"features": read.stage})}
        config = CoresetConfig.model_validate(given)
        reads = {} if read is None else {read.stage: read}
        context = stages._context("coreset", tmp_path / out, reads, progress)
        context = context if source is None else replace(context, source=source)
        result = finished(coreset.run, config, context)
        return Input("coreset", "coreset", context.out, config.model_dump(mode="json"), result.summary)

    return run


def made(done: Input) -> DistilledSet:
    return DistilledSet.load(done.folder.child("set"))


def expected(select, features: torch.Tensor, labels: torch.Tensor, ipc: int) -> torch.Tensor:
    """Indices that ``select`` takes of the features of each class, computed here."""
    members = [(labels == c).nonzero().flatten() for c in range(int(labels.max()) + 1)]
    return torch.cat([m[select(features[m], ipc)] for m in members])


def test_pixels_are_herded_class_by_class(choose, stages):
    """Without features, what is chosen is what herding takes of each class's pixels in model space."""
    done, train = choose(method="herding", ipc=3), stages.source.train
    x, y = stages.splits[0].x, stages.splits[0].y
    picked = expected(herding, x.flatten(1), y, 3)

    found = made(done)
    assert torch.equal(found.stored, train.images[picked])
    assert torch.equal(found.labels, y[picked])
    assert torch.equal(found.images, x[picked])
    assert found.classes == train.classes
    assert found.info["method"] == done.summary["method"] == "herding"
    assert done.summary["images"] == 30
    assert done.folder.names() == ["chosen.parquet", "space.json", "space.safetensors"]
    table = tables.read(done.folder, "chosen.parquet")
    assert [int(name) for name in table["image"]] == picked.tolist()
    assert table["rank"][:4] == [0, 1, 2, 0]


def test_centers_are_found_by_the_first_experts_features(choose, stages, convex):
    """Features are what the last layer of expert 0 is given at the end of its training."""
    done = choose(convex.as_input(), method="kcenter")
    x, y = stages.splits[0].x, stages.splits[0].y
    net = build(stages.experts_config().net, (1, 8, 8), 10, seed=0).requires_grad_(False)
    vector_to_parameters(convex.expert(0)["waypoints"][-1], net.parameters())

    picked = expected(k_center, before_last(net, x), y, 2)

    assert torch.equal(made(done).stored, stages.source.train.images[picked])
    assert made(done).info["net"] == convex.summary["net"]


def test_random_images_follow_the_seed(choose, stages):
    """Random images are real ones of their class, different ones, and the same for the same seed."""
    first, again = choose(method="random", out="a"), choose(method="random", out="b")
    other = choose(method="random", out="c", ipc=3)
    images = made(first).stored

    assert torch.equal(images, made(again).stored)
    assert torch.equal(images[:2], made(other).stored[:2])
    train = stages.source.train
    names = [int(name) for name in tables.read(first.folder, "chosen.parquet")["image"]]
    assert len(set(names)) == 20
    assert train.labels[names].tolist() == made(first).labels.tolist()
    assert torch.equal(train.images[names], images)


def test_few_images_looked_at_are_all_there_is_to_choose_from(choose):
    """With as many images looked at as asked for, every method takes the same ones."""
    chosen = []
    for method in ("herding", "kcenter", "random"):
        done = choose(method=method, out=method, mipc=2)
        chosen.append(set(tables.read(done.folder, "chosen.parquet")["image"]))

    assert len(chosen[0]) == 20
    assert chosen[0] == chosen[1] == chosen[2]


def test_a_killed_choice_goes_on(choose, stages, cut, cut_when, monkeypatch):
    """Classes that were done before the driver ended are not looked at again, and the set is the same."""
    whole = choose(method="herding", out="whole")
    progress = cut_when(lambda: bool(list(Path(whole.folder.uri).parent.glob("cut/class-*.safetensors"))))
    with pytest.raises(cut):
        choose(method="herding", out="cut", progress=progress)
    # A file that was being written when the driver ended has another name, and is no class that was done.
    kept = sorted(p.name for p in Path(whole.folder.uri).parent.glob("cut/class-*.safetensors"))
    asked: list[int] = []
    groups = coreset._groups
    monkeypatch.setattr(
        coreset, "_groups", lambda missing, *rest: asked.extend(missing) or groups(missing, *rest)
    )
    done = choose(method="herding", out="cut")

    assert kept
    assert len(asked) <= 10 - len(kept)
    assert done.folder.child("set").read("set.safetensors") == whole.folder.child("set").read(
        "set.safetensors"
    )


def test_the_set_is_judged_like_any_other(choose, stages, tmp_path):
    """Evaluate takes the set as it takes a matched one."""
    net = [{"name": "convnet", "depth": 1, "width": 8}]
    done = replace(choose(method="herding"), stage="distill")
    judged = stages.evaluate(done, tmp_path / "judged", seeds=1, nets=net, random=False)

    assert [row["data"] for row in judged.summary["rows"]] == ["distilled"]
    assert judged.summary["rows"][0]["mean"] > 0.2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Colour images in class folders, one file of them no image, and a teacher that has never seen any."""
    root = tmp_path_factory.mktemp("pictures")
    draws = torch.Generator().manual_seed(0)
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            place = root / split / name
            place.mkdir(parents=True)
            for index in range(PER_CLASS):
                pixels = torch.randint(0, 256, (12, 12, 3), generator=draws, dtype=torch.uint8)
                Image.fromarray(pixels.numpy()).save(place / f"{index}.png")
    (root / "train" / "dog" / "broken.png").write_bytes(b"no picture")
    config = NetConfig(depth=1, width=4)
    module = frozen(build(config, (3, 12, 12), 2, seed=0))
    teacher = Observer(module, config, ("dog", "cat"), (3, 12, 12), (0.5,) * 3, (0.25,) * 3)
    return root, teacher


def as_source(root: Path, **said: Any) -> SourceConfig:
    return SourceConfig(name="imagefolder", root=str(root), max_bad_fraction=0.2, **said)


def test_files_are_read_as_a_teacher_needs_them(choose, stages, folder, tmp_path, monkeypatch, told):
    """Files are never loaded as a whole; a broken one is told and left out; the features are the teacher's."""
    root, teacher = folder
    teacher_folder = stages._context("teacher", tmp_path / "teacher", {}, None).out
    teacher.save(teacher_folder.child("observer"))
    read = Input("teacher", "teacher", teacher_folder, {}, {})
    monkeypatch.setattr(coreset, "publish", None)
    progress = told()
    done = choose(read, as_source(root), progress=progress, method="herding")

    train = sources.load(as_source(root)).train
    features = before_last(teacher.module, teacher.input_spec.normalised(train.images))
    picked = expected(herding, features, train.labels, 2)
    assert torch.equal(made(done).stored, train.images[picked])
    assert torch.equal(made(done).images, teacher.input_spec.normalised(train.images[picked]))
    assert done.summary["bad"] == 1
    assert done.summary["bad_examples"][0].startswith("dog/broken.png: ")
    assert progress.notes[0].startswith("skipped an unreadable image: dog/broken.png: ")


def test_a_large_split_is_chosen_from_in_shards(choose, folder, monkeypatch):
    """The same images, in the same pixel space, though no process holds them all."""
    root, _ = folder
    train = sources.load(as_source(root)).train
    fitted = space.fit("normalise", train.images)
    monkeypatch.setattr("rayddl.stages.runtime.sizes.WHOLE_BYTES", 0)
    monkeypatch.setattr(shards, "SHARD_BYTES", 5 * 3 * 12 * 12)
    monkeypatch.setattr(runtime_sources.sources, "load", None)
    done = choose(None, as_source(root), method="kcenter")

    picked = expected(k_center, fitted.encode(train.images).flatten(1), train.labels, 2)
    assert torch.equal(made(done).stored, train.images[picked])
    assert torch.equal(made(done).images, fitted.encode(train.images[picked]))
    assert made(done).space.fingerprint == fitted.fingerprint
    assert [int(name) for name in tables.read(done.folder, "chosen.parquet")["image"]] == picked.tolist()


@pytest.mark.parametrize("method", ["easiest", "medium"])
def test_a_teachers_scores_select_images(choose, stages, folder, tmp_path, method):
    """By the probability of each image's own class, though the teacher has the classes in another order."""
    root, teacher = folder
    teacher_folder = stages._context("teacher", tmp_path / "teacher", {}, None).out
    teacher.save(teacher_folder.child("observer"))
    done = choose(Input("teacher", "teacher", teacher_folder, {}, {}), as_source(root), method=method)

    train = sources.load(as_source(root)).train
    logits = teacher.module(teacher.input_spec.normalised(train.images))[:, [1, 0]]
    scores = logits.log_softmax(1).gather(1, train.labels[:, None])[:, 0]
    picked = expected({"easiest": easiest, "medium": medium}[method], scores, train.labels, 2)
    assert torch.equal(made(done).stored, train.images[picked])
    assert done.summary["method"] == method


def test_a_short_class_is_refused_or_filled(choose, folder):
    """Too few images name the class; ``cap`` takes all there are, ``repeat`` begins again."""
    root, _ = folder
    with raises("class-too-small"):
        choose(None, as_source(root), method="kcenter", ipc=9)
    capped = made(choose(None, as_source(root), method="kcenter", ipc=9, short_class="cap", out="cap"))
    repeated = made(choose(None, as_source(root), method="random", ipc=9, short_class="repeat", out="repeat"))

    assert capped.labels.bincount().tolist() == [6, 6]
    assert repeated.labels.bincount().tolist() == [9, 9]
    assert torch.equal(repeated.stored[:3], repeated.stored[6:9])


def test_features_of_batch_norm_experts_are_refused_before_anything_runs():
    """Trajectories have no running statistics: the definition is refused, with another way."""
    config = CoresetConfig(kind="coreset", method="herding", ipc=1, features="buffer")
    experts = ExpertsConfig(kind="experts", net=NetConfig(norm="batch"))

    problems = config.check({"features": experts})
    assert "the experts of 'buffer' have batch norm" in problems[0]
    assert "take features from a teacher" in problems[0]
    assert config.check({"features": ExpertsConfig(kind="experts")}) == []
    few = CoresetConfig(kind="coreset", method="herding", ipc=3, mipc=2)
    assert few.check({}) == ["3 images of each class cannot be chosen from 2; raise mipc, or lower ipc"]
