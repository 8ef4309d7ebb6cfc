"""Ray's object store when it is full, and splits that are divided among objects."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import ray
import torch
from PIL import Image
from safetensors.torch import load

from rayddl.data.config import SourceConfig
from rayddl.data.distilled import DistilledSet
from rayddl.data.pixels import space
from rayddl.stages.context import Context, Input
from rayddl.stages.rded import trials as rded_trials
from rayddl.stages.rded.settings import RdedConfig
from rayddl.stages.runtime import model_space, shards, sources
from rayddl.stages.runtime.in_process import InProcess
from rayddl.stages.teacher import stage as teacher
from rayddl.stages.teacher.settings import TeacherConfig
from rayddl.stages.tune.settings import TuneConfig
from rayddl.storage import Folder
from tests.raising import raises

pytestmark = pytest.mark.ray


def test_a_full_object_store_spills_and_the_stage_goes_on(stages, tmp_path):
    """With half as much again held as fits, the stage's own objects still find room, and the held ones are read."""
    each = 30 * 2**20
    held = [ray.put(np.full(each, k, np.uint8)) for k in range(5)]
    made = stages.experts(tmp_path, count=1, epochs=1)
    assert made.summary["count"] == 1
    assert [int(ray.get(ref)[-1]) for ref in held] == list(range(5))


def test_held_out_images_in_shards_are_those_of_one_array(local_ray, tmp_path, monkeypatch):
    """Decoded by tasks, some images at a time: the same images, labels and unreadable files, and the same refusals."""
    draws = np.random.default_rng(0)
    for split, count in (("train", 2), ("val", 40)):
        for k in range(count):
            path = tmp_path / split / "ab"[k % 2] / f"{k:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            # The last shards have grey images alone.
            shape = (9, 9, 3) if k < 30 else (9, 9)
            Image.fromarray(draws.integers(0, 256, shape, dtype=np.uint8)).save(path)
    for k in (3, 35):
        (tmp_path / "val" / "b" / f"{k:02d}.png").write_bytes(b"no image")
    config = SourceConfig(name="imagefolder", root=str(tmp_path), size=8, max_bad_fraction=0.1)
    whole = sources.publish_held_out(config)
    monkeypatch.setattr("rayddl.stages.runtime.sizes.WHOLE_BYTES", 0)
    monkeypatch.setattr(shards, "SHARD_BYTES", 3 * 8 * 8 * 7)
    sources._published.clear()
    split = sources.publish_held_out(config)

    assert len(split.refs[2].refs) == 6
    found, wanted = sources.held_out(split), sources.held_out(whole)
    assert all(torch.equal(*pair) for pair in zip(found[0], wanted[0], strict=True))
    assert torch.equal(found[1], wanted[1])
    assert (split.shape, split.counts, split.bad) == (whole.shape, whole.counts, whole.bad)
    # The listing of a million images is put only for the trials of a search, which read them.
    assert split.listed is None
    template = RdedConfig(kind="rded", teacher="t", ipc=1, factor=1, mipc=1)
    context = Context("picked", config, 0, Folder(str(tmp_path)), {}, {})
    made = rded_trials.trials(TuneConfig.model_construct(), {"picked": template}, context, context.out)
    assert ray.get(made.source.listed).names.to_pylist() == ["a/00.png", "b/01.png"]
    with raises("too-many-bad-images"):
        sources.publish_held_out(config.model_copy(update={"max_bad_fraction": 0.01}))
    # All that is readable of the last five, which are a shard.
    for k in (31, 33, 37, 39):
        Image.new("RGB", (10, 10)).save(tmp_path / "val" / "b" / f"{k}.png")
    with raises("images-of-several-sizes"):
        sources.publish_held_out(config.model_copy(update={"size": None}))


def test_stages_of_shards_have_the_results_of_arrays(stages, tmp_path, monkeypatch):
    """A teacher, an expert and hard students of a source in shards, which no process reads whole."""
    draws = np.random.default_rng(0)
    for split, count in (("train", 60), ("val", 40)):
        for k in range(count):
            path = tmp_path / "images" / split / "ab"[k % 2] / f"{k:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = draws.integers(0, 200, (8, 8, 3)) + 50 * (k % 2)
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    config = SourceConfig(name="imagefolder", root=str(tmp_path / "images"), size=8)
    train = sources.sources.load(config).train
    made = DistilledSet(
        train.images[::10], train.labels[::10], 0.01, train.classes, space.fit("normalise", train.images), {}
    )
    own = replace(stages, source_config=config)

    def results(out):
        where = Context("teacher", config, 5, Folder(str(out / "teacher")), {}, {}, backend=InProcess())
        settings = {
            "kind": "teacher",
            "net": {"width": 4, "depth": 1},
            "epochs": 1,
            "batch": 16,
            "allow_weak": True,
        }
        told = teacher.run(TeacherConfig.model_validate({**settings, "compile": False}), where).summary
        expert = own.experts(out / "experts", count=1, epochs=1, batch=16)
        made.save(Folder(str(out / "made")).child("set"))
        given = Input("distill", "coreset", Folder(str(out / "made")), {}, {})
        asked = {
            "nets": [{"width": 4, "depth": 1}],
            "seeds": 2,
            "epochs": 1,
            "whole": True,
            "whole_epochs": 1,
        }
        judged = own.evaluate(given, out / "evaluate", **asked)
        observer = load(where.out.child("observer").read("observer.safetensors"))
        rows = [{k: row[k] for k in ("data", "accuracies", "images")} for row in judged.summary["rows"]]
        return {**observer, **expert.expert(0)}, (told["accuracy"], told["mean"], rows)

    whole, figures = results(tmp_path / "whole")
    monkeypatch.setattr("rayddl.stages.runtime.sizes.WHOLE_BYTES", 0)
    monkeypatch.setattr(shards, "SHARD_BYTES", 3 * 8 * 8 * 7)
    monkeypatch.setattr(sources.sources, "load", None)
    sources._published.clear()
    model_space._made.clear()
    split, again = results(tmp_path / "split")

    assert len(sources.publish(config).refs[0].refs) == 9
    assert again == figures
    assert split.keys() == whole.keys()
    assert all(torch.equal(split[name], whole[name]) for name in whole)
