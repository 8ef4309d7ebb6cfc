"""Plugins: how they are found, the messages if that fails, and the fingerprints that they are part of."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import rayddl
from rayddl import plugins
from rayddl.cli.app import app
from rayddl.data.config import SourceConfig
from rayddl.data.sources import registry as sources
from rayddl.data.sources.summary import SourceSummary, source_summary
from rayddl.errors import DefinitionError
from rayddl.jobs import shipping
from rayddl.nets.build import build, has_batch_norm
from rayddl.nets.config import NetConfig
from rayddl.pipeline import api
from rayddl.pipeline.definition import load as definitions
from rayddl.pipeline.plugging import use
from rayddl.plugins import Plugin, Splits, few, suggestion
from rayddl.stages.runtime import plugin_code
from tests.raising import raises

TOY = Path(__file__).resolve().parents[2] / "plugins" / "toy"
SELECTION = """
import rayddl

def first(features, count):
    return range(count)

plugin = rayddl.Plugin(name="own", selections={"first": first})
"""
Write = Callable[..., str]


@pytest.fixture(autouse=True)
def none_left() -> Iterator[None]:
    """Other tests see rayddl's own names alone."""
    yield
    plugins.activate(())


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a plugin's file."""

    def make(text: str, name: str = "own.py") -> str:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return str(path)

    return make


def definition(**stages: Any) -> dict[str, Any]:
    """A definition of the toy's source."""
    return {"name": "d", "source": {"name": "stripes"}, "stages": stages}


MEAN = {"kind": "mean"}
JUDGED = {"kind": "evaluate", "set": "mean", "nets": ["convnet"]}
CORESET = {"kind": "coreset", "ipc": 1, "method": "random"}


def fingerprints(given: Any, **stages: Any) -> dict[str, str]:
    """By stage, on images that are no plugin's."""
    keys = {**definition(**stages), "source": {"name": "digits"}}
    return {s.name: s.fingerprint for s in rayddl.plan(keys, plugins=given).stages}


def test_everything_that_a_plugin_registers_can_be_named() -> None:
    """A kind, a network, a source, a selection and a loss; and a plan has the kind's own estimate."""
    stages = {
        "mean": MEAN,
        "coreset": {"kind": "coreset", "ipc": 1, "method": "largest"},
        "teacher": {"kind": "teacher", "net": "tiny", "epochs": 1},
        "evaluate": {
            "kind": "evaluate",
            "set": "mean",
            "nets": ["tiny"],
            "observer": "teacher",
            "loss": "confident",
        },
        "search": {"kind": "tune", "of": "mean", "space": {"shrink": {"uniform": [0, 1]}}},
    }
    planned = rayddl.plan(definition(**stages), plugins=[str(TOY)])

    assert {stage.name for stage in planned.stages} == {"coreset", "evaluate", "mean", "search", "teacher"}
    assert source_summary(SourceConfig(name="stripes")) == SourceSummary((1, 8, 8), 2, 60, 40)
    estimate = api.estimate(planned).stages["mean"]
    assert estimate is not None
    assert estimate.work == "2 means"


def test_a_plugin_is_part_of_the_stages_that_use_it_alone() -> None:
    """Another version moves the stages that name something of it."""
    use([str(TOY)])
    (toy,) = plugins.active()
    newer = replace(toy, version="2")
    stages = {
        "mean": MEAN,
        "random": CORESET,
        "coreset": {**CORESET, "method": "largest"},
        "judged": {**JUDGED, "set": "random"},
        "judged-tiny": {**JUDGED, "set": "random", "nets": ["tiny"]},
    }
    before, after = fingerprints([toy], **stages), fingerprints([newer], **stages)

    assert {name for name in before if before[name] != after[name]} == {"mean", "coreset", "judged-tiny"}


def test_without_plugins_nothing_changes() -> None:
    """A definition that names nothing of a plugin has the fingerprints that it has without."""
    plain = {"name": "d", "source": {"name": "digits"}, "stages": {"coreset": CORESET}}

    with_toy = rayddl.plan(plain, plugins=[str(TOY)])
    assert [s.fingerprint for s in with_toy.stages] == [s.fingerprint for s in rayddl.plan(plain).stages]


