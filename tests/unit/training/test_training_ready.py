"""Weights that are there already: files of every kind, torchvision's cache, and names of outputs."""

from __future__ import annotations

import argparse
import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import nn
from torchvision import models

from rayddl.errors import ArtifactError
from rayddl.methods.training import pretrained as ready
from rayddl.nets.build import build
from rayddl.nets.config import NetConfig
from tests.raising import raises

NET, SHAPE = NetConfig(depth=1, width=4, norm="batch"), (1, 8, 8)
SMALL = NetConfig.model_validate("tv_mobilenet_v2")


def network(seed: int = 1) -> nn.Module:
    return build(NET, SHAPE, 3, seed=seed)


def saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("wrap", ["plain", "model", "state_dict", "parallel", "safetensors"])
def test_a_file_of_weights_fills_the_network(tmp_path: Path, wrap: str) -> None:
    """A state dict, plain, in the published wrappers, of a parallel module, or as safetensors."""
    state = network(5).state_dict()
    forms: dict[str, Any] = {
        "plain": state,
        "model": {"model": state, "epoch": 3},
        "state_dict": {"state_dict": state},
        "parallel": {f"module.{k}": v for k, v in state.items()},
    }
    path = tmp_path / ("w.safetensors" if wrap == "safetensors" else "w.pth")
    path.write_bytes(save(state) if wrap == "safetensors" else saved(forms[wrap]))
    made, read = network(), ready.read_state(str(path))
    ready.fill(made, read, NET, str(path))

    assert same(made, network(5))
    assert ready.outputs_of(build(NET, SHAPE, 7, seed=0).state_dict(), read) == 3


def test_weights_under_other_names_are_taken_in_order() -> None:
    """The published code's names differ, its order and shapes do not."""
    state = {f"features.{i}": t for i, t in enumerate(network(5).state_dict().values())}
    made = network()
    ready.fill(made, state, NET, "w.pt")
    assert same(made, network(5))
    assert ready.outputs_of(build(NET, SHAPE, 7, seed=0).state_dict(), state) == 3
    with raises("weights-of-other-parameters"):
        ready.fill(made, state, NET, "w.safetensors")


def test_a_bias_without_a_dimension_is_one_output() -> None:
    """So that the number of outputs does not fit, whatever file it is from."""
    own = build(NET, SHAPE, 7, seed=0).state_dict()
    assert ready.outputs_of(own, {name: torch.tensor(0.0) for name in own}) == 1
    assert ready.outputs_of(own, {"b": torch.tensor(0.0)}) == 1


def test_weights_of_another_network_are_refused() -> None:
    """Unknown tensors, and known ones of another shape, are named."""
    with pytest.raises(ArtifactError) as caught:
        ready.fill(network(), {"fc.weight": torch.zeros(3, 2)}, NET, "w.pt")
    assert str(caught.value).startswith(
        "the weights in w.pt are not those of convnet-d1-w4-batch: 9 of 9 tensors"
    )
    assert "(first 'fc.weight'). Set net to the network that they were trained as." in str(caught.value)
    other = build(NET, SHAPE, 4, seed=0).state_dict()
    with raises("weights-of-another-shape"):
        ready.fill(network(), other, NET, "w.pt")


def test_a_file_that_is_no_state_dict_is_refused(tmp_path: Path) -> None:
    """Missing, pickled objects, lists and other bytes: nothing is executed, each is told."""
    path = tmp_path / "w.pth"
    with raises("teacher-file-unreadable"):
        ready.read_state(str(path))
    path.write_bytes(saved(network()))
    with raises("weights-unreadable"):
        ready.read_state(str(path))
    path.write_bytes(saved([torch.zeros(2)]))
    with raises("weights-not-a-mapping"):
        ready.read_state(str(path))
    path.write_bytes(saved({"epoch": 3}))
    with raises("weights-without-tensors"):
        ready.read_state(str(path))
    path.write_bytes(b"no weights")
    with raises("weights-unreadable"):
        ready.read_state(str(path))
    other = tmp_path / "w.safetensors"
    other.write_bytes(b"no weights")
    with raises("safetensors-damaged"):
        ready.read_state(str(other))


