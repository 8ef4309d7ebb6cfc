"""A plugin's kind, network, source, selection and loss in runs, with workers that have the plugin from nowhere else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import rayddl
from rayddl.cli.app import app
from rayddl.pipeline.browse.show import inspect
from rayddl.pipeline.judging import judge_set
from rayddl.pipeline.results import RunResult
from rayddl.plugins import Plugin, Splits
from rayddl.stages import parquet as tables
from rayddl.storage import Folder
from tests.raising import raises

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("kept_ray")]

TOY = str(Path(__file__).resolve().parents[1] / "plugins" / "toy")
ONE = {"resources": {"num_cpus": 1}}
DEFINITION = {
    "name": "toys",
    "source": {"name": "stripes"},
    "stages": {
        "mean": {"kind": "mean"},
        "picked": {"kind": "coreset", "method": "largest", "ipc": 1},
        "teacher": {"kind": "teacher", "net": "tiny", "epochs": 1, "compile": False, "allow_weak": True},
        "judged": {
            "kind": "evaluate", "set": "mean", "nets": ["tiny"], "seeds": 1, "epochs": 30, "lr": 0.1, "augment": "none",
            "random": False, "compile": False,
        },
        "taught": {
            "kind": "evaluate", "set": "picked", "nets": ["tiny"], "observer": "teacher", "loss": "confident",
            "seeds": 1, "epochs": 2, "random": False, "compile": False,
        },
        "search": {
            "kind": "tune", "of": "mean", "space": {"shrink": {"grid": [0.0, 1.0]}}, "searcher": "grid", "held_out": 1,
            "students": {"epochs": 5},
        },
        "report": {"kind": "report"},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where the runs lie."""
    return str(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def made(kept_ray: None, out: str) -> RunResult:
    """The definition, run."""
    return rayddl.run(DEFINITION, out=out, progress=False, plugins=[TOY])


def test_every_part_of_a_plugin_works_in_a_run(made: RunResult) -> None:
    """The set is the classes' means, the network learns from it, the search tries its settings."""
    source = rayddl.data.sources.registry.load(made.plan.definition.source).train
    means = [source.images[source.labels == label].float().mean(0).round() for label in (0, 1)]
    torch.testing.assert_close(rayddl.load_set(made.folders["mean"]).stored.float(), torch.stack(means))
    chosen = rayddl.load_set(made.folders["picked"]).stored[0]
    norms = (
        rayddl.load_set(made.folders["picked"])
        .space.encode(source.images[source.labels == 0])
        .flatten(1)
        .norm(dim=1)
    )
    torch.testing.assert_close(chosen, source.images[source.labels == 0][norms.argmax()])

    row = next(r for r in made.summaries["judged"]["rows"] if r["data"] == "distilled")
    assert row["net"] == "tiny"
    assert row["mean"] > 0.9
    assert made.summaries["taught"]["protocol"]["loss"] == "confident"
    trials = tables.read(Folder(made.folders["search"]), "trials.parquet")
    assert set(trials["setting.shrink"]) == {0.0, 1.0}
    assert made.artifacts["mean"].manifest["plugins"] == {"toy": "1"}
    assert "plugins" not in made.artifacts["report"].manifest
    shown = [inspect(made.folders[stage], "runs").head.get("plugins", "") for stage in ("mean", "report")]
    assert shown == ["toy 1", ""]


def test_the_page_has_the_kinds_own_section(made: RunResult) -> None:
    """Its module ``report`` draws it."""
    page = (Path(made.folders["report"]) / "report.html").read_text(encoding="utf-8")

    assert "Mean images: mean" in page


def test_its_sets_are_judged_compared_and_exported(made: RunResult, out: str, tmp_path: Path) -> None:
    """As those of any kind; where the plugin is missing, one sentence says so."""
    where = f"{made.folders['judged']}/set"
    judged = judge_set(where, out=out, seeds=1, epochs=2, plugins=[TOY])
    assert [row["net"] for row in judged.summary["rows"] if row["data"] == "distilled"] == ["tiny"]
    missing = CliRunner().invoke(app, ["evaluate", where, "--out", out])
    assert missing.exit_code == 2
    assert "'tiny' is not known" in missing.stderr
    assert "if a plugin registers it, add --plugin FILE.py" in missing.stderr

    compared = rayddl.compare(
        [made.folders["judged"], made.folders["picked"]],
        out=out,
        progress=False,
        plugins=[TOY],
        epochs=2,
        seeds=1,
    )
    assert {row["method"] for row in compared.summaries["compare"]["rows"]} == {"mean", "largest"}

    exported = CliRunner().invoke(
        app, ["export", made.folders["mean"], "--plugin", TOY, "--format", "pt", "--to", str(tmp_path)]
    )
    assert exported.exit_code == 0, exported.stderr
    assert torch.load(tmp_path / "images_best.pt").shape == (2, 1, 8, 8)


def test_a_plugin_that_was_changed_is_taken_anew(out: str, tmp_path: Path) -> None:
    """Workers that have run the earlier file run the later one."""

    def run(row: int) -> Any:
        file = tmp_path / "own.py"
        file.write_text(
            f"import rayddl\nplugin = rayddl.Plugin('own', selections={{'row': lambda features, count: [{row}]}})\n",
            encoding="utf-8",
        )
        stages = {"picked": {"kind": "coreset", "method": "row", "ipc": 1, **ONE}}
        keys = {"name": "rows", "source": {"name": "digits"}, "stages": stages}
        done = rayddl.run(keys, out=out, progress=False, plugins=[str(file)])
        return tables.read(Folder(done.folders["picked"]), "chosen.parquet")["image"]

    assert run(0) != run(3)


def test_what_is_written_in_a_notebook_runs(out: str) -> None:
    """Arrays and functions of the caller's own, without a module of theirs."""
    draws = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (20, 8, 8, 3), dtype=torch.uint8, generator=draws)
    labels = torch.arange(20) % 2

    def build(num_classes: int, channels: int, size: int) -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(channels * size**2, num_classes))

    mine = Plugin(
        "mine",
        "1",
        nets={"line": build},
        sources={"noise": Splits((images, labels), (images, labels), ["a", "b"])},
    )
    stages = {
        "teacher": {"kind": "teacher", "net": "line", "epochs": 1, "compile": False, "allow_weak": True}
    }
    keys = {"name": "noise", "source": {"name": "noise"}, "stages": stages}

    done = rayddl.run(keys, out=out, progress=False, plugins=[mine])
    assert done.summaries["teacher"]["net"]["name"] == "line"


def test_a_selection_that_returns_nonsense_ends_the_run(out: str) -> None:
    """With the plugin's name, what it returned and what is expected."""
    stages = {"picked": {"kind": "coreset", "method": "twice", "ipc": 2}}
    keys = {"name": "twice", "source": {"name": "digits"}, "stages": stages}
    wrong = Plugin("mine", selections={"twice": lambda features, count: [0] * count})

    with raises("plugin-selection-output") as caught:
        rayddl.run(keys, out=out, progress=False, plugins=[wrong])
    assert "selection 'twice' of plugin mine returned int64 [2], [0, 0], for 2 of 142 images of class" in str(
        caught.value
    )
