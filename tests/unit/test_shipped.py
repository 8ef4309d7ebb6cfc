"""What the repository shows to its users holds: definitions load, the README's examples are real."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from rayddl.cli.app import app
from rayddl.pipeline import definition
from rayddl.stages.configs.match import MatchConfig

ROOT = Path(__file__).resolve().parents[2]
PIPELINES = sorted((ROOT / "pipelines").glob("*.yaml"))
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", PIPELINES, ids=lambda p: p.stem)
def test_definition_loads_and_is_named_like_its_file(path: Path) -> None:
    """Every definition is valid as it stands and goes by its file's name."""
    assert definition.load(str(path)).name == path.stem


@pytest.mark.parametrize("path", [p for p in PIPELINES if p.stem != "quickstart"], ids=lambda p: p.stem)
def test_published_settings_name_their_figure(path: Path) -> None:
    """A definition with published settings states the accuracy published with them, and how to run it."""
    head = "\n".join(line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#"))

    assert re.search(r"\d\d\.\d ± \d\.\d %", head)
    assert f"rayddl run pipelines/{path.name}" in head
    if path.stem.split("-")[1] in ("mtt", "mct"):
        match = next(s.config for s in definition.load(str(path)).stages if isinstance(s.config, MatchConfig))
        assert path.stem.endswith(f"ipc{match.ipc}")
        assert (match.trajectory == "convex") == ("-mct-" in path.stem)


def test_readmes_definition_is_valid() -> None:
    """The definition that the README explains is one that runs."""
    (block,) = [b for b in re.findall(r"```yaml\n(.*?)```", README, re.DOTALL) if "stages:" in b]

    assert definition.load(yaml.safe_load(block)).name == "cifar10-mct-ipc1"


def test_readmes_verbs_exist() -> None:
    """Every `rayddl VERB` of the README is a command."""
    verbs = set(re.findall(r"rayddl (run|plan|show|list|evaluate|export|doctor|[a-z]+) ", README)) - {
        "import"
    }
    shown = CliRunner().invoke(app, ["--help"]).output

    mentioned = {verb for verb in verbs if re.search(rf"uv run rayddl {verb}\b", README)}
    assert {"run", "list", "show", "evaluate", "export"} <= mentioned
    assert all(re.search(rf"\b{verb}\b", shown) for verb in mentioned)


def test_readmes_files_exist() -> None:
    """Every file that the README links to or names in code font is there."""
    linked = re.findall(r"\]\(((?!https?:)[^)#]+)\)", README)
    named = re.findall(r"`((?:rayddl|pipelines|tests)/[\w/.]+\.\w+)`", README)

    assert linked
    assert [p for p in linked + named if not (ROOT / p).exists()] == []
