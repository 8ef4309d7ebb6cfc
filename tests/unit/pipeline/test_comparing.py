"""``rayddl compare``: finds the named sets, shows evaluated ones, and evaluates the others first."""

from __future__ import annotations

import json
import re
import sys
import webbrowser
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from typer.testing import CliRunner

import rayddl
from rayddl.cli.app import app
from rayddl.data.config import SourceConfig
from rayddl.data.distilled import DistilledSet
from rayddl.data.pixels import space
from rayddl.data.sources.bundled import load as load_digits
from rayddl.pipeline import artifacts, comparing
from rayddl.pipeline.artifacts import ordered_json
from rayddl.pipeline.definition import load as definitions
from rayddl.pipeline.sets import last_part, stage_of
from rayddl.stages import parquet as tables
from rayddl.stages.compare.settings import CompareConfig
from rayddl.stages.context import Context, Silent
from rayddl.stages.imported import stage as imported
from rayddl.stages.imported.settings import ImportedConfig
from rayddl.stages.kinds import known
from rayddl.storage import Folder
from tests.raising import raises

SOURCE = {"name": "digits", "root": None, "space": "normalise"}
PROTOCOL = {
    "name": "hard", "nets": [{"name": "mlp", "depth": 2, "width": 8}], "lr": 0.3, "seeds": 2, "epochs": 7,
    "batch": 64, "augment": "none", "precision": "fp32", "compile": False, "together": True, "seed": 99,
}  # fmt: skip
Judge = Callable[..., Folder]


@pytest.fixture
def digits() -> DistilledSet:
    """One real digit of each class, as a set."""
    train = load_digits(SourceConfig(name="digits"), "x").train
    places = [int((train.labels == label).nonzero()[0, 0]) for label in range(10)]
    fitted = space.fit("normalise", train.images)
    info = {"method": "random", "source": SOURCE, "seed": 4, "definition": {"name": "one", "stages": {}}}
    return DistilledSet(train.images[places], torch.arange(10), 0.01, train.classes, fitted, info)


@pytest.fixture
def judge(tmp_path: Path, digits: DistilledSet) -> Judge:
    """Writes a finished evaluate stage by hand: the set, every table, and the manifest."""

    def make(run: str, method: str = "random", level: float = 0.5, **protocol: Any) -> Folder:
        folder = Folder(str(tmp_path / "runs" / f"{run}-0123456789ab"))
        told = {**PROTOCOL, **protocol}
        definition = {"name": run, "stages": {"evaluate": {"kind": "evaluate", "set": "x"}}}
        info = {**digits.info, "method": method, "protocol": told, "definition": definition}
        replace(digits, info=info).save(folder.child("set"))
        row = {"data": "distilled", "net": "mlp-d2-w8", "images": 10, "mean": level, "std": 0.01}
        rows = [{**row, "accuracies": [level - 0.01, level + 0.01]}]
        columns = {"data": ["distilled"], "net": ["mlp-d2-w8"], "true": [1], "predicted": [2], "count": [3]}
        types = {"data": "string", "net": "string", "true": "int64", "predicted": "int64", "count": "int64"}
        tables.write(folder, "confusion.parquet", columns, types)
        summary = {"rows": rows, "set": "x", "protocol": told, "method": method, "ipc": 1, "seconds": 2.0}
        artifacts.seal(
            folder,
            {
                "stage": "evaluate", "kind": "evaluate", "fingerprint": "0" * 64, "config": {}, "inputs": {},
                "source": {"config": SOURCE, "fingerprint": "f"}, "seed": 4, "table": [],
                "summary": {**summary, "spent": {"x": 3.5}, "bytes": 720},
            },
        )  # fmt: skip
        return folder

    return make


def pair(folder: Path, digits: DistilledSet) -> Path:
    """The set as other code leaves it."""
    folder.mkdir()
    torch.save(digits.images, folder / "images_best.pt")
    torch.save(digits.labels, folder / "labels_best.pt")
    return folder