def test_torchvisions_weights_come_from_the_cache_with_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without leave to download: the file in torch hub's cache, its hash checked; classes and frame with it."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with raises("weights-not-in-cache"):
        ready.torchvision_weights(SMALL, download=False)

    data = saved({"a": torch.ones(1)})
    weights = models.get_model_weights("mobilenet_v2").DEFAULT
    name = f"mobilenet_v2-{hashlib.sha256(data).hexdigest()[:8]}.pth"
    monkeypatch.setattr(type(weights), "url", f"somewhere/{name}", raising=False)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / name).write_bytes(data)
    found = ready.torchvision_weights(SMALL, download=False)
    assert list(found.state) == ["a"]
    assert (len(found.classes), found.classes[0]) == (1000, "tench")
    assert (found.input_spec.shape, found.input_spec.mean) == ((3, 224, 224), (0.485, 0.456, 0.406))

    (tmp_path / "checkpoints" / name).write_bytes(saved({"a": torch.zeros(1)}))
    with raises("weights-altered"):
        ready.torchvision_weights(SMALL, download=False)


def test_default_weights_are_torchvisions_alone() -> None:
    """A network that torchvision does not have is refused with what to do."""
    with raises("weights-not-of-torchvision"):
        ready.torchvision_weights(NET, download=False)


def test_names_of_outputs_come_from_text_and_json(tmp_path: Path) -> None:
    """A line per output, names beside it after tabs; JSON as list, pairs, or numbered."""
    expected = (("n01", "tench"), ("n02", "shark"))
    text = tmp_path / "names.txt"
    text.write_text("n01\ttench\nn02\tshark\n\n")
    assert ready.read_names(str(text)) == expected
    for name, value in (
        ("a", [["n01", "tench"], ["n02", "shark"]]),
        ("b", {"0": expected[0], "1": expected[1]}),
    ):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(value))
        assert ready.read_names(str(path)) == expected
    assert ready.named(expected, ("shark", "n01")) == ("n01", "shark")
    assert ready.named(expected, ("whale",)) == ("n01", "n02")

    path = tmp_path / "c.json"
    path.write_text(json.dumps({"1": "a", "2": "b"}))
    with raises("class-file-malformed"):
        ready.read_names(str(path))
    with raises("teacher-file-unreadable"):
        ready.read_names(str(tmp_path / "none.txt"))
    for odd in ("[[]]", '["a", []]', "[" * 100_000, "[1]", '[{"a": 1}]', "[" + "9" * 5000 + "]", "3"):
        path.write_text(odd)
        with pytest.raises(ArtifactError) as caught:
            ready.read_names(str(path))
        assert caught.value.code == "class-file-malformed"


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {"net": s, "acc": 94.2},
        lambda s: {"model_state_dict": s, "optimizer_state_dict": {"state": {}, "param_groups": []}},
        lambda s: {"state_dict_ema": s, "epoch": 3},
        lambda s: {"epoch": 3, "model": {"state_dict": s}},
        lambda s: {f"module.{k}": v for k, v in s.items()} | {"n_averaged": torch.tensor(7)},
        lambda s: {f"_orig_mod.{k}": v for k, v in s.items()},
        lambda s: {"model": s, "model_ema": {k: torch.zeros_like(v) for k, v in s.items()}},
    ],
    ids=["net", "model_state_dict", "ema", "nested", "averaged", "compiled", "model-and-ema"],
)
def test_checkpoints_as_people_have_them(tmp_path: Path, wrap: Callable[[Any], Any]) -> None:
    """The one state dict inside is taken, under its own names."""
    state = network(5).state_dict()
    torch.save(wrap(state), tmp_path / "w.pth")

    read = ready.read_state(str(tmp_path / "w.pth"))

    assert read.keys() == state.keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in state.items())


def test_a_checkpoint_with_other_objects_is_refused_in_plain_words(tmp_path: Path) -> None:
    """Without torch's terminal codes and its advice to trust the file."""
    torch.save({"model": network(5).state_dict(), "args": argparse.Namespace(lr=1)}, tmp_path / "w.pth")

    with raises("weights-unreadable") as caught:
        ready.read_state(str(tmp_path / "w.pth"))
    assert "an object of argparse.Namespace" in str(caught.value)
    assert "without args" in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_without_weights_names_the_keys(tmp_path: Path) -> None:
    """Those that it has, and those that are looked for."""
    torch.save({"epoch": 3, "best": {"acc": 0.9}}, tmp_path / "w.pth")

    with raises("weights-without-tensors") as caught:
        ready.read_state(str(tmp_path / "w.pth"))
    assert "model_state_dict" in str(caught.value)
    assert str(caught.value).endswith("it has epoch, best.")
