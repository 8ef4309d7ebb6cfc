"""Shared code names no stage kind: a kind that is added, or comes from outside, needs no edit there.

What it may name is what stages produce. A kind's own folder may name the kind itself.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from rayddl.stages.kinds import KINDS
from rayddl.stages.settings import StageConfig

ROOT = Path(__file__).resolve().parents[3] / "rayddl"
MARKS = ("Reads", "Template")
"""Called with products, some of which are called as the kind that makes them."""


def own_kind(path: Path) -> str | None:
    """The kind in whose folder the file stands."""
    parts = path.relative_to(ROOT).parts
    return parts[1] if parts[0] == "stages" and parts[1] in KINDS else None


def named(node: ast.AST, own: str | None) -> list[str]:
    """The kinds that are named in a constant, or in the constants of a list, set, tuple or of a mapping's keys."""
    if isinstance(node, ast.Constant):
        return [node.value] if node.value in KINDS and node.value != own else []
    parts = node.elts if isinstance(node, ast.Tuple | ast.List | ast.Set) else ()
    parts = [key for key in node.keys if key] if isinstance(node, ast.Dict) else parts
    return [name for part in parts if isinstance(part, ast.Constant) for name in named(part, own)]


def offences(source: str, own: str | None = None) -> Iterator[str]:
    """Each place that chooses by kind: a comparison with a kind's name, a list of kinds."""
    tree = ast.parse(source)
    products = {
        id(argument)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in MARKS
        for argument in node.args
    }
    for node in ast.walk(tree):
        found: list[str] = []
        if isinstance(node, ast.Compare):
            sides = (node.left, *node.comparators)
            words = " ".join(ast.unparse(side) for side in sides)
            if re.search(r"\bkind\b", words) and "produce" not in words:
                found = [name for side in sides for name in named(side, own)]
        elif isinstance(node, ast.MatchValue):
            found = named(node.value, own)
        elif isinstance(node, ast.Tuple | ast.List | ast.Set | ast.Dict) and id(node) not in products:
            several = named(node, own)
            found = several if len(several) > 1 else []
        if found:
            yield f"line {getattr(node, 'lineno', '?')}: {', '.join(found)}"


@pytest.mark.parametrize(
    "source",
    [
        'of.kind == "rded"',
        'stage["kind"] != "tune"',
        'kind in ("match", "other")',
        'KINDS = {"experts": 1, "match": 2}',
        'for name in ["rded", "coreset"]: pass',
        'match kind:\n    case "teacher": pass',
    ],
)
def test_choosing_by_kind_is_found(source: str) -> None:
    """The scan below sees every way in which code has chosen by kind."""
    assert list(offences(source))


@pytest.mark.parametrize(
    ("source", "own"),
    [
        ('stage["kind"] != "tune"', "tune"),
        ('produced(found.kind) == "teacher"', None),
        ('of: Annotated[str, Reads(("experts", "teacher"))]', None),
        ('{"kind": "evaluate", "set": name}', None),
    ],
)
def test_products_and_the_own_kind_may_be_named(source: str, own: str | None) -> None:
    """A product may be called as the kind that makes it."""
    assert not list(offences(source, own))


def test_the_shipped_sources_choose_by_no_kind() -> None:
    """Nor does one kind's folder choose by another kind."""
    found = {
        str(path.relative_to(ROOT)): told
        for path in sorted(ROOT.rglob("*.py"))
        if (told := list(offences(path.read_text(encoding="utf-8"), own_kind(path))))
    }

    assert found == {}


@pytest.mark.parametrize("name", list(KINDS))
def test_a_kind_is_a_folder_and_says_what_it_produces(name: str) -> None:
    """Its settings stand in the folder of its name, next to the stage that runs it."""
    kind = KINDS[name]

    assert kind.folder == f"rayddl.stages.{name}"
    assert (ROOT / "stages" / name / "stage.py").is_file()
    assert kind.config.produces in ("experts", "set", "teacher", "judgement", "page")
    assert kind.config.model_fields["kind"].annotation is not StageConfig.model_fields["kind"].annotation


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.config.produces != "page"])
def test_what_a_report_shows_has_a_part_or_is_listed(name: str) -> None:
    """A kind with a module ``report`` has all that the page asks of it."""
    module = KINDS[name].optional("report")

    assert module is None or all(hasattr(module, wanted) for wanted in ("TINT", "read", "part"))


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.config.tunable])
def test_trials_that_a_kind_declares_are_there(name: str) -> None:
    """``module:function`` is found, in the kind's own folder."""
    kind = KINDS[name]
    assert kind.config.tunable is not None
    module, _, function = kind.config.tunable.trials.partition(":")

    assert module == f"{kind.folder}.trials"
    assert callable(getattr(kind.optional("trials"), function))
