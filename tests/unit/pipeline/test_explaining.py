"""``rayddl explain`` and the JSON Schema of definitions: the same descriptions as docs/reference.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from rayddl.pipeline.definition import document, reference
from rayddl.pipeline.definition.explaining import explain, names
from rayddl.pipeline.definition.jsonschema import schema, text
from rayddl.pipeline.definition.problems import Problems
from rayddl.stages.kinds import KINDS
from tests.raising import raises

PIPELINES = Path(__file__).resolve().parents[3] / "pipelines"
SCHEMA = jsonschema.Draft202012Validator(schema())


def test_everything_that_is_listed_is_explained() -> None:
    """Every kind, the source and every group of settings, each with its keys."""
    listed = explain()
    for name in (*KINDS, "source", "net", "resources", "definition"):
        assert f"  {name} " in listed
    for name in names():
        assert len(explain(name).splitlines()) > 3


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_has_the_descriptions_of_the_reference(kind: str) -> None:
    """Each key with its meaning, in lines of the given width."""
    config = KINDS[kind].config
    lines = explain(kind, width=80).splitlines()
    whole = " ".join(" ".join(lines).split())
    for name, field in config.model_fields.items():
        row = reference.row(name, field, reference.groups_of([config]))
        assert reference.without_links(row.meaning).replace("`", "") in whole
    assert max(map(len, lines)) <= 80


def test_a_single_key_and_a_key_below_it() -> None:
    """With type, bounds and default; a group's own keys follow."""
    assert explain("match.ipc").splitlines()[0] == "  match.ipc: an integer >= 1, required"
    assert "default 1000.0" in explain("match.lr_image")
    assert "num_gpus: a number >= 0" in explain("match.resources")
    assert explain("experts.net.depth").startswith("  experts.net.depth: an integer >= 1 and <= 7, default 3")


@pytest.mark.parametrize("name", ["mtt", "match.images_per_class", "match.ipc.more", "nonsense"])
def test_unknown_names(name: str) -> None:
    """The hint knows the field's words."""
    with raises("nothing-to-explain"):
        explain(name)


def test_keys_without_their_kind() -> None:
    """A key alone, or after a stage's name, is answered with the kinds that have it."""
    for name in ("syn_steps", "distill.syn_steps"):
        with raises("nothing-to-explain") as caught:
            explain(name)
        assert str(caught.value).endswith("syn_steps is a key of match: rayddl explain match.syn_steps")


@pytest.mark.parametrize("path", sorted(PIPELINES.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_definitions_satisfy_the_schema_and_name_it(path: Path) -> None:
    """An editor underlines nothing in them, and finds the schema by their header."""
    content = path.read_text(encoding="utf-8")
    assert list(SCHEMA.iter_errors(document.parse(content, path.name, Problems()).value)) == []
    assert "\n# yaml-language-server: $schema=schema.json\n" in content


def test_the_copy_of_the_schema_is_current() -> None:
    """``pipelines/schema.json`` is what the settings say."""
    written = (PIPELINES / "schema.json").read_text(encoding="utf-8")
    assert written == text() + "\n", "renew it: uv run rayddl schema > pipelines/schema.json"


EXPERTS = {"kind": "experts", "net": "vgg11"}


@pytest.mark.parametrize(
    ("accepted", "stage"),
    [
        (True, EXPERTS),
        (True, {"kind": "experts", "net": {"name": "convnet", "depth": 4}}),
        (True, {"count": 5}),
        (True, {"kind": "of-a-plugin", "any": 1}),
        (False, {"kind": "experts", "cuont": 5}),
        (False, {"kind": "experts", "net": {"depth": 9}}),
        (False, {"kind": "match", "trajectory": "straight"}),
    ],
)
def test_the_schema_refuses_what_a_plan_refuses(accepted: bool, stage: dict[str, Any]) -> None:
    """Keys, bounds and choices of a kind; parts of a definition that extends another one are valid."""
    whole = {"extends": "base.yaml", "stages": {"a": stage}}
    assert SCHEMA.is_valid(whole) is accepted
    assert SCHEMA.is_valid({"name": "d", "source": {"name": "digits"}, "stages": {"a": stage}}) is accepted
    assert not SCHEMA.is_valid({"stages": {"a": stage}})
    assert json.loads(text()) == schema()
