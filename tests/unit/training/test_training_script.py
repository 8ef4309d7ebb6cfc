"""The script that an export brings trains as the evaluation does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn

from rayddl.data.config import SourceConfig
from rayddl.data.distilled import DistilledSet
from rayddl.data.pixels import augment
from rayddl.data.pixels.space import fit
from rayddl.data.sources import registry as sources
from rayddl.methods.training.hard import Protocol, train_student
from rayddl.methods.training.observer import Observer
from rayddl.methods.training.soft import (
    OwnLabels,
    SoftTraining,
    inputs,
)
from rayddl.methods.training.softlabels import StoredLabels
from rayddl.methods.training.steps import steps_for
from rayddl.methods.training.teacher import outputs
from rayddl.nets.build import build
from rayddl.nets.config import NetConfig
from rayddl.nets.plain import plain
from rayddl.seeds import generator
from rayddl.storage import Folder
from tests.unit.training.script_sets import (
    CPU,
    NET,
    NETS,
    ON_CPU,
    exported,
    hard_set,
    observer,
    opened,
    soft_set,
)


@pytest.mark.parametrize(("net", "shape"), NETS, ids=str)
def test_a_network_as_text_is_the_network(net: dict[str, Any], shape: tuple[int, int, int]) -> None:
    """The same parameters by name, drawn from the same distributions, and the same outputs."""
    config = NetConfig.model_validate(net)
    text = plain(config, shape, dropout=False)
    assert text is not None
    scope: dict[str, Any] = {"nn": nn, "torchvision": torchvision, "CHANNELS": shape[0], "CLASSES": 10}
    exec(f"import collections\n{text.function}\nmade = {text.call}", scope)
    made, own = scope["made"], build(config, shape, 10, seed=0)

    starts, expected = made.state_dict(), own.state_dict()
    assert list(starts) == list(expected)
    for name, value in expected.items():
        assert starts[name].shape == value.shape, name
        if value.numel() > 2000:
            assert float(starts[name].std()) == pytest.approx(float(value.std()), rel=0.1), name
    made.load_state_dict(expected)
    images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(made.eval()(images), own.eval()(images), atol=1e-4, rtol=1e-3)


def test_a_plugins_network_is_no_text() -> None:
    config = NetConfig.model_construct(name="mine", norm="none", depth=3, width=128)
    assert plain(config, (1, 8, 8), dropout=False) is None


@pytest.mark.parametrize("space", ["normalise", "zca"])
def test_a_set_of_own_labels_trains_as_in_its_evaluation(digits: Any, tmp_path: Path, space: str) -> None:
    """From the same start, the script's student has the parameters of the evaluation's, up to rounding."""
    made = hard_set(digits, Folder(str(tmp_path / "set")), space=space)
    module = opened(exported(Folder(str(tmp_path / "set")), tmp_path / "to"))
    config, shape = NetConfig.model_validate(NET), (1, 8, 8)
    start = build(config, shape, 10, seed=1)
    theta = torch.cat([p.detach().reshape(-1) for p in start.parameters()])
    steps = steps_for(config, shape, 10, "fp32", False)
    expected = train_student(
        steps, Protocol(epochs=5, lr=0.05, augment="none"), theta, made.images, made.labels, 10, 0
    )

    # Parameters are the same by name, so rayddl's network can take the place of the script's.
    module.convnet = lambda *_: start
    trained = module.train(0, 5)

    found = torch.cat([p.detach().reshape(-1) for p in trained.parameters()])
    assert torch.allclose(found, expected, atol=1e-4)
    assert not torch.allclose(found, theta, atol=1e-2)
    assert torch.allclose(module.encode(digits.test.images), made.space.encode(digits.test.images), atol=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"factor": 2, "schedule": "cosine"},
        {"loss": "mse_gt", "ema": 0.9, "optimizer": "sgd"},
        {"loss": "gift", "statistics": "twice", "schedule": "linear"},
        {"shape": (3, 28, 28), "factor": 3},
    ],
    ids=str,
)
def test_stored_labels_train_as_in_the_evaluation(
    digits: Any, tmp_path: Path, settings: dict[str, Any]
) -> None:
    """Crops, labels, loss, optimiser and schedule are the evaluation's: so are the parameters after all epochs."""
    made, seen, protocol = soft_set(digits, Folder(str(tmp_path / "set")), stored=True, **settings)
    to = exported(Folder(str(tmp_path / "set")), tmp_path / "to")
    module, config = opened(to), NetConfig.model_validate(NET)
    images = seen.input_spec.fitted(made.pixels()).contiguous()
    labels = StoredLabels(Folder(str(tmp_path / "set" / "labels")))
    rate = 0.1 if settings.get("optimizer") == "sgd" else 0.001
    expected = SoftTraining(
        build(config, seen.shape, 10, seed=1),
        protocol.at(rate),
        seen.input_spec,
        images,
        labels,
        None,
        ON_CPU,
        0,
        OwnLabels(made.labels, 10),
    )
    start = build(config, seen.shape, 10, seed=1)
    module.convnet = lambda *_: start

    draws = labels(2).draws
    for x, part in zip((lesson[0] for lesson in module.lessons(2)), draws.batches(6), strict=True):
        assert torch.allclose(x, inputs(images, part, seen.input_spec, CPU), atol=1e-4)
    trained, other = module.train(0, 4), expected.run()
    for (name, value), right in zip(trained.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.allclose(value.float(), right.float(), atol=2e-4), name
    shown = torch.cat(list(outputs(other, seen.input_spec, digits.test.images, CPU)))
    assert torch.allclose(trained(module.encode(digits.test.images)), shown, atol=2e-2)


@pytest.mark.parametrize(
    "settings", [{}, {"factor": 2}, {"factor": 2, "crop_within_patch": True, "crop_min": 0.3}], ids=str
)
def test_an_observer_labels_crops_like_those_of_the_evaluation(
    digits: Any, tmp_path: Path, settings: dict[str, Any]
) -> None:
    """Mean and spread of each pixel over many epochs are the evaluation's, and the labels are the observer's."""
    made, seen, protocol = soft_set(digits, Folder(str(tmp_path / "set")), stored=False, **settings)
    module = opened(exported(Folder(str(tmp_path / "set")), tmp_path / "to"))
    torch.manual_seed(0)

    lessons = [lesson for epoch in range(120) for lesson in module.lessons(epoch)]
    x, said = (torch.cat([lesson[i] for lesson in lessons]) for i in range(2))

    draws = [protocol.draw(epoch, len(made), (8, 8), seen.input_spec, 0) for epoch in range(120)]
    real = torch.cat(
        [inputs(made.pixels(), part, seen.input_spec, CPU) for each in draws for part in each.batches(6)]
    )
    assert x.shape == real.shape
    assert torch.allclose(said, seen.module(x), atol=1e-4)
    assert torch.allclose(x.mean(0), real.mean(0), atol=0.12)
    assert torch.allclose(x.std(0), real.std(0), atol=0.12)


def test_boxes_of_cutmix_are_like_those_of_the_evaluation(digits: Any, tmp_path: Path) -> None:
    """The number of pixels that come from another image has the evaluation's mean and spread."""
    made, seen, protocol = soft_set(digits, Folder(str(tmp_path / "set")), stored=False)
    module = opened(exported(Folder(str(tmp_path / "set")), tmp_path / "to"))
    plain_ = torch.arange(len(made), dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 8, 8) * 9
    module.lessons.__globals__["PIXELS"] = plain_
    torch.manual_seed(0)
    draws = [protocol.draw(epoch, len(made), (8, 8), seen.input_spec, 0) for epoch in range(300)]
    real = [inputs(plain_, part, seen.input_spec, CPU) for each in draws for part in each.batches(6)]

    def mixed(batches: list[Tensor]) -> Tensor:
        """For each batch, the most pixels of an image that differ from its corner."""
        rounded = [x.round(decimals=3) for x in batches]
        return torch.stack([(x != x[:, :, :1, :1]).flatten(1).sum(1).max() for x in rounded]).float()

    found, expected = mixed([x for e in range(300) for x, *_ in module.lessons(e)]), mixed(real)
    assert float(found.mean()) == pytest.approx(float(expected.mean()), abs=1.5)
    assert float(found.std()) == pytest.approx(float(expected.std()), abs=1.5)


def test_an_observer_of_more_classes_is_reduced_to_the_sets(digits: Any, tmp_path: Path) -> None:
    """The exported observer has an output for each class of the set, in the set's order."""
    seen = observer(digits)
    wanted = ["3", "1", "7"]
    reduced = seen.reduced(wanted)
    x = seen.input_spec.normalised(digits.test.images[:9])

    assert torch.allclose(reduced.module(x), seen.module(x)[:, [3, 1, 7]], atol=1e-5)
    reduced.save(Folder(str(tmp_path)))
    again = Observer.load(Folder(str(tmp_path)))
    assert again.classes == ("3", "1", "7")
    assert torch.equal(again.module(x), reduced.module(x))
    assert seen.reduced(digits.train.classes) is seen


@pytest.mark.parametrize("name", augment.__dict__["_STRATEGIES"])
def test_strategies_of_augmentation_are_the_evaluations(digits: Any, tmp_path: Path, name: str) -> None:
    """The mean and the spread of every pixel over many draws are those of rayddl's strategy."""
    hard_set(digits, Folder(str(tmp_path / "set")), name)
    apply = opened(exported(Folder(str(tmp_path / "set")), tmp_path / "to")).augment
    image = torch.randn(1, 3, 8, 7, generator=torch.Generator().manual_seed(1)).expand(6000, -1, -1, -1)
    torch.manual_seed(0)

    found = apply(image)

    expected = augment.apply(image, augment.draw((name,), tuple(image.shape), generator(0)))
    assert torch.allclose(found.mean(0), expected.mean(0), atol=0.06)
    assert torch.allclose(found.std(0), expected.std(0), atol=0.06)
    assert float(found.std(0).max()) > 0.1


def _photos(root: Path, sides: tuple[int, int], suffix: str = "png") -> dict[str, Any]:
    """A source of two classes of digits, with grey images of random pixels, ``sides`` high and wide."""
    draws = torch.Generator().manual_seed(2)
    for name in ("train/0", "train/1", "test/0", "test/1"):
        (root / name).mkdir(parents=True)
        for i in range(2):
            pixels = torch.randint(256, sides, generator=draws, dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(root / name / f"{i}.{suffix}")
    return {"name": "imagefolder", "root": str(root)}


def test_test_images_of_a_source_that_is_not_square_are_as_stored(tmp_path: Path) -> None:
    """They were cut square and distorted to the set's sides; images of other sides are refused, as by rayddl."""
    source = _photos(tmp_path / "photos", (6, 10))
    test = sources.load(SourceConfig.model_validate(source)).test
    info = {"net": NET, "source": source, "protocol": {"name": "hard"}}
    space = fit("normalise", test.images)
    made = DistilledSet(space.encode(test.images), test.labels, 0.01, test.classes, space, info)
    made.save(Folder(str(tmp_path / "set")))
    module = opened(exported(Folder(str(tmp_path / "set")), tmp_path / "to"))

    images, labels = module.held_out(str(tmp_path / "photos" / "test"))
    assert torch.equal(images, test.images)
    assert torch.equal(labels, test.labels)
    assert torch.allclose(module.encode(images), space.encode(test.images), atol=1e-5)
    _photos(tmp_path / "others", (10, 6))
    with pytest.raises(
        SystemExit, match=r"images of \[\(10, 6\)\] pixels \(height, width\), expected \(6, 10\)"
    ):
        module.held_out(str(tmp_path / "others" / "test"))


@pytest.mark.parametrize("zoom", [False, True])
@pytest.mark.parametrize(
    ("source", "stored"),
    [
        ({"size": 8}, (12, 16)),
        ({"size": 8}, (70, 90)),
        ({"size": 28}, (12, 16)),
        ({}, (12, 16)),
        ({}, (28, 28)),
    ],
    ids=str,
)
@pytest.mark.parametrize("with_test", [False, True])
def test_test_images_are_brought_to_an_observers_size_as_in_the_evaluation(
    digits: Any, tmp_path: Path, source: dict[str, Any], stored: tuple[int, int], with_test: bool, zoom: bool
) -> None:
    """To the source's own size first, whatever the set's is; a JPEG is decoded at the same reduced size."""
    source = _photos(tmp_path / "photos", stored, "jpg") | source
    test = sources.load(SourceConfig.model_validate(source)).test
    seen = observer(digits, (1, 28, 28))
    protocol = {"name": "soft", "nets": [NET], "epochs": 2, "batch": 2, "zoom": zoom}
    info = {"method": "RDED", "net": NET, "source": source, "protocol": protocol}
    images = seen.input_spec.fitted(test.images).contiguous()
    made = DistilledSet(images, test.labels, 0.01, test.classes, fit("normalise", images), info)
    made.save(Folder(str(tmp_path / "set")))
    seen.save(Folder(str(tmp_path / "set")).child("observer"))
    module = opened(exported(Folder(str(tmp_path / "set")), tmp_path / "to", with_test=with_test))

    found, _ = module.held_out(*(() if with_test else (str(tmp_path / "photos" / "test"),)))

    assert torch.equal(found, test.images)
    shown = seen.input_spec.zoomed(test.images) if zoom else seen.input_spec.fitted(test.images)
    assert torch.allclose(module.encode(found), seen.input_spec.normalised(shown), atol=1e-5)
