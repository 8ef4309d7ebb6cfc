"""README and docs/ name files, headings, commands and options that exist."""

from __future__ import annotations

import re
import shlex
from itertools import pairwise
from pathlib import Path

import click
import pytest
import torch
import typer.main

import rayddl
from rayddl import plugins
from rayddl.cli.app import app
from rayddl.pipeline.definition import reference
from rayddl.stages.kinds import KINDS

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
pages = pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def anchors(page: Path) -> set[str]:
    """The fragments by which a page's headings are linked to, as GitHub makes them."""
    prose = re.sub(r"^```.*?^```", "", text_of(page), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def commands(page: Path) -> list[list[str]]:
    """The words after `rayddl` of every command that the page types, in a block or in code font."""
    text = text_of(page)
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    typed = [line for block in blocks for line in block.splitlines()]
    typed += re.findall(r"`(uv run rayddl [^`]+)`", text)
    found = []
    for line in typed:
        words = shlex.split(line, comments=True) if " rayddl " in line else []
        for place, (before, word) in enumerate(pairwise(words), start=1):
            if word == "rayddl" and before in ("run", "-m"):
                rest = words[place + 1 :]
                found.append(rest[: rest.index("|")] if "|" in rest else rest)
    return found


def test_there_are_pages_with_commands() -> None:
    """The tests below look at something."""
    verbs = {words[0] for page in PAGES for words in commands(page)}
    assert {"run", "list", "show", "evaluate", "compare", "export", "submit", "status"} <= verbs
    assert len(PAGES) > 1


@pages
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link is a file, and its fragment a heading of that page."""
    for target, _, fragment in re.findall(r"\]\(((?!https?:)[^)#]*)(#([^)]+))?\)", text_of(page)):
        file = (page.parent / target) if target else page
        assert file.exists(), target
        if fragment:
            assert fragment in anchors(file), f"{target}#{fragment}"


@pages
def test_named_files_exist(page: Path) -> None:
    """Every path in code font is in the repository."""
    named = re.findall(r"`((?:rayddl|pipelines|tests|docs)/[\w/.-]*)`", text_of(page))
    assert [path for path in named if not (ROOT / path).exists()] == []


@pages
def test_commands_exist(page: Path) -> None:
    """Every `rayddl` command has its verb, and the verb its options."""
    root = typer.main.get_command(app)
    for verb, *words in commands(page):
        command = root.get_command(click.Context(root), verb)  # type: ignore[attr-defined]  # a group
        assert command is not None, verb
        options = {
            name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)
        }
        given = {word.partition("=")[0] for word in words if word.startswith("-")}
        assert given <= options, (verb, given - options)


def test_every_option_of_the_manifest_is_in_the_table() -> None:
    """docs/cluster.md explains each option that `submit --manifest` takes alone."""
    root = typer.main.get_command(app)
    submit = root.get_command(click.Context(root), "submit")  # type: ignore[attr-defined]  # a group
    options = {
        p.opts[0] for p in submit.params if (getattr(p, "help", "") or "").startswith("With --manifest")
    }
    rows = [line for line in text_of(ROOT / "docs" / "cluster.md").splitlines() if line.startswith("| `--")]
    assert options == {word for row in rows for word in re.findall(r"`(--[\w-]+)", row.split("|")[1])}


def test_the_reference_is_current() -> None:
    """docs/reference.md is what the settings say."""
    written = text_of(ROOT / "docs" / "reference.md")
    renew = "uv run python -m rayddl.pipeline.definition.reference > docs/reference.md"
    assert written == reference.page(), f"renew it: {renew}"


def test_the_reference_explains_every_key() -> None:
    """No key without a meaning, no type without words, and nothing of Python's or of Sphinx's."""
    page = reference.page()
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| `")]
    assert [row[0] for row in rows if len(row) != 4 or row[3].strip(" |") == ""] == []
    assert re.findall(r"another value|:\w+:`|typing|NoneType|<class", page) == []
    assert all(f"## `kind: {name}`" in page for name in KINDS)


def test_the_example_of_a_selection_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CONTRIBUTING's files are planned as they stand, and the selection returns indices."""
    page = text_of(ROOT / "CONTRIBUTING.md")
    files = re.findall(r"```(?:python|yaml)\n# (own/[\w.]+)\n(.*?)```", page, re.DOTALL)
    assert [name for name, _ in files] == ["own/outliers.py", "own/outliers.yaml"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").mkdir()
    for name, text in files:
        (tmp_path / name).write_text(text)
    try:
        planned = rayddl.plan("own/outliers.yaml", plugins=["own/outliers.py"])
        chosen = plugins.find("selections", "outliers")(torch.randn(142, 64), 3)  # type: ignore[misc]
    finally:
        plugins.activate([])

    assert [stage.name for stage in planned.stages][:2] == ["mine", "herding"]
    assert len({*chosen.tolist()} & {*range(142)}) == 3
