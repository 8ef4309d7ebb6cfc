"""The script that an export brings: what it runs on, says, reads and holds."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import ExifTags, Image
from torch import nn
from typer.testing import CliRunner

from rayddl import plugins
from rayddl.cli.app import app
from rayddl.data.distilled import DistilledSet
from rayddl.data.pixels.space import fit
from rayddl.methods.training.observer import Observer
from rayddl.methods.training.softlabels import StoredLabels
from rayddl.nets.config import NetConfig
from rayddl.nets.plain import plain
from rayddl.pipeline.exporting import export_to
from rayddl.plugins import Plugin
from rayddl.stages.evaluate import script
from rayddl.storage import Folder
from tests.raising import raises
from tests.unit.training.script_sets import (
    NET,
    NETS,
    exported,
    hard_set,
    observer,
    opened,
    run,
    soft_set,
)


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
    [([0.865, 0.889, 0.877], "87.7 ± 1.2 %, 3 students"), ([0.877], "87.7 %, 1 student")],
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

    assert re.fullmatch(rf"accuracy \d+\.\d % \(stored: {re.escape(stored)}\)", last)


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
        # Two that lead to each other's folder.
        (tmp_path / "test" / "9" / "again").unlink()
        (tmp_path / "test" / "9" / "there").symlink_to(tmp_path / "test" / "10")
        assert len(opened(to).held_out(str(tmp_path / "test"))[1]) == 6
        (tmp_path / "test" / "10" / "back").symlink_to(tmp_path / "test" / "9")
        with pytest.raises(SystemExit, match="links to folders that they are in"):
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
    """A note for a set of an observer's labels, not for one of its own; and hf's options are of hf."""
    hard, soft = (Folder(str(tmp_path / name)) for name in ("hard", "soft"))
    hard_set(digits, hard)
    soft_set(digits, soft, stored=True)

    assert not any(
        "observer" in note for note in export_to(str(hard), str(tmp_path / "a"), "imagefolder").notes
    )
    (note,) = export_to(str(soft), str(tmp_path / "b"), "imagefolder").notes
    assert "--format hf" in note
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
