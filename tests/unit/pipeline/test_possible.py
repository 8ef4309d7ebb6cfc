"""A plan refuses what must fail on the images, and outputs that cannot be written, before anything is started."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import rayddl
from rayddl import plugins
from rayddl.data.config import SourceConfig
from rayddl.data.sources import registry
from rayddl.data.sources.summary import source_summary
from rayddl.errors import NetError
from rayddl.nets.build import build
from rayddl.nets.config import NetConfig
from rayddl.pipeline import api
from rayddl.pipeline.display.base import Hidden
from rayddl.pipeline.runner import execute
from tests.raising import raises

Photos = Callable[..., dict[str, Any]]


@pytest.fixture
def photos(tmp_path: Path) -> Photos:
    """A source of two classes with 10 and 5 photos; a fifth is held out."""

    def made(*sizes: tuple[int, int], **settings: Any) -> dict[str, Any]:
        for k in range(15):
            path = tmp_path / "photos" / f"class{int(k >= 10)}" / f"{k:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            width, height = sizes[k % len(sizes)]
            Image.fromarray(np.full((height, width, 3), k, np.uint8)).save(path)
        return {"name": "imagefolder", "root": str(tmp_path / "photos"), "holdout": 0.2, **settings}

    return made


MATCH = {"kind": "match", "experts": "experts", "syn_steps": 1, "expert_epochs": 2, "max_start_epoch": 2}


def _refused(source: dict[str, Any], says: str, out: Path, **stages: Any) -> None:
    """The estimate of the plan, which ``rayddl plan`` shows, and the run are refused."""
    definition = {"name": "d", "source": source, "stages": stages}
    made = api.plan(definition, out=str(out))
    with raises("must-fail") as caught:
        api.estimate(made)
    assert says in str(caught.value)
    with raises("must-fail"):
        execute(made, Hidden())
    assert not out.exists()


EXPERTS = {"kind": "experts", "net": {"name": "convnet", "depth": 2, "width": 4}, "batch": 2}


@pytest.mark.parametrize(
    "stage",
    [
        {"kind": "coreset", "method": "random", "ipc": 5},
        {"kind": "rded", "teacher": "teacher", "ipc": 2, "factor": 2, "mipc": 50},
        {**MATCH, "ipc": 5},
    ],
    ids=lambda stage: stage["kind"],
)
def test_more_images_than_the_smallest_class_has(
    photos: Photos, stage: dict[str, Any], tmp_path: Path
) -> None:
    """Four of five photos remain for training; with ``short_class`` the stage can run."""
    source = photos((8, 8))
    others = {"experts": EXPERTS, "teacher": {**EXPERTS, "kind": "teacher"}}
    _refused(source, "the smallest class has 4", tmp_path / "runs", made=stage, **others)
    definition = {
        "name": "d",
        "source": source,
        "stages": {"made": {**stage, "short_class": "cap"}, **others},
    }
    api.estimate(api.plan(definition, out=str(tmp_path / "runs")))


def test_mixed_sizes_without_a_size(photos: Photos, tmp_path: Path) -> None:
    """The message proposes one; with it the stage can run."""
    source = photos((8, 8), (12, 10))
    _refused(source, "source.size=8", tmp_path / "runs", experts=EXPERTS)
    definition = {"name": "d", "source": {**source, "size": 8}, "stages": {"experts": EXPERTS}}
    api.estimate(api.plan(definition, out=str(tmp_path / "runs")))


@pytest.mark.parametrize(
    ("net", "says"),
    [
        ({"name": "convnet", "depth": 4}, "depth 3 or less"),
        ("vgg11", "at least 32 pixels"),
        ("lenet", "at least 16 pixels"),
    ],
)
def test_networks_that_a_size_does_not_allow(photos: Photos, net: Any, says: str, tmp_path: Path) -> None:
    """Of the stage itself, and of students."""
    source = photos((8, 8))
    _refused(source, says, tmp_path / "runs", experts={**EXPERTS, "net": net})
    random = {"kind": "coreset", "method": "random", "ipc": 1}
    students = {"kind": "evaluate", "set": "picked", "nets": ["mlp", net]}
    _refused(source, says, tmp_path / "runs", picked=random, evaluate=students)


@pytest.mark.parametrize("name", ["convnet", "alexnet", "vgg11", "lenet", "resnet18", "mlp"])
@pytest.mark.parametrize("side", [4, 7, 8, 12, 15, 16, 28, 31, 32])
def test_the_least_sizes_are_those_of_the_networks(name: str, side: int) -> None:
    """A network that is refused cannot be built, and one that is not can."""
    net = NetConfig.model_validate({"name": name, **({"depth": 3, "width": 2} if name == "convnet" else {})})
    try:
        build(net, (3, side, side), 2, seed=0)
        built = True
    except NetError:
        built = False
    assert net.takes(side, side) is built


def test_the_smallest_class_is_counted_without_loading(photos: Photos) -> None:
    """After the share that is held out; of the digits, too."""
    for source in (SourceConfig.model_validate(photos((8, 8))), SourceConfig(name="digits")):
        assert source_summary(source).fewest == min(registry.load(source).train.counts())


def test_an_output_in_the_way_of_a_file(photos: Photos, tmp_path: Path) -> None:
    """A file where a folder has to be made; a new folder is fine, and nothing is written by a plan."""
    (tmp_path / "file").write_text("")
    definition = {"name": "d", "source": {"name": "digits"}, "stages": {"experts": EXPERTS}}
    with raises("out-not-writable"):
        api.plan(definition, out=str(tmp_path / "file" / "deeper"))
    api.plan(definition, out=str(tmp_path / "a" / "b"))
    assert not (tmp_path / "a").exists()


def test_a_network_of_a_plugin_is_tried(photos: Photos, tmp_path: Path) -> None:
    """A plan builds it and runs it once, before stages that it depends on have taken their time."""
    wrong = {"wrong": lambda classes, channels, size: torch.nn.Linear(size, classes)}
    experts = {**EXPERTS, "net": {"name": "wrong"}}
    definition = {"name": "d", "source": photos((8, 8)), "stages": {"experts": experts}}
    try:
        made = api.plan(definition, out=str(tmp_path), plugins=[rayddl.Plugin("mine", nets=wrong)])
        with raises("must-fail") as caught:
            api.estimate(made)
        assert "experts: network 'wrong' of plugin mine" in str(caught.value)
    finally:
        plugins.activate([])
