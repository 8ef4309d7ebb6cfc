"""The stage graph: which stage reads which, by which field, and in what order stages run."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from rayddl.errors import DefinitionError
from rayddl.pipeline.definition import graph
from rayddl.pipeline.definition.load import load
from tests.raising import raises

HEAD: dict[str, Any] = {"name": "d", "source": {"name": "digits"}}
MATCH = {"kind": "match", "ipc": 1, "syn_steps": 2, "expert_epochs": 2, "max_start_epoch": 3}
SPACE = {"lr_image": {"loguniform": [1, 100]}}
MADE: dict[str, Any] = {
    "a": {"kind": "make"},
    "b": {"kind": "make", "count": 9},
    "u": {"kind": "use", "make": "b", "other": "a"},
    "p": {"kind": "page", "of": ["u", "a"]},
}


def by_field(stages: tuple[Any, ...]) -> dict[str, dict[str, str]]:
    """For each stage the names of the stages whose settings its checks get, by the field."""
    configs = {stage.name: stage.config for stage in stages}
    names = {id(config): name for name, config in configs.items()}
    return {
        s.name: {f: names[id(c)] for f, c in graph.by_field(s.config, s.links, configs).items()}
        for s in stages
    }


def test_what_is_read_stands_under_its_field(lab: Any) -> None:
    """Checks get the settings of what is read by the field that names it, those of a list by its places."""
    stages = lab.load({**HEAD, "stages": MADE}).stages

    assert {s.name: s.links for s in stages} == {
        "a": {}, "b": {}, "u": {"make": ("b",), "other": ("a",)}, "p": {"of": ("u", "a")},
    }  # fmt: skip
    assert by_field(stages) == {
        "a": {}, "b": {}, "u": {"make": "b", "other": "a"}, "p": {"of.0": "u", "of.1": "a"},
    }  # fmt: skip


def test_unset_fields_are_named_unless_they_were_added() -> None:
    """An unset field stands for nothing that is read; one that a kind did not always have is left out."""
    experts = {"kind": "experts", "net": {"name": "mlp"}, "count": 1, "epochs": 1}
    stages = {"plain": experts, "t": {"kind": "teacher", "net": {"name": "mlp"}, "epochs": 1}}
    stages["scored"] = {**experts, "scores": "t", "epochs": 100, "curriculum": {}}
    stages["picked"] = {"kind": "coreset", "method": "random", "ipc": 1}
    found = {
        stage.name: list(graph.fields(stage.config)) for stage in load({**HEAD, "stages": stages}).stages
    }

    assert [(name, names) for name, names, _ in found["plain"]] == []
    assert [(name, names) for name, names, _ in found["scored"]] == [("scores", ("t",))]
    assert [(name, names) for name, names, _ in found["picked"]] == [("features", ())]


@pytest.mark.parametrize(
    ("stage", "key", "text"),
    [
        (
            {"kind": "use", "make": "a", "other": "q"},
            "s.other",
            "there is no stage 'q'; expected a stage that",
        ),
        ({"kind": "use", "make": "p", "other": "a"}, "s.make", "'p' is of kind page; expected a stage that"),
        ({"kind": "use", "make": "a", "other": "s"}, "s.other", "'s' is this stage itself; expected a stage"),
        (
            {"kind": "page", "of": ["a", "p"]},
            "s.of",
            "'p' is of kind page; expected a stage that produces a thing",
        ),
    ],
)
def test_a_wrong_name_is_said_of_its_field(lab: Any, stage: dict[str, Any], key: str, text: str) -> None:
    """Of several fields that name stages the one that is wrong is named, and no other."""
    stages = {"a": {"kind": "make"}, "p": {"kind": "page", "of": ["a"]}, "s": stage}
    with pytest.raises(DefinitionError) as error:
        lab.load({**HEAD, "stages": stages})

    (line,) = str(error.value).splitlines()[1:]
    assert line.strip().startswith(f"definition: stages.{key}: {text}")


def test_a_nearest_name_is_one_that_would_do(lab: Any) -> None:
    """Neither the stage itself nor one of another kind is proposed."""
    stages: dict[str, Any] = {
        "thing1": {"kind": "make"},
        "thing8": {"kind": "page"},
        "thing9": {"kind": "use", "make": "thing3"},
    }
    with raises("unknown-stage", key="stages.thing9.make") as caught:
        lab.load({**HEAD, "stages": stages})
    assert "; did you mean 'thing1'?" in str(caught.value)
    stages = {"ac": {"kind": "use", "make": "zz"}, "b": {"kind": "make"}, "p": {"kind": "page"}}
    with raises("unknown-stage", key="stages.ac.make") as other:
        lab.load({**HEAD, "stages": stages})
    assert str(other.value).endswith("stages that would do: b")


def searched(**search: Any) -> tuple[Any, ...]:
    """A search over matching, with experts that it may vary too."""
    stages = {
        "experts": {"kind": "experts", "count": 2, "keep": "all"},
        "distill": {**MATCH, "experts": "experts", "trajectory": "snapshots"},
        "search": {"kind": "tune", "of": "distill", "space": SPACE, **search},
        "page": {"kind": "report"},
    }
    return load({**HEAD, "stages": stages}).stages


def test_what_a_template_reads_is_read_in_its_stead() -> None:
    """It is listed under the template's field and its own; a stage that is varied as well is not read."""
    assert by_field(searched())["search"] == {"of": "distill", "of.experts": "experts"}
    more = {"space": {"experts.lr": {"uniform": [0.01, 0.1]}}}
    both = searched(also=["experts"], **more)
    assert by_field(both)["search"] == {"of": "distill", "also.0": "experts"}
    assert graph.templates(both[2].config) == {"of": "distill", "also.0": "experts"}
    assert [s.reads for s in both] == [(), ("experts",), (), ("search",)]


