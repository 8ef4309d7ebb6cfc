"""The script that an export brings: it trains as the evaluation does, without rayddl."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torchvision
from PIL import ExifTags, Image
from torch import Tensor, nn
from typer.testing import CliRunner

from rayddl import plugins
from rayddl.cli.app import app
from rayddl.data.config import SourceConfig
from rayddl.data.dataset import ImageDataset
from rayddl.data.distilled import DistilledSet
from rayddl.data.pixels import augment
from rayddl.data.pixels.space import fit
from rayddl.data.sources import registry as sources
from rayddl.methods.training.hard import Protocol, train_student
from rayddl.methods.training.input_spec import InputSpec
from rayddl.methods.training.observer import Observer, frozen
from rayddl.methods.training.soft import (
    EpochData,
    Execution,
    ObserverLogits,
    SoftProtocol,
    SoftTraining,
    inputs,
    labelled,
)
from rayddl.methods.training.softlabels import Index, StoredLabels, finish, pack
from rayddl.methods.training.steps import steps_for
from rayddl.methods.training.teacher import outputs
from rayddl.nets.build import build
from rayddl.nets.config import NetConfig
from rayddl.nets.plain import plain
from rayddl.pipeline.exporting import export_to
from rayddl.plugins import Plugin
from rayddl.seeds import generator
from rayddl.stages.evaluate import script
from rayddl.storage import Folder
from tests import warm
from tests.raising import raises

CPU = torch.device("cpu")
NET = {"name": "convnet", "depth": 2, "width": 16}
TEACHER = {**NET, "norm": "batch"}
ON_CPU = Execution(CPU)


@pytest.fixture(scope="module")
def digits() -> Any:
    return sources.load(SourceConfig(name="digits"))


def first_of_each(data: ImageDataset, ipc: int) -> tuple[Tensor, Tensor]:
    """The first ``ipc`` images of each class, and their labels."""
    picked = torch.cat([(data.labels == c).nonzero()[:ipc, 0] for c in range(10)])
    return data.images[picked], data.labels[picked]


def hard_set(
    digits: Any, folder: Folder, augmented: str = "none", space: str = "normalise", **more: Any
) -> DistilledSet:
    """A set of floats, as matching makes them, with the protocol that an evaluate stage stores."""
    images, labels = first_of_each(digits.train, 1)
    fitted = fit(space, digits.train.images)
    info = {
        "method": "MCT",
        "net": NET,
        "source": {"name": "digits", "space": space},
        "protocol": {"name": "hard", "nets": [NET], "lr": 0.05, "epochs": 60, "batch": 256, "seeds": 3,
                     "augment": augmented},
        "metrics": {"accuracy": []},
        **more,
    }  # fmt: skip
    made = DistilledSet(fitted.encode(images) * 1.1, labels, 0.05, digits.train.classes, fitted, info)
    made.save(folder)
    return made


def observer(digits: Any, shape: tuple[int, int, int] = (1, 8, 8)) -> Observer:
    """A network that has seen the digits for some steps."""
    net = NetConfig.model_validate(TEACHER)
    module = build(net, shape, 10, seed=3)
    input_spec = InputSpec(shape, (0.3,) * shape[0], (0.37,) * shape[0])
    x, adam = (
        input_spec.normalised(input_spec.fitted(digits.train.images)),
        torch.optim.Adam(module.parameters(), 0.01),
    )
    module.train()
    for picked in torch.arange(len(x)).split(128):
        adam.zero_grad()
        nn.functional.cross_entropy(module(x[picked]), digits.train.labels[picked]).backward()
        adam.step()
    return Observer(frozen(module), net, digits.train.classes, shape, input_spec.mean, input_spec.std, 0.9)


def soft_set(
    digits: Any,
    folder: Folder,
    *,
    stored: bool,
    epochs: int = 4,
    factor: int = 1,
    shape: tuple[int, int, int] = (1, 8, 8),
    top: int | None = None,
    where: Any = {"folder": "observer"},  # noqa: B006  # read only
    **settings: Any,
) -> tuple[DistilledSet, Observer, SoftProtocol]:
    """A set of bytes, as RDED makes them, with its observer, and labels if ``stored``."""
    images, labels = first_of_each(digits.train, 2)
    space = fit("normalise", digits.train.images)
    info = {
        "method": "RDED",
        "net": NET,
        "factor": factor,
        "source": {"name": "digits"},
        "protocol": {"name": "soft", "nets": [NET], "epochs": epochs, "batch": 6, "seeds": 2,
                     "observer": where, **settings},
        "metrics": {"accuracy": []},
    }  # fmt: skip
    made = DistilledSet(images, labels, 0.01, digits.train.classes, space, info)
    made.save(folder)
    seen, protocol = observer(digits, shape), SoftProtocol(epochs=epochs, batch=6, factor=factor, **settings)
    seen.save(folder.child("observer"))
    if stored:
        pixels = seen.input_spec.fitted(images).contiguous()
        index, found = Index.of(pixels, made.classes, seen.input_spec, protocol), []
        for epoch in range(epochs):
            draws = protocol.draw(epoch, len(pixels), shape[1:], seen.input_spec, 5)
            answers = ObserverLogits(seen.module, ON_CPU)
            found.append(EpochData(draws, labelled(answers, pixels, draws, protocol, seen.input_spec, CPU)))
        labels_at = folder.child("labels")
        index = Index(index.classes, index.input_spec, protocol, index.images, index.count, 3, top)
        for name, part in index.parts():
            labels_at.write(name, pack(found[part.start : part.stop], top))
        finish(labels_at, index)
    return made, seen, protocol


def exported(folder: Folder, to: Path, **more: Any) -> Path:
    assert not export_to(str(folder), str(to), "hf", **more).notes
    return to


def opened(to: Path) -> ModuleType:
    """The exported script as a module, without its ``main``."""
    module = ModuleType("train")
    module.__file__ = str(to / "train.py")
    sys.modules.pop("parts", None)
    sys.path.insert(0, str(to))
    try:
        for name in ("parts.py", "train.py"):
            exec(compile((to / name).read_text(), name, "exec"), module.__dict__)
    finally:
        sys.path.remove(str(to))
        sys.modules.pop("parts", None)
    return module


def run(to: Path, *options: str) -> str:
    """What the exported script prints, in a process without rayddl."""
    code = (
        "import runpy, sys, warnings; assert not any(name.startswith('rayddl') for name in sys.modules); "
        "sys.modules['rayddl'] = None; warnings.simplefilter('ignore'); runpy.run_path('train.py', run_name='__main__')"
    )
    # As a worker to which the package is sent, the process has not imported it.
    env = {**os.environ, "PYTHONPATH": f"{to}/{warm.client.SENT}"}
    done = warm.run(
        [sys.executable, "-c", code, *options],
        cwd=to, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


NETS: tuple[tuple[dict[str, Any], tuple[int, int, int]], ...] = (
    *(({**NET, "norm": norm}, (1, 8, 8)) for norm in ("instance", "batch", "group", "none")),
    ({"name": "convnet", "width": 8}, (3, 28, 28)),
    ({"name": "convnet", "width": 8}, (3, 18, 18)),
    ({"name": "alexnet"}, (3, 16, 16)),
    ({"name": "alexnet", "norm": "batch"}, (1, 28, 28)),
    ({"name": "vgg11"}, (3, 32, 32)),
    ({"name": "lenet"}, (1, 28, 28)),
    ({"name": "mlp", "depth": 3, "width": 16}, (1, 8, 8)),
    ({"name": "resnet18"}, (3, 32, 32)),
    ({"name": "resnet18", "norm": "batch"}, (3, 32, 32)),
    ({"name": "resnet18", "norm": "batch"}, (1, 72, 72)),
    ({"name": "tv_mobilenet_v2"}, (3, 32, 32)),
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
    own = nn.functional.one_hot(made.labels, 10).float()
    expected = SoftTraining(
        build(config, seen.shape, 10, seed=1),
        protocol.at(rate),
        seen.input_spec,
        images,
        labels,
        None,
        ON_CPU,
        0,
        own,
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


@pytest.mark.parametrize("soft", [False, True])
def test_the_script_runs_without_rayddl(digits: Any, tmp_path: Path, soft: bool) -> None:
    """In a process that cannot import rayddl, it prints an accuracy for each seed, and learns."""
    folder = Folder(str(tmp_path / "set"))
    if soft:
        soft_set(digits, folder, stored=True, epochs=30)
    else:
        hard_set(digits, folder)
    said = run(exported(folder, tmp_path / "to"), "--epochs", "30", "--seeds", "2").splitlines()

    assert [line.split(":")[0] for line in said[:2]] == ["seed 0", "seed 1"]
    assert float(said[2].removeprefix("accuracy ").split(" ± ")[0]) > 40
    assert "stored" not in said[2]


@pytest.mark.parametrize(
    ("accuracies", "stored"),
    [([0.865, 0.889, 0.877], "87.7 ± 1.2 %, 3 students"), ([0.877], "87.7 ± 1.2 %, 1 student")],
)
def test_the_script_prints_the_stored_accuracy_next_to_its_own(
    digits: Any, tmp_path: Path, accuracies: list[float], stored: str
) -> None:
    """That of its own network, not of random images or another network."""
    row = {"net": NetConfig.model_validate(NET).label, "std": 0.012, "images": 10, "accuracies": accuracies}
    rows = [{**row, "data": "random", "mean": 0.5}, {**row, "data": "distilled", "net": "mlp", "mean": 0.6}]
    folder = Folder(str(tmp_path / "set"))
    hard_set(digits, folder, metrics={"accuracy": [*rows, {**row, "data": "distilled", "mean": 0.877}]})
    last = run(exported(folder, tmp_path / "to"), "--epochs", "2", "--seeds", "1").splitlines()[-1]

    assert re.fullmatch(rf"accuracy \d+\.\d ± 0\.0 % \(stored: {re.escape(stored)}\)", last)


@pytest.mark.parametrize("source", ["file", "folders"])
def test_held_out_images_come_from_where_they_are(
    digits: Any, tmp_path: Path, source: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the file in the export, or from a folder of class folders, whose numbers are those of the set's classes."""
    classes = ("10", "9")
    two = [(digits.test.labels == int(c)).nonzero()[:2, 0] for c in ("1", "9")]
    for name, places in zip(classes, two, strict=True):
        (tmp_path / "test" / name).mkdir(parents=True)
        for i in places.tolist():
            # As a camera held upright stores it: turned to the left, with an orientation that says so.
            turned = Image.Exif()
            turned[ExifTags.Base.Orientation] = 6
            pixels = digits.test.images[i, 0].numpy()
            # The last one has 16 bits a pixel, of which 65535 is white.
            pixels = pixels.astype("uint16") * 257 if i == places[-1] else pixels
            image = Image.fromarray(pixels).transpose(Image.Transpose.ROTATE_90)
            image.save(tmp_path / "test" / name / f"{i}.png", exif=turned)
    space = fit("normalise", digits.train.images)
    given = {"name": "imagefolder", "root": str(tmp_path), "size": 8, "train": "test", "test": "test"}
    info = {"net": NET, "source": given, "protocol": {"name": "hard"}}
    made = DistilledSet(
        space.encode(digits.train.images[:2]), torch.tensor([0, 1]), 0.01, classes, space, info
    )
    made.save(Folder(str(tmp_path / "set")))

    to = exported(Folder(str(tmp_path / "set")), tmp_path / "to", with_test=source == "file")

    assert (to / "test.safetensors").exists() == (source == "file")
    assert ("TEST is a folder with" in (to / "train.py").read_text()) == (source == "folders")
    if source == "folders":
        # What rayddl leaves out of a folder, the script does, too.
        for name in ("9/._0.png", ".git/0.png", "9/.thumbs/0.png", "9/broken.png", "9/notes.txt", "list.png"):
            (tmp_path / "test" / name).parent.mkdir(exist_ok=True)
            (tmp_path / "test" / name).write_bytes(b"Mac OS X")
        # PIL reads these formats, the first of them with a program of its own.
        for name, kind in (("program.png", "EPS"), ("9.tga", "TGA")):
            Image.new("L", (8, 8)).save(tmp_path / "test" / "9" / name, kind)
        (tmp_path / "test" / "9" / "empty").mkdir()
        images, labels = opened(to).held_out(str(tmp_path / "test"))
        assert labels.tolist() == [0, 0, 1, 1]
        assert torch.equal(images, digits.test.images[torch.cat(two)])
        assert (
            f"left out of TEST, as by rayddl, 3 unreadable: {['9/9.tga', '9/broken.png', '9/program.png']}"
            in capsys.readouterr().err
        )
        (tmp_path / "test" / "9" / "again").symlink_to(tmp_path / "test")
        with pytest.raises(SystemExit, match=r"links to folders that they are in; remove them: \['again'\]"):
            opened(to).held_out(str(tmp_path / "test"))


