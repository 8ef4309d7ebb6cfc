"""YAML that is written is read back as it was."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import rayddl
from rayddl import yaml_text
from rayddl.jobs import shipping
from rayddl.pipeline.definition.document import parse
from rayddl.pipeline.definition.load import load
from rayddl.pipeline.definition.problems import Problems
from rayddl.stages import drafting

TEXTS = st.one_of(st.text(), st.text("0123456789eExoab+-._:~ \n\t\x85\u2028#'\"<=&*![]{},|>%@nulltr")).filter(
    lambda text: "${" not in text
)


def read(text: str) -> Any:
    """What a definition file with ``text`` holds."""
    problems = Problems()
    document = parse(text, "file", problems)
    assert not problems.found
    return document.value


@pytest.mark.parametrize("options", [{"allow_unicode": True}, {"width": 40, "default_flow_style": True}])
@given(text=TEXTS)
@example(text="08")
@example(text="1e5")
@example(text="12345e6")
@example(text="0o17")
@example(text="two\x85lines")
def test_any_text_is_read_as_the_same_text(options: dict[str, Any], text: str) -> None:
    """As a value, as an item of a list and as a key, also where it looks like a number."""
    value = {"value": text, "list": [text], "key": {text: 1}}
    assert read(yaml_text.dump(value, **options)) == value


def test_other_values_keep_their_types() -> None:
    """Numbers, truth and nothing are written without quotes."""
    value = [8, -1, 1e-5, 1e22, 0.5, True, False, None, float("inf"), [], {}]
    written = yaml_text.dump(value)
    assert read(written) == value
    assert not {"'", '"', "!"} & set(written)


@pytest.mark.parametrize("text", ["08", "1e5"])
def test_a_shipped_definition_has_the_same_types(text: str) -> None:
    """Text that looks like a number is no number on the other machine."""
    value = {
        "name": text,
        "description": text,
        "source": {"name": "imagefolder", "root": text},
        "stages": {"page": {"kind": "report"}},
    }
    assert read(shipping.written(load(value)))["source"]["root"] == text


@pytest.mark.parametrize(
    ("text", "line"), [("08", 'root: "08"'), ("1e5", 'root: "1e5"'), ("a/8", "root: a/8")]
)
def test_a_drafted_definition_has_the_same_types(text: str, line: str) -> None:
    """`rayddl init 08` writes the folder's name in quotes."""
    assert drafting.key("root", text, indent=0) == line


def test_all_yaml_is_written_by_it() -> None:
    """Nothing else in rayddl calls PyYAML's dump."""
    home = Path(rayddl.__file__).parent
    files = {file.name: file.read_text(encoding="utf-8") for file in home.rglob("*.py")}
    assert [name for name, text in files.items() if re.search(r"\byaml\.(safe_)?dump", text)] == [
        "yaml_text.py"
    ]
