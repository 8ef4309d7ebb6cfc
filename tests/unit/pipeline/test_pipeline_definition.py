"""Definitions: every error with its text, and checks across stages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rayddl.errors import DefinitionError
from rayddl.pipeline.definition.load import load
from tests.raising import raises

HEAD = "name: d\nsource: {name: digits}\nstages:\n"


def problems_of(error: pytest.ExceptionInfo[DefinitionError], folder: Path) -> list[str]:
    """The single problems, without the folder that the test happens to run in."""
    return [line.strip().replace(f"{folder}/", "") for line in str(error.value).splitlines()[1:]]


class TestErrors:
    @pytest.mark.parametrize(
        ("stage", "expected"),
        [
            (
                "{kind: make, count: many}",
                "d.yaml:4: stages.s.count: 'many' is not a whole number; expected an integer >= 1",
            ),
            (
                "{kind: make, count: 2.5}",
                "d.yaml:4: stages.s.count: 2.5 is not a whole number; expected an integer >= 1",
            ),
            (
                "{kind: make, count: true}",
                "d.yaml:4: stages.s.count: true is not a number; expected an integer >= 1",
            ),
            (
                "{kind: make, count: }",
                "d.yaml:4: stages.s.count: nothing is not a whole number; expected an integer >= 1",
            ),
            (
                "{kind: make, count: 0}",
                "d.yaml:4: stages.s.count: 0 is out of range; expected an integer >= 1",
            ),
            (
                "{kind: make, rate: 1}",
                "d.yaml:4: stages.s.rate: 1 is out of range; expected a number > 0 and < 1",
            ),
            (
                "{kind: make, rate: .nan}",
                "d.yaml:4: stages.s.rate: nan is not finite; expected a number > 0 and < 1",
            ),
            (
                "{kind: make, rate: high}",
                "d.yaml:4: stages.s.rate: 'high' is not a number; expected a number > 0 and < 1",
            ),
            ("{kind: make, label: 3}", "d.yaml:4: stages.s.label: 3 is not text; expected text"),
            (
                "{kind: make, loud: maybe}",
                "d.yaml:4: stages.s.loud: 'maybe' is not true or false; expected true or false",
            ),
            (
                "{kind: make, cuont: 3}",
                "d.yaml:4: stages.s.cuont: unknown key; did you mean 'count'? known keys: "
                "kind, resources, count, rate, label, shape, shapes, loud",
            ),
            (
                "{kind: make, shape: {colour: gren}}",
                "d.yaml:4: stages.s.shape.colour: 'gren' is not known; did you mean 'green'? "
                "expected one of: red, green",
            ),
            (
                "{kind: make, shape: {sde: 3}}",
                "d.yaml:4: stages.s.shape.sde: unknown key; did you mean 'side'? known keys: side, colour",
            ),
            (
                "{kind: make, shape: 3}",
                "d.yaml:4: stages.s.shape: 3 is not a mapping; expected a mapping with keys among side, colour",
            ),
            (
                "{kind: make, shapes: [{side: 1}, {side: 10}]}",
                "d.yaml:4: stages.s.shapes.1.side: 10 is out of range; expected an integer >= 1 and <= 9",
            ),
            (
                "{kind: make, shapes: round}",
                "d.yaml:4: stages.s.shapes: 'round' is not a list; expected a list; "
                "each item a mapping with keys among side, colour",
            ),
            ("{kind: use}", "d.yaml:4: stages.s.make: missing; expected text"),
            (
                "{kind: mkae}",
                "d.yaml:4: stages.s.kind: 'mkae' is not a stage kind; did you mean 'make'? "
                "known kinds: make, use, page; plugins loaded: none; if a plugin registers it, add --plugin FILE.py",
            ),
            ("{count: 3}", "d.yaml:4: stages.s.kind: missing; expected one of make, use, page"),
            (
                "make",
                "d.yaml:4: stages.s: 'make' is not a mapping; expected at least the key kind: make, use, page",
            ),
            (
                "{kind: use, make: nowhere}",
                "d.yaml:4: stages.s.make: there is no stage 'nowhere'; expected a stage that produces a thing "
                "(kind make); stages that would do: none",
            ),
            (
                "{kind: use, make: s}",
                "d.yaml:4: stages.s.make: 's' is this stage itself; expected a stage that produces a thing (kind make)",
            ),
        ],
    )
    def test_one_stage(self, lab: Any, written: Callable[..., Path], stage: str, expected: str) -> None:
        """A stage's problem has file, line, key, value, what was expected and the nearest name."""
        path = written(f"{HEAD}  s: {stage}\n")

        with pytest.raises(DefinitionError) as error:
            lab.load(path)

        assert str(error.value).startswith(f"1 problem in {path}; nothing was started.\n")
        assert problems_of(error, path.parent) == [expected]

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            (
                "name: d\nstages: {s: {kind: make}}\n",
                "d.yaml:1: source: missing; expected a mapping with keys among name, root, space, mean, std, size, "
                "subset, download and 9 more",
            ),
            (
                "name: My Run\nsource: {name: digits}\nstages: {s: {kind: make}}\n",
                "d.yaml:1: name: 'My Run': expected small letters, digits, '.', '_' and '-', "
                "with a letter or digit first",
            ),
            (
                "name: d\nseed: -1\nsource: {name: digits}\nstages: {s: {kind: make}}\n",
                "d.yaml:2: seed: -1 is out of range; expected an integer >= 0",
            ),
            (
                "name: d\nsource: {name: digts}\nstages: {s: {kind: make}}\n",
                "d.yaml:2: source.name: 'digts' is not known; did you mean 'digits'? "
                "expected one of: digits, cifar10, cifar100, parquet, webdataset, imagefolder, tinyimagenet, "
                "imagenet; plugins loaded: none; if a plugin registers it, add --plugin FILE.py",
            ),
            (
                "name: d\nsource: {name: digits}\nstages: {}\n",
                "d.yaml:3: stages: {} has the wrong length; expected a mapping",
            ),
            (
                "name: d\nsource: {name: digits}\nstages: [1]\n",
                "d.yaml:3: stages: [1] is not a mapping; expected a mapping",
            ),
            (
                "name: d\nsource: {name: digits}\nstage: {}\nstages: {s: {kind: make}}\n",
                "d.yaml:3: stage: unknown key; did you mean 'stages'? known keys: "
                "name, seed, source, stages, description, extends",
            ),
            (
                "name: d\nsource: {name: digits}\nstages: {Upper: {kind: make}}\n",
                "d.yaml:3: stages.Upper: 'Upper' is not a stage name; "
                "expected small letters, digits, '_' and '-', letter first",
            ),
            (
                "name: d\nsource: {name: digits}\nstages: {source: {kind: make}}\n",
                "d.yaml:3: stages.source: 'source' is a key of the definition itself; give the stage another name",
            ),
            ("", "d.yaml: is empty; a definition has the keys name, source, stages"),
            ("- a\n", "d.yaml: is not a mapping; a definition has the keys name, source, stages"),
        ],
    )
    def test_top_level(self, lab: Any, written: Callable[..., Path], text: str, expected: str) -> None:
        """The definition's own keys are checked in the same words."""
        path = written(text)

        with pytest.raises(DefinitionError) as error:
            lab.load(path)

        assert problems_of(error, path.parent) == [expected]

    def test_all_at_once(self, lab: Any, written: Callable[..., Path]) -> None:
        """Every problem is reported together, in the order of the lines."""
        path = written(
            "name: d\nseed: x\nsource: {name: digits, sise: 8}\nstages:\n"
            "  a: {kind: make, count: 0}\n  b: {kind: use, make: aa}\n  c: {kind: page, of: [q]}\n"
        )

        with pytest.raises(DefinitionError) as error:
            lab.load(path)

        assert str(error.value).startswith("5 problems in ")
        assert [line.split(":")[1] for line in problems_of(error, path.parent)] == ["2", "3", "5", "6", "7"]

    def test_not_text(self, lab: Any, tmp_path: Path) -> None:
        """A file that is not UTF-8 is named with the byte that is not."""
        path = tmp_path / "d.yaml"
        path.write_bytes(b"name: \xff\n")

        with raises("not-utf-8"):
            lab.load(path)

    def test_credentials_are_not_repeated(self, lab: Any, written: Callable[..., Path]) -> None:
        """A value shown in an error has lost its credentials."""
        path = written(f"{HEAD}  s: {{kind: make, count: 's3://key:secret@bucket/x?token=t'}}\n")

        with raises("value-of-another-type", "stages.s.count"):
            lab.load(path)

    def test_from_python(self, lab: Any, three: dict[str, Any]) -> None:
        """A definition given as a mapping is checked the same way, without lines."""
        three["stages"]["first"]["count"] = "many"

        with pytest.raises(DefinitionError) as error:
            lab.load(three)

        assert str(error.value) == (
            "1 problem in the definition; nothing was started.\n"
            "  definition: stages.first.count: 'many' is not a whole number; expected an integer >= 1"
        )