def test_a_script_without_seeds_says_what_it_needs(
    tmp_path: Path, digits: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No seed is answered in a sentence; and the text names nothing that it does not have."""
    hard_set(digits, Folder(str(tmp_path / "set")))
    text = (exported(Folder(str(tmp_path / "set")), tmp_path / "to") / "train.py").read_text()
    module = opened(tmp_path / "to")
    main = text[text.index("if __name__") :]
    monkeypatch.setattr(sys, "argv", ["train.py", "--seeds", "0"])
    with pytest.raises(SystemExit):
        exec(main, {**module.__dict__, "__name__": "__main__"})
    assert "--seeds is at least 1" in capsys.readouterr().err
    assert "EPOCHS" not in text


def test_an_export_without_its_held_out_images_says_so(tmp_path: Path, digits: Any) -> None:
    """Those that ``holdout`` chooses are in no folder: one note names the option, and no command is given that fails;
    with the option, the command that is printed trains.
    """
    photos = tmp_path / "photos"
    for name in "ab":
        (photos / name).mkdir(parents=True)
        for i in range(4):
            Image.fromarray(digits.train.images[i, 0].numpy()).save(photos / name / f"{i}.png")
    source = {"name": "imagefolder", "root": str(photos), "size": 8, "holdout": 0.25}
    info = {"net": NET, "source": source, "protocol": {"name": "hard", "epochs": 2, "seeds": 1}}
    space = fit("normalise", digits.train.images)
    two = DistilledSet(
        space.encode(digits.train.images[:2]), torch.tensor([0, 1]), 0.01, ("a", "b"), space, info
    )
    two.save(Folder(str(tmp_path / "set")))
    words = ["export", str(tmp_path / "set"), "--format", "hf", "--to"]

    bare = CliRunner().invoke(app, [*words, str(tmp_path / "bare")]).output.splitlines()
    whole = CliRunner().invoke(app, [*words, str(tmp_path / "whole"), "--with-test"]).output.splitlines()

    assert len(bare) == 2
    assert bare[1].startswith("note: train.py tests on the held-out images")
    assert "--with-test" in bare[1]
    many = sum(path.is_file() for path in (tmp_path / "whole").rglob("*"))
    to = tmp_path / "whole"
    assert whole == [f"wrote {many} files into {to}", f"next: python {to}/train.py"]
    assert run(to, "--epochs", "2", "--seeds", "1").startswith("seed 0: ")


@pytest.mark.parametrize("soft", ["", "stored", "live"])
def test_no_script_is_long(digits: Any, tmp_path: Path, soft: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most 60 lines, for every network, pixel space, protocol and place of test images; and every one is Python."""
    seen: list[Any] = []
    folder = Folder(str(tmp_path / "set"))
    if soft:
        soft_set(
            digits, folder, stored=soft == "stored", factor=2, statistics="twice", loss="mse_gt", ema=0.9
        )
    else:
        hard_set(digits, folder, "color_crop_cutout_flip_scale_rotate", "zca")
    programs: Callable[..., dict[str, str]] = script._programs
    monkeypatch.setattr(script, "_programs", lambda values: seen.append(values) or programs(values))
    export_to(str(folder), str(tmp_path / "to"), "hf")
    for net, shape in NETS:
        text = plain(NetConfig.model_validate(net), shape, dropout=False)
        assert text is not None
        functions = [text.function.rstrip(), *seen[0]["functions"][1:]]
        for more in (
            {"test": "folders"},
            {"test": "cifar", "cifar": "CIFAR10"},
            {"bytes": False, "space": "zca"},
        ):
            made = programs({**seen[0], "functions": functions, "student": text.call, **more})
            for name, program in made.items():
                compile(program, name, "exec")
            assert len(made["train.py"].splitlines()) <= 60


def test_a_plugins_network_among_others(digits: Any, tmp_path: Path) -> None:
    """Without the plugin, the note names the option that loads it; with it, the script says what it does not train."""
    protocol = {"name": "hard", "nets": [NET, {"name": "smallnet"}], "lr": 0.05, "augment": "none"}
    hard_set(digits, Folder(str(tmp_path / "set")), protocol=protocol)
    (note,) = export_to(str(tmp_path / "set"), str(tmp_path / "bare"), "hf").notes
    assert note.startswith("no train.py: ")
    assert note.endswith("plugins loaded: none; if a plugin registers it, add --plugin FILE.py")

    plugins.activate([Plugin("own", "1", {"smallnet": lambda channels, side, classes: nn.Identity()})])
    try:
        text = (exported(Folder(str(tmp_path / "set")), tmp_path / "whole") / "train.py").read_text()
    finally:
        plugins.activate(())
    assert "is not known. Also in its protocol, but not trained here: smallnet." in text


def test_the_card_says_how_figures_are_reached(digits: Any, tmp_path: Path) -> None:
    """Which labels the figures come from, what trains on them, and what the folder lacks for it."""
    hard, soft = (Folder(str(tmp_path / name)) for name in ("hard", "soft"))
    hard_set(digits, hard)
    soft_set(digits, soft, stored=False)
    cards = {}
    for name, folder in (("hard", hard), ("live", soft)):
        cards[name] = (exported(folder, tmp_path / f"{name}-to") / "README.md").read_text()
    soft.clear("observer")
    found = export_to(str(soft), str(tmp_path / "bare"), "hf")
    bare = (tmp_path / "bare" / "README.md").read_text()

    assert "python train.py\n" in cards["hard"]
    assert "other labels" not in cards["hard"]
    assert "**Its figures come from other labels**" in cards["live"]
    assert "`observer/` has the network that labels every crop" in cards["live"]
    assert "Not possible from this folder" in bare
    assert "networks stay below the figures" in bare
    assert found.notes[0].startswith("no train.py: the set's soft labels come from an observer")
    assert not (tmp_path / "bare" / "train.py").exists()

    observer(digits).save(Folder(str(tmp_path / "teacher" / "observer")))
    exported(soft, tmp_path / "named", observer=str(tmp_path / "teacher"))
    assert (tmp_path / "named" / "observer" / "observer.safetensors").exists()


def test_other_formats_say_that_they_lack_labels(digits: Any, tmp_path: Path) -> None:
    """A note for a set of soft labels, none for one of its own; and hf's options are of hf."""
    hard, soft = (Folder(str(tmp_path / name)) for name in ("hard", "soft"))
    hard_set(digits, hard)
    soft_set(digits, soft, stored=True)

    assert not export_to(str(hard), str(tmp_path / "a"), "imagefolder").notes
    assert "--format hf" in export_to(str(soft), str(tmp_path / "b"), "imagefolder").notes[0]
    with raises("export-options-of-hf"):
        export_to(str(soft), str(tmp_path / "c"), "pt", with_test=True)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"stored": True, "top": 3}, "the largest logits only"),
        (
            {"stored": False, "where": [{"folder": "observer-0"}, {"folder": "observer-1"}]},
            "the means of several observers",
        ),
    ],
)
def test_labels_that_the_script_does_not_read(
    digits: Any, tmp_path: Path, settings: dict[str, Any], why: str
) -> None:
    """The set is exported without a script that would train by other labels, and a note says why."""
    soft_set(digits, Folder(str(tmp_path / "set")), **settings)
    (note,) = export_to(str(tmp_path / "set"), str(tmp_path / "to"), "hf").notes

    assert note.startswith("no train.py: ")
    assert why in note
    assert not (tmp_path / "to" / "train.py").exists()


