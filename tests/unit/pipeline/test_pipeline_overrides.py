"""``--set``: keys changed from the command line, checked like the file."""

from __future__ import annotations

from typing import Any

import pytest

from rayddl.errors import DefinitionError
from rayddl.pipeline.definition.load import load


def value_at(definition: Any, *key: Any) -> Any:
    """A value of the definition as it would be written."""
    value = definition.to_json()
    for part in key:
        value = value[part]
    return value


class TestApplied:
    @pytest.mark.parametrize(
        ("override", "key", "expected"),
        [
            ("first.count=20", ("stages", "first", "count"), 20),
            ("stages.first.count=20", ("stages", "first", "count"), 20),
            ("first.rate=1e-3", ("stages", "first", "rate"), 1e-3),
            ("first.label=a=b", ("stages", "first", "label"), "a=b"),
            ("first.shape.side=2", ("stages", "first", "shape", "side"), 2),
            ("first.shape={side: 2}", ("stages", "first", "shape"), {"side": 2}),
            ("first.shapes=[{side: 7}]", ("stages", "first", "shapes"), [{"side": 7}]),
            ("source.size=16", ("source", "size"), 16),
            ("seed=4", ("seed",), 4),
            ("name=other", ("name",), "other"),
            ("description=two words", ("description",), "two words"),
            ("source.root=/data/set #2", ("source", "root"), "/data/set #2"),
            ("description= it's #1 ", ("description",), "it's #1"),
            ("description=#1", ("description",), "#1"),
            ("description='quoted' # and a comment", ("description",), "quoted"),
            ("first.shapes=[{side: 7}] # and a comment", ("stages", "first", "shapes"), [{"side": 7}]),
        ],
    )
    def test_value(
        self, lab: Any, three: dict[str, Any], override: str, key: tuple[str, ...], expected: Any
    ) -> None:
        """The first part is a stage, or a key of the definition; the value is read as YAML."""
        definition = lab.load(three, [override])

        assert value_at(definition, *key) == expected
        assert definition.overrides == (override,)

    def test_a_variable_before_a_hash(self, lab: Any, three: dict[str, Any], monkeypatch: Any) -> None:
        """Text that goes on after ``#`` has its variables replaced as other text has."""
        monkeypatch.setenv("IMAGES", "/data")

        definition = lab.load(three, ["source.root=${IMAGES}/set #2"])

        assert value_at(definition, "source", "root") == "/data/set #2"

    def test_later_ones_win(self, lab: Any, three: dict[str, Any]) -> None:
        """Overrides are applied in order."""
        definition = lab.load(three, ["first.count=2", "first.count=3"])

        assert value_at(definition, "stages", "first", "count") == 3

    def test_items_of_lists(self, lab: Any, three: dict[str, Any]) -> None:
        """An item of a list is named by its number."""
        three["stages"]["first"]["shapes"] = [{"side": 1}, {"side": 2}]

        definition = lab.load(three, ["first.shapes.1.side=9"])

        assert value_at(definition, "stages", "first", "shapes") == [{"side": 1}, {"side": 9}]

    def test_shorthands_are_spelled_out(self) -> None:
        """A key below the short form ``net: convnet`` keeps the network's name."""
        value = {
            "name": "d",
            "source": {"name": "digits"},
            "stages": {"e": {"kind": "experts", "net": "convnet"}},
        }

        definition = load(value, ["e.net.width=32"])

        assert value_at(definition, "stages", "e", "net") == {"name": "convnet", "width": 32}

    def test_from_python(self, lab: Any, three: dict[str, Any]) -> None:
        """A mapping of values does the same as text, and is recorded as text."""
        definition = lab.load(three, {"first.count": 20, "first.label": "x"})

        assert value_at(definition, "stages", "first", "count") == 20
        assert definition.overrides == ("first.count=20", 'first.label="x"')

    def test_the_given_mapping_is_left_alone(self, lab: Any, three: dict[str, Any]) -> None:
        """Overrides do not write into the caller's mapping."""
        lab.load(three, ["first.count=20"])

        assert three["stages"]["first"] == {"kind": "make"}


class TestErrors:
    @pytest.mark.parametrize(
        ("override", "expected"),
        [
            (
                "frist.count=3",
                "--set frist.count=3: there is no stage 'frist'; did you mean 'first'? "
                "an override starts with one of: first, second, page, name, seed, source, description",
            ),
            ("count", "--set count: expected KEY=VALUE, for example --set experts.count=20"),
            ("=3", "--set =3: expected KEY=VALUE, for example --set experts.count=20"),
            (
                "first.cuont=3",
                "--set first.cuont=3: stages.first.cuont: unknown key; did you mean 'count'? known keys: "
                "kind, resources, count, rate, label, shape, shapes, loud",
            ),
            (
                "first.count=many",
                "--set first.count=many: stages.first.count: 'many' is not a whole number; "
                "expected an integer >= 1",
            ),
            (
                "first.count=[1",
                "--set first.count=[1: not valid YAML: a ',' or a closing bracket is missing",
            ),
            (
                "first.count.deep=1",
                "--set first.count.deep=1: stages.first.count: 5 has no keys; set stages.first.count as a whole",
            ),
            (
                "first.shapes.2.side=1",
                "--set first.shapes.2.side=1: stages.first.shapes: a list of 1: take an item by its number, "
                "from 0 on, or set the whole list",
            ),
            (
                "first.shapes.0.side=99",
                "--set first.shapes.0.side=99: stages.first.shapes.0.side: 99 is out of range; "
                "expected an integer >= 1 and <= 9",
            ),
            (
                "second.make=page",
                "--set second.make=page: stages.second.make: 'page' is of kind page; "
                "expected a stage that produces a thing (kind make); stages that would do: first",
            ),
        ],
    )
    def test_message(self, lab: Any, three: dict[str, Any], override: str, expected: str) -> None:
        """A problem with an override names it as on the command line."""
        three["stages"]["first"] |= {"count": 5, "shapes": [{"side": 1}]}

        with pytest.raises(DefinitionError) as error:
            lab.load(three, [override])

        assert [line.strip() for line in str(error.value).splitlines()[1:]] == [expected]