def test_a_file_is_its_own_version(write: Write) -> None:
    """The hash of its content counts where none is declared."""
    stages = {"coreset": {**CORESET, "method": "first"}}
    keys = {"name": "d", "source": {"name": "digits"}, "stages": stages}

    first = rayddl.plan(keys, plugins=[write(SELECTION)]).stages[0].fingerprint
    same = rayddl.plan(keys, plugins=[write(SELECTION)]).stages[0].fingerprint
    other = rayddl.plan(keys, plugins=[write(f"{SELECTION}# mended\n")]).stages[0].fingerprint
    assert first == same != other


def test_a_change_of_equal_size_within_a_second_counts(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python takes its byte code of such a file for current."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    found = []
    for text in ("three", "other"):
        file = write(SELECTION.replace("first", text))
        os.utime(file, (1_700_000_000, 1_700_000_000))
        use([file])
        found += plugins.active()[-1].selections
    assert found == ["three", "other"]


OWN = "import rayddl\nplugin = rayddl.Plugin({})"


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("plugin-not-loaded", "import nothing_there"),
        ("plugin-not-declared", "x = 1"),
        ("plugin-name-taken", OWN.format("'own', nets={'convnet': len}")),
        ("plugin-name-taken", OWN.format("'own', nets={'tiny': len}")),
        ("plugin-twice", OWN.format("'toy'")),
        ("plugin-not-callable", OWN.format("'own', nets={'a': 3}")),
        ("plugin-without-names", OWN.format("'own', selections=[len]")),
        ("plugin-name-malformed", OWN.format("'own', nets={'A b': len}")),
    ],
)
def test_a_plugin_that_cannot_be_loaded(write: Write, code: str, text: str) -> None:
    """It is refused next to a valid plugin; its names may be taken by rayddl or by that plugin."""
    with raises(code):
        use([str(TOY), write(text)])