CODE = '"""); __import__("os").system("touch /tmp/forged"); ("""'


def test_a_set_from_outside_puts_no_code_into_the_script(digits: Any, tmp_path: Path) -> None:
    """Texts of the set are in no program, and numbers that are none are refused."""
    folder = Folder(str(tmp_path / "set"))
    rows = [{"data": "distilled", "net": CODE, "mean": 0.1, "std": 0.0, "images": 10, "accuracies": [0.1]}]
    hard_set(digits, folder, source={"name": "digits", "root": CODE}, method=CODE, metrics={"accuracy": rows})
    to = exported(folder, tmp_path / "to")
    for name in ("train.py", "parts.py"):
        assert "forged" not in (to / name).read_text()

    labels = Folder(str(tmp_path / "soft"))
    soft_set(digits, labels, stored=True)
    document = labels.child("labels").read_json("labels.json")
    document["frame"]["mean"] = [CODE]
    labels.child("labels").write_json("labels.json", document)
    with raises("document-malformed"):
        export_to(str(labels), str(tmp_path / "other"), "hf")


def test_an_exported_set_is_a_set_with_its_labels(digits: Any, tmp_path: Path) -> None:
    """The export of a set of soft labels can be evaluated and exported again: its labels and observer are whole."""
    folder = Folder(str(tmp_path / "set"))
    made, seen, _ = soft_set(digits, folder, stored=True, factor=2)
    again = exported(Folder(str(exported(folder, tmp_path / "to"))), tmp_path / "again")

    assert (again / "train.py").read_bytes() == (tmp_path / "to" / "train.py").read_bytes()
    stored, own = (StoredLabels(place.child("labels")) for place in (Folder(str(again)), folder))
    assert torch.equal(stored(3).logits, own(3).logits)
    assert torch.equal(DistilledSet.load(Folder(str(again))).images, made.images)
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Observer.load(Folder(str(again / "observer"))).module(x), seen.module(x))


def test_figures_of_another_form_are_refused(digits: Any, tmp_path: Path) -> None:
    """A set's maker may measure anything; the script shows accuracies in the form that rayddl has."""
    folder = Folder(str(tmp_path / "set"))
    hard_set(digits, folder, metrics={"accuracy": "much"})
    with raises("document-malformed"):
        export_to(str(folder), str(tmp_path / "other"), "hf")