def test_every_way_of_naming_a_set_finds_it(judge: Judge, tmp_path: Path, digits: DistilledSet) -> None:
    """An evaluate stage's folder, the set in it, a run's name, a set alone, and two files or one of other code."""
    stage, out = judge("one"), str(tmp_path / "runs")
    record = {"format": 1, "name": "one", "order": ["evaluate"]}
    stages = {
        "evaluate": {"kind": "evaluate", "folder": "one-0123456789ab", "fingerprint": "f", "state": "done"}
    }
    Folder(out).write("one.run.json", ordered_json({**record, "stages": stages}))
    digits.save(Folder(str(tmp_path / "alone")))
    pair(tmp_path / "pair", digits)
    torch.save([digits.images, digits.labels], tmp_path / "data.pt")

    for where in (str(stage), f"{stage}/set", "one", f"{out}/one.run.json"):
        (found,) = comparing.resolve(where, out)
        assert found.manifest is not None
        assert str(found.folder) == str(stage)
    (alone,) = comparing.resolve(str(tmp_path / "alone"), out)
    (foreign,) = comparing.resolve(str(tmp_path / "pair"), out)
    (file,) = comparing.resolve(str(tmp_path / "data.pt"), out)
    assert (alone.manifest, alone.own, foreign.own, file.own) == (None, True, False, False)


def test_what_is_judged_is_only_shown(judge: Judge) -> None:
    """One stage, which reads the folders; the source and seed are the first run's."""
    found = [
        comparing.FoundSet(folder, artifacts.open_artifact(folder).manifest)
        for folder in (judge("a"), judge("b"))
    ]
    made = comparing.definition(found)

    assert made["stages"] == {"compare": {"kind": "compare", "runs": [str(f.folder) for f in found]}}
    assert (made["source"], made["seed"]) == ({"name": "digits", "space": "normalise"}, 4)
    definitions.load(made)


def test_what_is_not_judged_is_judged_by_the_first_ones_protocol(
    judge: Judge, tmp_path: Path, digits: DistilledSet
) -> None:
    """Its settings, but the rate, which is the set's own; what the user gives replaces them."""
    (folder,) = comparing.resolve(str(judge("a")), "runs")
    (foreign,) = comparing.resolve(str(pair(tmp_path / "mtt", digits)), "runs")
    made = comparing.definition([folder, foreign], seeds=3)

    assert made["stages"]["set-1"] == {"kind": "imported", "path": str(tmp_path / "mtt"), "method": "mtt"}
    judged = made["stages"]["judge-1"]
    assert {k: judged[k] for k in ("set", "protocol", "seeds", "epochs", "batch", "nets")} == {
        "set": "set-1", "protocol": "hard", "seeds": 3, "epochs": 7, "batch": 64, "nets": PROTOCOL["nets"],
    }  # fmt: skip
    assert "lr" not in judged
    assert made["stages"]["compare"]["runs"] == [str(folder.folder)]
    definitions.load(made)


def test_again_judges_all_alike(judge: Judge) -> None:
    """The sets are taken from their evaluate stages and evaluated again; no old result is shown."""
    found = [each for name in ("a", "b") for each in comparing.resolve(str(judge(name)), "runs")]
    made = comparing.definition(found, again=True, epochs=3)

    assert [made["stages"][f"set-{i}"]["path"] for i in (1, 2)] == [str(f.set) for f in found]
    assert [made["stages"][f"judge-{i}"]["epochs"] for i in (1, 2)] == [3, 3]
    assert made["stages"]["compare"] == {"kind": "compare"}
    definitions.load(made)


def test_all_are_judged_by_the_first_protocol_of_hard_labels(judge: Judge) -> None:
    """Soft labels need each set's teacher, so a set that was judged by them is judged by another's protocol."""
    found = [
        each
        for folder in (judge("s", name="soft", epochs=9), judge("a"))
        for each in comparing.resolve(str(folder), "runs")
    ]
    made = comparing.definition(found, again=True)
    assert [made["stages"][f"judge-{i}"]["protocol"] for i in (1, 2)] == ["hard", "hard"]
    assert [made["stages"][f"judge-{i}"]["epochs"] for i in (1, 2)] == [7, 7]


def test_sets_of_several_sizes_are_refused_before_anything_runs(
    judge: Judge, tmp_path: Path, digits: DistilledSet
) -> None:
    """With both sizes and the way out; shown beside each other they may be."""
    first = judge("a")
    folder = Folder(str(tmp_path / "wide"))
    digits.save(folder)
    document = json.loads(folder.read("set.json"))
    document["images"]["shape"] = [1, 8, 16]
    folder.write("set.json", json.dumps(document).encode())
    found = [each for place in (first, folder) for each in comparing.resolve(str(place), "runs")]
    with raises("sets-of-several-sizes") as caught:
        comparing.definition(found, again=True)
    assert "8 x 8" in str(caught.value)
    assert "16 x 8" in str(caught.value)


