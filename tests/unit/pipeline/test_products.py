"""Stages are read by what they produce, so a plugin's kind works like a shipped one."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import pytest

from rayddl.errors import DefinitionError
from rayddl.pipeline.definition.load import Definition, load
from rayddl.stages.kinds import KINDS, Kind
from rayddl.stages.settings import Reads, StageConfig, Tunable
from tests.raising import raises


class MeanConfig(StageConfig):
    """A method that is no part of the package."""

    produces: ClassVar[str] = "set"
    tunable: ClassVar[Tunable | None] = Tunable({"accuracy": "max", "sharpness": "min"}, "outside:trials")

    kind: Literal["mean"]
    ipc: int = 1
    blur: float = 0.5
    features: Annotated[str | None, Reads(("experts", "teacher"))] = None


WITH_MEAN = {**KINDS, "mean": Kind("mean", MeanConfig)}


def loaded(**stages: Any) -> Definition:
    """A definition of these stages."""
    return load({"name": "d", "source": {"name": "digits"}, "stages": stages}, kinds=WITH_MEAN)


def reads(definition: Definition) -> dict[str, tuple[str, ...]]:
    """What each stage reads."""
    return {stage.name: stage.reads for stage in definition.stages}


def test_a_set_from_outside_is_judged_compared_shown_and_started_from() -> None:
    """Every stage that takes a set takes this one; ``"*"`` of a report means it, and no page."""
    found = loaded(
        experts={"kind": "experts", "keep": "all"},
        mean={"kind": "mean"},
        distill={
            "kind": "match", "experts": "experts", "ipc": 1, "syn_steps": 2, "expert_epochs": 1, "max_start_epoch": 2,
            "start_set": "mean",
        },
        evaluate={"kind": "evaluate", "set": "mean"},
        compare={"kind": "compare"},
        report={"kind": "report"},
    )  # fmt: skip

    assert reads(found) == {
        "experts": (),
        "mean": (),
        "distill": ("experts", "mean"),
        "evaluate": ("mean",),
        "compare": ("evaluate",),
        "report": ("experts", "mean", "distill", "evaluate"),
    }


def test_a_kind_from_outside_can_be_tuned() -> None:
    """Its metrics are those that it declares, and less of one may be better."""
    space = {"blur": {"uniform": [0.1, 0.9]}}
    search = {"kind": "tune", "of": "mean", "space": space, "metric": "sharpness"}
    found = loaded(mean={"kind": "mean"}, search=search, evaluate={"kind": "evaluate", "set": "search"})
    config: Any = found.stages[1].config

    assert config.better(found.stages[0].config) == "min"
    with raises("stages-do-not-fit", "stages.search"):
        loaded(mean={"kind": "mean"}, search={**search, "metric": "loss"})


@pytest.mark.parametrize(
    ("stages", "expected"),
    [
        (
            {"a": {"kind": "experts"}, "b": {"kind": "evaluate", "set": "a"}, "c": {"kind": "mean"}},
            "stages.b.set: 'a' is of kind experts; expected a stage that produces a set (kind match or rded or coreset "
            "or refine or tune or imported or mean); stages that would do: c",
        ),
        (
            {"a": {"kind": "mean"}, "b": {"kind": "coreset", "method": "herding", "ipc": 1, "features": "a"}},
            "stages.b.features: 'a' is of kind mean; expected a stage that produces experts or a teacher (kind experts "
            "or teacher); stages that would do: none",
        ),
        (
            {"a": {"kind": "mean"}, "b": {"kind": "compare", "of": ["a"]}},
            "stages.b.of: 'a' is of kind mean; expected a stage that produces a judgement (kind evaluate); stages that "
            "would do: none",
        ),
    ],
)
def test_a_wrong_reference_names_what_is_needed_and_what_would_do(
    stages: dict[str, Any], expected: str
) -> None:
    """The product that is wanted, the kinds that have it, and the stages of the definition that would do."""
    with pytest.raises(DefinitionError) as error:
        loaded(**stages)

    assert expected in str(error.value)