def test_what_is_no_plugin(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file or module that is missing, a file of another kind, and a package that another one hides."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "json").mkdir()
    hidden = Path(write("", "json/__init__.py")).parent
    for code, given in {
        "plugin-missing": str(tmp_path / "own.py"),
        "plugin-with-zero-byte": "a\0b.py",
        "plugin-not-loaded": "no_such_module",
        "plugin-not-python": write("", "own.txt"),
        "plugin-hidden": str(hidden),
    }.items():
        with raises(code):
            use([given])


def test_a_file_that_imports_one_beside_it_is_told_to_be_a_package(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of which all files count, and reach the workers."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    write("", "helpers.py")
    with raises("plugin-of-several-files"):
        use([write("import helpers")])
    (tmp_path / "two").mkdir()
    write("VERSION = '7'", "two/helpers.py")
    write(
        "import rayddl\nfrom . import helpers\nplugin = rayddl.Plugin(name='two', version=helpers.VERSION)",
        "two/__init__.py",
    )
    use([str(tmp_path / "two")])
    assert plugins.active()[-1].version == "7"


def test_a_plugin_that_is_missing_ends_the_command(tmp_path: Path) -> None:
    """In one sentence, with the exit code of a wrong definition."""
    ended = CliRunner().invoke(app, ["plan", "quickstart", "--plugin", str(tmp_path / "own.py")])

    assert ended.exit_code == DefinitionError.exit_code == 2
    assert "there is no such file" in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_an_unknown_name_comes_with_what_is_loaded() -> None:
    """The nearest name among rayddl's and the plugins', and which plugins there are."""
    wrong = definition(
        mean={"kind": "meen"}, judged={**JUDGED, "nets": ["tinny"]}, coreset={**CORESET, "method": "x"}
    )
    with raises("unknown-kind", "stages.mean.kind") as error:
        rayddl.plan(wrong, plugins=[str(TOY)])

    assert isinstance(error.value, DefinitionError)
    problems = {problem["key"]: problem["code"] for problem in error.value.problems}
    names = ("stages.mean.kind", "stages.judged.nets.0.name", "stages.coreset.method")
    assert [problems[name] for name in names] == ["unknown-kind", "unknown-value", "unknown-value"]
    assert str(error.value).count("plugins loaded: toy 1") == 3
    with raises("unknown-value", "source.name") as caught:
        rayddl.plan(definition(coreset=CORESET))
    assert "plugins loaded: none; if a plugin registers it, add --plugin FILE.py" in str(caught.value)


def test_a_definition_loads_nothing() -> None:
    """A definition has no key for plugins, so one from another person cannot run code."""
    with raises("unknown-key", "plugins"):
        definitions.load({**definition(mean=MEAN), "plugins": [str(TOY)]})


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Installs a distribution whose entry point names a module with this text."""

    def install(text: str) -> None:
        info = tmp_path / "own-0.1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own\nVersion: 0.1\n", encoding="utf-8")
        (info / "entry_points.txt").write_text("[rayddl.plugins]\nown = installed_own\n", encoding="utf-8")
        (tmp_path / "installed_own.py").write_text(text, encoding="utf-8")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "installed_own", raising=False)

    return install


def test_an_installed_plugin_is_there_by_itself(installed: Callable[[str], None]) -> None:
    """By its entry point; to name it again changes nothing."""
    installed(SELECTION)
    keys = {"name": "d", "source": {"name": "digits"}, "stages": {"coreset": {**CORESET, "method": "first"}}}

    found = rayddl.plan(keys)
    assert [plugin.name for plugin in plugins.active()] == ["own"]
    again = rayddl.plan(keys, plugins=["installed_own"])
    assert found.stages[0].fingerprint == again.stages[0].fingerprint


def test_an_entry_point_that_raises(installed: Callable[[str], None]) -> None:
    """The message names the package, since it is not on the command line."""
    installed("1 / 0")

    with raises("plugin-not-loaded"):
        rayddl.plan("quickstart")


class Photos(torch.utils.data.Dataset[Any]):
    """PIL images of several sizes."""

    classes = ("cat", "dog")

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.new("RGB", (10 + index, 12), (200 * (index % 2), 0, 0)), index % 2


def images(count: int = 4, shape: tuple[int, ...] = (3, 6, 6), seed: int = 0) -> tuple[Any, Any]:
    """Arrays of images and labels."""
    draws = np.random.default_rng(seed)
    return draws.integers(0, 256, (count, *shape), dtype=np.uint8), np.arange(count) % 2


def given(train: Any, test: Any = None, classes: Any = None) -> SourceConfig:
    """The source that a plugin made of these registers."""
    plugins.activate(
        [Plugin("mine", sources={"photos": Splits(train, train if test is None else test, classes)})]
    )
    return SourceConfig(name="photos")


def test_arrays_are_a_source() -> None:
    """Channels first or last; the hash of the bytes is the fingerprint."""
    x, y = images()
    first = given((x, y), classes=["a", "b"])
    loaded, print_ = sources.load(first), sources.fingerprint(first)
    assert loaded.train.classes == ("a", "b")
    torch.testing.assert_close(loaded.train.images, torch.from_numpy(x))

    last = given((x.transpose(0, 2, 3, 1), torch.from_numpy(y)), classes=["a", "b"])
    torch.testing.assert_close(sources.load(last).train.images, torch.from_numpy(x))
    assert sources.fingerprint(last) == print_
    x[0, 0, 0, 0] ^= 1
    assert sources.fingerprint(given((x, y), classes=["a", "b"])) != print_


def test_a_torch_dataset_is_a_source() -> None:
    """PIL images are brought to one size; tensors of floats are pixels in 0..1."""
    config = given(Photos()).model_copy(update={"size": 8})
    found = sources.load(config)
    assert found.train.shape == (3, 8, 8)
    assert found.train.classes == ("cat", "dog")
    assert found.train.images[1, 0].unique().tolist() == [200]

    x, y = images()
    tensors = torch.utils.data.TensorDataset(torch.from_numpy(x) / 255, torch.from_numpy(y))
    torch.testing.assert_close(sources.load(given(tensors)).train.images, torch.from_numpy(x))


@pytest.mark.parametrize(
    ("code", "train"),
    [
        ("images-of-several-sizes", Photos()),
        ("images-malformed", (images()[0].astype(float), images()[1])),
        ("images-malformed", torch.utils.data.TensorDataset(torch.full((4, 3, 6, 6), -5.0), torch.arange(4))),
        ("images-without-label", (images()[0], images()[1][:3])),
        ("too-few-classes", (images()[0], images()[1] * 0)),
    ],
)
def test_images_that_cannot_be_used(code: str, train: Any) -> None:
    """What was found, and what is expected."""
    with raises(code):
        sources.load(given(train))


def test_splits_of_different_shapes() -> None:
    """The held-out images are those of another camera."""
    with raises("images-of-several-sizes"):
        sources.load(given(images(), images(shape=(3, 8, 8))))


@pytest.mark.parametrize(
    ("code", "make"),
    [("plugin-source-not-splits", lambda source: 3), ("plugin-failed", lambda source: 1 / 0)],
)
def test_a_function_that_returns_no_images(code: str, make: Any) -> None:
    """The plugin and the source are named."""
    plugins.activate([Plugin("mine", sources={"photos": make})])

    with raises(code):
        sources.load(SourceConfig(name="photos"))


def test_a_network_is_built_from_classes_channels_and_size() -> None:
    """The same seed gives the same parameters; what does not fit is refused with the plugin's name."""
    nn = torch.nn
    bad = {
        "wrong": lambda k, c, s: nn.Sequential(nn.Flatten(), nn.Linear(c * s * s, k + 1)),
        "raises": lambda k, c, s: nn.Linear(-1, k),
        "normed": lambda k, c, s: nn.Sequential(nn.BatchNorm2d(c), nn.Flatten(), nn.Linear(c * s * s, k)),
    }
    plugins.activate([Plugin("mine", nets=bad)])
    normed = NetConfig(name="normed")

    torch.testing.assert_close(*(build(normed, (3, 4, 4), 5, seed=1)[2].weight for _ in range(2)))
    assert has_batch_norm(normed, (3, 4, 4), 5)
    assert normed.label == "normed"
    with raises("plugin-network-output"):
        build(NetConfig(name="wrong"), (3, 4, 4), 5, seed=1)
    with raises("plugin-failed"):
        build(NetConfig(name="raises"), (3, 4, 4), 5, seed=1)
    with raises("images-not-square"):
        build(normed, (3, 4, 5), 5, seed=1)
    with pytest.raises(ValueError, match="the depth of normed is fixed"):
        NetConfig(name="normed", depth=2)


def test_a_loss_is_of_soft_labels() -> None:
    """A definition that judges by hard labels has no use for it."""
    stages = {"mean": MEAN, "judged": {**JUDGED, "loss": "confident"}}
    with raises("stages-do-not-fit", "stages.judged"):
        rayddl.plan(definition(**stages), plugins=[str(TOY)])


def test_a_job_takes_plugins_along(write: Write) -> None:
    """A package with all of its files, a file under a folder of its own; the job loads both by name."""
    use([str(TOY), write(SELECTION)])
    loaded = definitions.load(definition(mean=MEAN))
    parcel = shipping.pack(loaded)

    assert parcel.plugins == ("toy", "plugins/own.py")
    assert {"plugins/own.py", "toy/__init__.py", "toy/mean/stage.py"} <= set(parcel.files)


def test_what_travels_is_the_code_and_no_image(write: Write) -> None:
    """Images reach workers through the object store."""
    x, y = images(100, (3, 64, 64))
    use([write(SELECTION), Plugin("mine", sources={"photos": Splits((x, y), (x, y))})])

    sent = plugin_code.shipped()
    assert b"def first(features, count)" in sent
    assert len(sent) < 10_000


def test_another_process_works_with_the_code_alone() -> None:
    """Modules and functions come from what was sent, where the plugin is on no path; images stay behind."""
    use([str(TOY)])
    code = (
        "import sys; from rayddl import plugins; from rayddl.stages.runtime import plugin_code as sent\n"
        "data = sys.stdin.buffer.read(); sent.adopt(data); sent.adopt(data)\n"
        "assert sent.shipped() == data\n"
        "kind = plugins.find('kinds', 'mean')\n"
        "print(kind.config.__module__, type(kind.module('stage').__loader__).__name__)\n"
        "print(plugins.find('losses', 'confident').__module__, plugins.find('sources', 'stripes'))\n"
        "print([str(plugin) for plugin in plugins.active()], kind.optional('estimate').__name__, kind.optional('no'))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], input=plugin_code.shipped(), capture_output=True, check=False, cwd="/"
    )

    assert ended.stdout.decode().splitlines() == [
        "toy.mean.settings _Sent",
        "toy.parts None",
        "['toy 1'] toy.mean.estimate None",
    ], ended.stderr.decode()


def test_a_message_names_few_of_many_known_names() -> None:
    """Nine names or more: the eight nearest, how many more there are, and how to list them; fewer: all, in order."""
    known = [f"tv_net_{n}" for n in range(10)] + ["convnet", "resnet18"]
    text = suggestion("convnte", known, "expected one of", "rayddl explain net lists all")
    hint, listed = text.split("expected one of: ")
    names, rest = listed.split(" and ")
    assert hint == "did you mean 'convnet'? "
    assert names.split(", ")[0] == "convnet"
    assert len(names.split(", ")) == 8
    assert rest == "4 more (rayddl explain net lists all)"
    assert few(known) == ", ".join(known[:8]) + " and 4 more"
    assert few(known[:8], "net_7") == ", ".join(known[:8])
    assert few([]) == "none"