def test_comparisons_are_called_by_what_they_compare(judge: Judge, tmp_path: Path) -> None:
    """So that another one does not replace the record of the first."""
    folders = [str(judge("One")), f"{judge('two')}/set"]
    out = tmp_path / "out"
    for places in (folders, folders[:1]):
        rayddl.compare(places, out=str(out), progress=False)
    rayddl.compare(folders, out=str(out), name="mine", progress=False)
    assert sorted(path.name for path in out.glob("*.run.json")) == [
        "compare-one-0123456789ab-two-0123456789ab.run.json", "compare-one-0123456789ab.run.json", "mine.run.json",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("s3://b/runs/evaluate-x/set?endpoint_override=h:9000&scheme=http", "compare-evaluate-x"),
        ("s3://KEY:Secret@bucket", "compare-bucket"),
        ("runs/match-1/set/", "compare-match-1"),
        ("set", "compare-set"),
        ("quickstart.run.json", "compare-quickstart"),
    ],
)
def test_options_and_keys_of_a_uri_name_nothing(place: str, name: str) -> None:
    """They would be in the names of records and in tables."""
    assert comparing._called([place]) == name
    assert "Secret" not in last_part(place)


def test_the_stage_of_a_set_is_found_by_any_path(
    judge: Judge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also from inside the stage's folder, and with `~`."""
    stage = Path(str(judge("one")))
    monkeypatch.chdir(stage)
    monkeypatch.setenv("HOME", str(stage.parent))
    for place in ("set", "./set", f"{stage}/set", f"~/{stage.name}/set"):
        found = stage_of(Folder(place))
        assert found is not None
        assert found.local == stage


def test_what_cannot_be_compared_is_said(judge: Judge, tmp_path: Path, digits: DistilledSet) -> None:
    """No such place, a set without a source, settings without a use, and soft labels without a teacher."""
    with raises("nothing-to-compare"):
        comparing.resolve("nowhere/x", "runs")
    foreign = comparing.resolve(str(pair(tmp_path / "mtt", digits)), "runs")
    with raises("sets-without-source"):
        comparing.definition(foreign)
    with raises("everything-judged"):
        comparing.definition(comparing.resolve(str(judge("a")), "runs"), epochs=3)
    soft = comparing.resolve(str(judge("s", name="soft")), "runs")
    with raises("set-needs-its-teacher"):
        comparing.definition([*soft, *foreign])
    stage = Folder(str(tmp_path / "runs" / "teacher-0123456789ab"))
    artifacts.seal(stage, {**artifacts.open_artifact(judge("a")).manifest, "kind": "teacher"})
    with raises("stage-holds-no-set"):
        comparing.resolve(str(stage), "runs")


def test_the_command_writes_a_page_over_all(judge: Judge, tmp_path: Path) -> None:
    """A table in the terminal, the page on disk with both sets, and nothing run twice."""
    folders = [judge("one"), judge("two", "MTT", 0.75)]
    words = ["compare", *map(str, folders), f"{folders[0]}/set", "--out", str(tmp_path / "out"), "--json"]
    ended = CliRunner().invoke(app, words)

    assert ended.exit_code == 0, ended.output
    told = json.loads(ended.output.splitlines()[-1])
    assert "MTT, IPC 1" in json.dumps(told)
    (page,) = (tmp_path / "out").glob("compare-*/report.html")
    text = page.read_text(encoding="utf-8")
    assert {"random, IPC 1", "MTT, IPC 1"} <= set(re.findall(r"\w+, IPC 1", text))
    assert "Definition of two" in text
    assert text.count("Confusion matrix of") >= 2
    rows = tables.read(Folder(str(page.parent)), "comparison.parquet")
    assert (rows["set"], rows["seconds_to_make"]) == (["random, IPC 1", "MTT, IPC 1"], [3.5, 3.5])
    again = CliRunner().invoke(app, words)
    assert '"cached"' in again.output


def test_runs_have_the_names_that_were_asked_for(judge: Judge, tmp_path: Path) -> None:
    """Not that of the run which was the first to evaluate the set, whose evaluation they use."""
    out = tmp_path / "runs"
    for name, first in (("mine", "one"), ("yours", "two"), ("theirs", "one")):
        folder = judge(first)
        entry = {"kind": "evaluate", "folder": folder.local.name, "fingerprint": "f", "state": "done"}  # type: ignore[union-attr]
        record = {"format": 1, "name": name, "order": ["evaluate"], "stages": {"evaluate": entry}}
        Folder(str(out)).write(f"{name}.run.json", ordered_json(record))
    words = ["compare", "mine", "yours", "theirs", str(judge("three")), "--out", str(out), "--json"]
    ended = CliRunner().invoke(app, words)

    assert ended.exit_code == 0, ended.output
    (table,) = out.glob("compare-*/comparison.parquet")
    rows = tables.read(Folder(str(table.parent)), table.name)
    assert rows["run"] == ["mine", "yours", "three"]
    assert rows["set"] == [f"random, IPC 1 ({name})" for name in rows["run"]]


def test_every_run_has_a_name_or_none_has() -> None:
    """The number of names is the number of runs."""
    with pytest.raises(ValidationError, match="names has 1 entries for 2 runs; give one for each"):
        CompareConfig(kind="compare", runs=("a", "b"), names=("a",))


def test_settings_that_differ_are_in_table_page_and_json(judge: Judge, tmp_path: Path) -> None:
    """A second table below the first, which ``show`` has as well; none for runs of equal settings."""
    folders = [str(judge("a")), str(judge("b"))]
    for folder, seeds in zip(folders, (2, 3), strict=True):
        path = Path(folder) / "manifest.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "config": {"set": "x", "seeds": seeds}}))
    out = str(tmp_path / "out")
    words = ["compare", *folders, "--out", out, "--name", "both", "--json"]
    ended = CliRunner().invoke(app, words)
    result = next(e for e in map(json.loads, ended.output.splitlines()) if e["event"] == "result")
    labels = ("random, IPC 1 (a)", "random, IPC 1 (b)")
    values = dict(zip(labels, ("2", "3"), strict=True))
    assert result["tables"]["compare: what differs"] == [{"setting": "evaluate.seeds", **values}]
    assert result["stages"]["compare"]["summary"]["differences"] == [
        {"setting": "evaluate.seeds", "values": values}
    ]
    assert "What differs" in Path(result["places"]["report"]).read_text()
    for again in (["show", "both", "--out", out], words[:-1]):
        text = CliRunner().invoke(app, again).output
        assert "compare: what differs" in text
        assert re.search(r"evaluate\.seeds +2 +3", text)

    found = rayddl.compare([folders[0], str(judge("c"))], out=str(tmp_path / "other"), progress=False)
    assert "compare: what differs" in found.tables
    found = rayddl.compare([str(judge("d")), str(judge("e"))], out=str(tmp_path / "other"), progress=False)
    assert list(found.tables) == ["compare"]
    assert found.summaries["compare"]["differences"] == []


def test_an_unknown_network_is_refused_before_anything_starts(judge: Judge, tmp_path: Path) -> None:
    """With the nearest name; by compare and evaluate."""
    folder = str(judge("one"))
    for words in (["compare", folder, "--again"], ["evaluate", f"{folder}/set"]):
        ended = CliRunner().invoke(
            app, [*words, "--net", "convnett", "--out", str(tmp_path / "out"), "--json"]
        )
        told = json.loads(ended.output.splitlines()[-1])
        assert (ended.exit_code, told["code"]) == (2, "unknown-net")
        assert "did you mean 'convnet'?" in told["message"]


def test_python_compares_as_the_command_does(judge: Judge, tmp_path: Path) -> None:
    """The result has the page, and shows it in a notebook."""
    found = rayddl.compare([str(judge("one"))], out=str(tmp_path / "out"), progress=False)

    assert found.report is not None
    assert Path(found.report).read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert "<table" in found._repr_html_()


def test_a_result_shows_its_page(judge: Judge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opens in the browser or below a notebook's cell; a missing or remote page is refused."""
    found = rayddl.compare([str(judge("one"))], out=str(tmp_path / "out"), progress=False)
    seen: list[str] = []
    monkeypatch.setattr(webbrowser, "open", seen.append)
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    found.show()
    assert seen == [Path(str(found.report)).absolute().as_uri()]

    for place in ("~/out", f"file://{tmp_path}/out"):
        monkeypatch.setenv("HOME", str(tmp_path))
        seen.clear()
        rayddl.compare([str(judge("one"))], out=place, progress=False).show()
        assert seen == [Path(str(found.report)).absolute().as_uri()]

    notebook, shell = ModuleType("IPython"), SimpleNamespace(kernel=object())
    notebook.get_ipython = lambda: shell  # type: ignore[attr-defined]  # a stand-in
    screen = ModuleType("IPython.display")
    screen.HTML, screen.display = str, seen.append  # type: ignore[attr-defined]  # likewise
    monkeypatch.setitem(sys.modules, "IPython", notebook)
    monkeypatch.setitem(sys.modules, "IPython.display", screen)
    found.show()
    assert seen[1].startswith('<iframe srcdoc="&lt;!DOCTYPE html&gt;')

    with raises("run-without-page"):
        replace(found, artifacts={}).show()
    Path(str(found.report)).unlink()
    with raises("page-not-local"):
        found.show()


def test_an_imported_set_is_one_of_the_source(tmp_path: Path, digits: DistilledSet) -> None:
    """Classes, space and method are set down, with a hash that another set does not have."""
    path = str(pair(tmp_path / "mtt", digits))

    def run(**more: Any) -> Any:
        config = ImportedConfig.model_validate({"kind": "imported", "path": path, "method": "MTT", **more})
        context = Context("set", SourceConfig(name="digits"), 0, Folder(str(tmp_path / "out")), {}, {})
        return imported.run(config, context).summary

    found = run()
    made = DistilledSet.load(Folder(str(tmp_path / "out")).child("set"))
    assert torch.equal(made.images, digits.images)
    assert (made.classes, made.info["method"], made.info["source"]["name"]) == (
        digits.classes,
        "MTT",
        "digits",
    )
    assert run(sha256=found["sha256"])["ipc"] == 1
    with raises("import-of-another-hash"):
        run(sha256="0" * 64)
    with raises("import-folder-missing"):
        run(path=str(tmp_path / "nowhere"))
    with raises("import-folder-missing"):
        run(path=str(tmp_path / "nowhere.pt"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda images, labels: (images, labels), []),
        (
            lambda images, labels: (images.sub(images.min()).div(images.max() - images.min()), labels),
            ["between 0 and 1"],
        ),
        (lambda images, labels: (images[:9], labels[:9]), ["1 of 10 classes have no image: 9;"]),
    ],
)
def test_an_imported_set_that_is_probably_meant_otherwise_has_a_warning(
    change: Callable[..., Any], said: list[str], tmp_path: Path, digits: DistilledSet
) -> None:
    """Pixels in place of encoded numbers, and classes without images."""
    images, labels = change(digits.images, digits.labels)
    path = pair(tmp_path / "mtt", replace(digits, stored=images, labels=labels))
    config = ImportedConfig.model_validate({"kind": "imported", "path": str(path)})
    context = Context("set", SourceConfig(name="digits"), 0, Folder(str(tmp_path / "out")), {}, {})
    warnings = known()["imported"].cautions_after(imported.run(config, context).summary)

    assert len(warnings) == len(said)
    assert all(part in text for part, text in zip(said, warnings, strict=True))


def test_an_imported_set_with_logits_says_so(tmp_path: Path, digits: DistilledSet) -> None:
    """As a note and in the summary; its labels are the probabilities."""
    path, notes = pair(tmp_path / "datm", digits), []
    logits = 4.0 * torch.nn.functional.one_hot(digits.hard_labels, 10).float() - 2.0
    torch.save(logits, path / "labels_best.pt")

    class Noted(Silent):
        def note(self, text: str) -> None:
            notes.append(text)

    config = ImportedConfig.model_validate({"kind": "imported", "path": str(path)})
    source, out = SourceConfig(name="digits"), Folder(str(tmp_path / "out"))
    found = imported.run(config, Context("set", source, 0, out, {}, {}, progress=Noted()))

    assert found.summary["labels_read_as"] == "logits"
    assert len(notes) == 1
    assert "they are logits" in notes[0]
    torch.testing.assert_close(DistilledSet.load(out.child("set")).labels, logits.softmax(1))