def test_templates_rest_unless_a_stage_that_runs_reads_them() -> None:
    """A template's own reader counts only if it runs itself."""
    configs = {stage.name: stage.config for stage in searched()}
    assert graph.idle(configs) == {"distill"}
    reader = load(
        {
            **HEAD,
            "stages": {
                "experts": {"kind": "experts", "count": 2, "keep": "all"},
                "distill": {**MATCH, "experts": "experts", "trajectory": "snapshots"},
                "again": {**MATCH, "experts": "experts", "trajectory": "snapshots", "start_set": "distill"},
                "search": {"kind": "tune", "of": "distill", "space": SPACE},
                "other": {"kind": "tune", "of": "again", "space": SPACE},
            },
        }
    ).stages
    configs = {stage.name: stage.config for stage in reader}
    # "other" runs trials of "again", and these start from the set of "distill".
    assert graph.idle(configs) == {"again"}


def test_every_is_every_other_that_does_not_hang_on_it(lab: Any) -> None:
    """Stages with a fitting product, in the order written, each once; no other page."""
    stages = {
        "p": {"kind": "page", "of": ["b", "*"]},
        "a": {"kind": "make"},
        "b": {"kind": "make"},
        "u": {"kind": "use", "make": "a"},
        "q": {"kind": "page"},
    }
    assert {s.name: s.reads for s in lab.load({**HEAD, "stages": stages}).stages} == {
        "p": ("b", "a", "u"), "a": (), "b": (), "u": ("a",), "q": ("a", "b", "u"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("reads", "ordered", "circle"),
    [
        ({"c": ["b"], "b": ["a"], "a": []}, ["a", "b", "c"], []),
        ({"c": [], "b": ["elsewhere"], "a": ["c"]}, ["c", "b", "a"], []),
        ({"a": ["c"], "b": [], "c": ["a", "b"]}, ["b"], ["a", "c", "a"]),
        ({"x": ["a"], "a": ["b"], "b": ["c"], "c": ["b"]}, [], ["b", "c", "b"]),
        ({"a": ["a"]}, [], ["a", "a"]),
    ],
)
def test_order(reads: dict[str, list[str]], ordered: list[str], circle: list[str]) -> None:
    """Each after what it reads, otherwise as written; of a circle only what belongs to it is shown."""
    assert graph.order(reads) == (ordered, circle)


def test_readers_are_found_through_others() -> None:
    """The stages that read a stage directly or through others."""
    named: dict[str, graph.Links] = {
        "a": {}, "b": {"of": ("a",)}, "c": {"of": ("b",)}, "d": {"of": ("c", "a")}, "e": {},
    }  # fmt: skip
    assert graph._readers("a", named) == {"b", "c", "d"}
    assert graph._readers("c", named) == {"d"}
    assert graph._readers("d", named) == set()


def test_many_stages_are_linked_in_little_time(tmp_path: Path) -> None:
    """A definition of a hundred kilobytes: each stage is compared with its readers, not with all others."""
    stages = "".join(f"  e{k}: {{kind: experts, count: 1, epochs: 1}}\n" for k in range(1000))
    (tmp_path / "d.yaml").write_text(f"name: x\nsource: {{name: digits}}\nstages:\n{stages}")
    began = time.process_time()
    assert len(load(tmp_path / "d.yaml").stages) == 1000
    assert time.process_time() - began < 30
