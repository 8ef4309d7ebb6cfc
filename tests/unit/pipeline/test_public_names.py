"""The names that ``import rayddl`` offers."""

from __future__ import annotations

import pydoc
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import rayddl
from rayddl.data.dataset import ImageDataset
from rayddl.data.pixels.space import Normalise
from rayddl.errors import DefinitionError
from rayddl.pipeline.api import run
from tests.raising import raises

HEAVY = "{'torch', 'ray', 'sklearn', 'scipy', 'pandas', 'matplotlib', 'PIL'}"


def loaded(code: str) -> str:
    """The heavy libraries that ``code`` has imported, in a fresh process."""
    code = f"import sys\n{code}\nprint(sorted({{m.split('.')[0] for m in sys.modules}} & {HEAVY}))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return ended.stdout.splitlines()[-1]


def test_all() -> None:
    """Every public name is there, and there are no others than those listed."""
    assert rayddl.__all__ == sorted(rayddl.__all__)
    for name in rayddl.__all__:
        assert getattr(rayddl, name) is not None
        assert name in dir(rayddl)


def test_unknown_name() -> None:
    """A name that is not there is an ordinary AttributeError."""
    with pytest.raises(AttributeError, match="module 'rayddl' has no attribute 'trian'"):
        _ = rayddl.trian


def test_import_is_light() -> None:
    """Importing the package, planning, and running what is finished load neither torch nor Ray."""
    assert loaded("import rayddl; rayddl.run; rayddl.load_set") == "[]"


def test_plan_is_light(tmp_path: Path) -> None:
    """A plan with the real kinds and a real source loads neither torch nor Ray."""
    definition = {
        "name": "d",
        "source": {"name": "digits"},
        "stages": {
            "experts": {"kind": "experts"},
            "distill": {
                "kind": "match",
                "experts": "experts",
                "ipc": 1,
                "syn_steps": 1,
                "expert_epochs": 1,
                "max_start_epoch": 1,
            },
            "evaluate": {"kind": "evaluate", "set": "distill"},
            "report": {"kind": "report"},
        },
    }

    assert loaded(f"import rayddl; print(rayddl.plan({definition!r}, out={str(tmp_path)!r}))") == "[]"


def test_run_from_python(lab: Any, three: dict[str, Any], tmp_path: Path, capsys: Any) -> None:
    """A run from Python gives values, and shows nothing when asked not to."""
    plugin = rayddl.Plugin("lab", kinds=tuple(lab.kinds().values()))
    result = run(three, overrides={"first.count": 4}, out=tmp_path / "o", progress=False, plugins=[plugin])

    assert result.summaries["first"] == {"stage": "first", "read": []}
    assert result.plan.definition.overrides == ("first.count=4",)
    assert result.report is None
    assert capsys.readouterr().out == ""
    again = run(three, overrides=["first.count=4"], out=tmp_path / "o", plugins=[plugin])
    assert set(again.endings.values()) == {"cached"}
    assert "first: cached" in capsys.readouterr().out


def test_plan_prints_as_a_table(lab: Any, three: dict[str, Any]) -> None:
    """Printing a plan gives the table that the command shows."""
    lines = str(lab.plan(three)).splitlines()

    assert lines[0].startswith("three  seed 0")
    assert lines[1].split() == ["stage", "kind", "reads", "state", "folder"]
    assert lines[-1].split()[:4] == ["page", "page", "first,", "second"]


def test_help_shows_how_to_use_it() -> None:
    """``help(rayddl)`` begins with an example, and has the public functions with their documentation."""
    text = pydoc.render_doc(rayddl, renderer=pydoc.plaintext)
    assert 'rayddl.run("quickstart"' in text
    for name in ("class DistilledSet", "compare(", "load_set(", "plan(", "run("):
        assert name in text
    assert "Run ``definition`` and return its artifacts" in text


def test_a_single_override_may_be_text() -> None:
    """One error for what is wrong in it, not one for each letter."""
    definition = {"name": "d", "source": {"name": "digits"}, "stages": {"r": {"kind": "report"}}}
    assert rayddl.plan(definition, overrides="seed=3").definition.seed == 3
    with raises("override-of-nothing", "") as caught:
        rayddl.plan(definition, overrides="a.b=2")
    assert isinstance(caught.value, DefinitionError)
    assert len(caught.value.problems) == 1


def test_types_are_shipped() -> None:
    """Type checkers read the annotations of an installed package only with this file."""
    assert (Path(rayddl.__file__).parent / "py.typed").is_file()


def test_sets_have_a_short_repr() -> None:
    """One line, without tensors."""
    space = Normalise((3, 4, 4), torch.zeros(3), torch.ones(3))
    images = torch.zeros(20, 3, 4, 4)
    found = rayddl.DistilledSet(
        images, torch.arange(20) % 10, 0.1, tuple("abcdefghij"), space, {"method": "MCT"}
    )
    assert repr(found) == "<DistilledSet MCT: 20 images of 10 classes, 3 x 4 x 4, hard labels>"
    split = ImageDataset(images.byte(), torch.arange(20) % 10, tuple("abcdefghij"))
    assert repr(split) == "<ImageDataset 20 images of 10 classes, 3 x 4 x 4>"