class TestGraph:
    def test_wrong_kind(self, lab: Any, written: Callable[..., Path]) -> None:
        """A reference to a stage of another kind names both kinds and the stages that would do."""
        path = written(
            f"{HEAD}  a: {{kind: make}}\n  b: {{kind: use, make: a}}\n  c: {{kind: use, make: b}}\n"
        )

        with pytest.raises(DefinitionError) as error:
            lab.load(path)

        assert problems_of(error, path.parent) == [
            "d.yaml:6: stages.c.make: 'b' is of kind use; expected a stage that produces a thing (kind make); "
            "stages that would do: a"
        ]

    def test_nearest_stage(self, lab: Any, written: Callable[..., Path]) -> None:
        """A reference with a typing error names the stage that was probably meant."""
        path = written(f"{HEAD}  experts: {{kind: make}}\n  b: {{kind: use, make: exprts}}\n")

        with raises("unknown-stage", "stages.b.make"):
            lab.load(path)

    def test_circle(self, lab: Any, written: Callable[..., Path]) -> None:
        """Stages that read each other are shown as the circle they make."""
        path = written(
            f"{HEAD}  a: {{kind: make}}\n  b: {{kind: use, make: a, other: c}}\n"
            "  c: {kind: use, make: a, other: b}\n"
        )

        with pytest.raises(DefinitionError) as error:
            lab.load(path)

        assert problems_of(error, path.parent) == [
            "d.yaml:5: stages.b: stages read each other in a circle: b → c → b"
        ]

    def test_star(self, lab: Any) -> None:
        """'*' is every other stage of a fitting kind, wherever it is written, but no other page."""
        definition = lab.load(
            {
                "name": "d",
                "source": {"name": "digits"},
                "stages": {
                    "page": {"kind": "page"},
                    "b": {"kind": "use", "make": "a"},
                    "a": {"kind": "make"},
                    "page2": {"kind": "page", "of": ["a", "*"]},
                },
            }
        )

        reads = {stage.name: stage.reads for stage in definition.stages}
        assert reads == {"page": ("b", "a"), "b": ("a",), "a": (), "page2": ("a", "b")}

    def test_order(self, lab: Any) -> None:
        """Stages run after what they read, and otherwise in the order they are written in."""
        plan = lab.plan(
            {
                "name": "d",
                "source": {"name": "digits"},
                "stages": {
                    "z": {"kind": "use", "make": "m"},
                    "y": {"kind": "make"},
                    "m": {"kind": "make"},
                    "x": {"kind": "make"},
                },
            }
        )

        assert [stage.name for stage in plan.stages] == ["y", "m", "z", "x"]

    def test_own_checks(self, lab: Any, written: Callable[..., Path]) -> None:
        """A kind's check of the stages that it reads is reported with its place."""
        path = written(f"{HEAD}  a: {{kind: make}}\n  b: {{kind: use, make: a, needs: 9}}\n")

        with pytest.raises(DefinitionError) as error:
            lab.load(path)

        assert problems_of(error, path.parent) == ["d.yaml:5: stages.b: needs 9 things, 'a' makes 3"]

    def test_real_kinds(self) -> None:
        """The links between the real kinds work: marks, checks, and defaults that depend on readers."""
        match = {"kind": "match", "experts": "e", "ipc": 1, "syn_steps": 2}
        value: dict[str, Any] = {
            "name": "d",
            "source": {"name": "digits"},
            "stages": {
                "e": {"kind": "experts", "keep": "all"},
                "m": {**match, "expert_epochs": 2, "max_start_epoch": 5, "trajectory": "snapshots"},
                "v": {"kind": "evaluate", "set": "m"},
                "r": {"kind": "report"},
            },
        }

        stages = {stage.name: stage for stage in load(value).stages}
        assert stages["r"].reads == ("e", "m", "v")
        assert stages["e"].config.model_dump()["epochs"] == 7
        with raises("stages-do-not-fit", "stages.m"):
            load(value, ["e.epochs=3"])

    @pytest.mark.parametrize(
        ("changes", "code"),
        [
            (["e.keep=convex"], "stages-do-not-fit"),
            (["m.waypoints=[0,6]"], "stages-do-not-fit"),
            (["m.trajectory=snapshots"], "refused-value"),
            (["m.waypoints=[1,8]"], "refused-value"),
            (["m.waypoints=[0,6,6,8]"], "refused-value"),
            (["m.waypoints=[0]"], "refused-value"),
        ],
    )
    def test_waypoints_of_a_match_stage(self, changes: list[str], code: str) -> None:
        """They need experts that are stored complete, from the first epoch to the last; otherwise they are refused."""
        value: dict[str, Any] = {
            "name": "d",
            "source": {"name": "digits"},
            "stages": {
                "e": {"kind": "experts", "keep": "all", "epochs": 8},
                "m": {
                    "kind": "match", "experts": "e", "ipc": 1, "syn_steps": 2, "expert_epochs": 5,
                    "max_start_epoch": 3, "waypoints": [0, 6, 8],
                },
            },
        }  # fmt: skip

        assert load(value).stages[1].config.model_dump()["waypoints"] == (0, 6, 8)
        with raises(code, "stages.m"):
            load(value, changes)
