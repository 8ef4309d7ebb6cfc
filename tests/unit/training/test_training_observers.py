"""Several observers that label together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rayddl.data.config import SourceConfig
from rayddl.data.distilled import DistilledSet
from rayddl.data.pixels import space
from rayddl.methods.training.observer import Observer, frozen
from rayddl.methods.training.observers import ObserverGroup, together
from rayddl.nets.build import build
from rayddl.nets.config import NetConfig
from rayddl.pipeline.definition.load import load
from rayddl.stages.context import Context, Input
from rayddl.stages.evaluate import soft_labels
from rayddl.stages.evaluate.settings import EvaluateConfig
from rayddl.stages.settings import without_resources
from rayddl.storage import Folder
from tests.raising import raises

CLASSES = ("a", "b", "c")
CPU = torch.device("cpu")


def observer(name: str, seed: int, mean: float, std: float, side: int = 8) -> Observer:
    net = NetConfig.model_validate({"name": name, "norm": "batch"} if name == "convnet" else {"name": name})
    shape = (1, side, side)
    return Observer(
        frozen(build(net, shape, 3, seed=seed)), net, CLASSES, shape, (mean,), (std,), 0.5 + seed / 10
    )


ONE, TWO = observer("convnet", 1, 0.4, 0.3), observer("mlp", 2, 0.1, 0.7)


def pixels() -> Tensor:
    draws = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (6, 1, 8, 8), generator=draws, dtype=torch.uint8)


def by_hand(*members: Observer) -> Tensor:
    """The mean of the logits, each network shown the images in its own scaling."""
    each = [one.module((pixels() / 255 - one.mean[0]) / one.std[0]) for one in members]
    return sum(each[1:], each[0]) / len(each)


def test_logits_are_averaged_each_network_seeing_its_own_scaling() -> None:
    """Also after a move to a device; images come in the first one's scaling."""
    group = together([ONE, TWO])
    for labeller in (group, group.on(CPU)):
        found = labeller.module(labeller.input_spec.normalised(pixels()))
        torch.testing.assert_close(found, by_hand(ONE, TWO), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(by_hand(ONE, TWO), by_hand(ONE), atol=1e-2)


def test_a_single_observer_stays_what_it_is() -> None:
    """Its logits keep their bits; observers of other sizes see other crops."""
    assert together([ONE]) is ONE
    with raises("observers-of-other-sizes"):
        together([ONE, observer("convnet", 1, 0.4, 0.3, side=16)])


@pytest.fixture
def made(tmp_path: Path) -> DistilledSet:
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    return DistilledSet(pixels(), labels, 0.01, CLASSES, space.fit("normalise", pixels()), {})


def stage(tmp_path: Path, **settings: Any) -> tuple[EvaluateConfig, Context]:
    """The settings and context of an evaluation by two teachers."""
    inputs = {}
    for name, seen in (("one", ONE), ("two", TWO)):
        inputs[name] = Input(name, "teacher", Folder(str(tmp_path / name)), {}, {})
        seen.save(inputs[name].folder.child("observer"))
    config = EvaluateConfig.model_validate(
        {"kind": "evaluate", "set": "s", "observer": ["one", "two"], **settings}
    )
    return config, Context(
        "evaluate", SourceConfig(name="digits"), 0, Folder(str(tmp_path / "out")), inputs, {}
    )


@pytest.mark.parametrize("carried", [True, False])
def test_a_set_finds_all_its_observers_again(
    made: DistilledSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, carried: bool
) -> None:
    """Small ones within its folder, large ones where they were; one that is missing is missed."""
    if not carried:
        monkeypatch.setattr(soft_labels, "CARRIED_BYTES", 10)
    config, context = stage(tmp_path)
    label_source = soft_labels.of_stage(config, made, context)
    assert label_source is not None
    assert [where["accuracy"] for where in label_source.where] == [0.6, 0.7]
    folder = context.out.child("set")
    judged = replace(made, info={"protocol": {"name": "soft", "observer": label_source.where}})
    soft_labels.carry(label_source, folder)
    judged.save(folder)
    assert folder.folders() == (["images", "observer-0", "observer-1"] if carried else ["images"])

    again = soft_labels.of_set(config, DistilledSet.load(folder), folder)
    assert again is not None
    assert isinstance(again.observer, ObserverGroup)
    shown = again.input_spec.normalised(pixels())
    assert torch.equal(again.observer.module(shown), label_source.observer.module(shown))

    (folder.child("observer-1") if carried else context.inputs["two"].folder.child("observer")).delete(
        "observer.json"
    )
    with raises("observer-gone"):
        soft_labels.of_set(config, DistilledSet.load(folder), folder)
    named = soft_labels.of_set(config, judged, folder, [str(tmp_path / "one")])
    assert named is not None
    assert [member.accuracy for member in named.members] == [0.6]


def test_a_list_of_one_is_that_one() -> None:
    """For the fingerprint, too; a list of several is another evaluation, which reads them all."""
    base = {"kind": "evaluate", "set": "s"}
    one, alone, two = (
        EvaluateConfig.model_validate({**base, "observer": given}) for given in ("t", ["t"], ["t", "u"])
    )
    assert without_resources(one) == without_resources(alone) == {**base, "observer": "t"}
    assert (one.observers, two.observers) == (("t",), ("t", "u"))
    assert without_resources(two)["observer"] == ["t", "u"]
    stages = {name: {"kind": "teacher"} for name in ("t", "u")}
    stages |= {"s": {"kind": "rded", "teacher": "t", "ipc": 1}, "e": {**base, "observer": ["t", "u"]}}
    loaded = load({"name": "x", "source": {"name": "digits"}, "stages": stages})
    assert [set(found.reads) for found in loaded.stages if found.name == "e"] == [{"s", "t", "u"}]
    stages["e"]["observer"] = ["t", "v"]
    with raises("unknown-stage", "stages.e.observer"):
        load({"name": "x", "source": {"name": "digits"}, "stages": stages})
