"""Estimates of work, memory and storage of the stages that will run, on this machine.

Each stage kind makes its own estimate; this module collects and shows them. Nothing is started on a cluster.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.text import Text

from rayddl.pipeline import cautions
from rayddl.pipeline.plan import Plan
from rayddl.pipeline.tables import rows_table

if TYPE_CHECKING:
    from rayddl.stages.estimates import Estimate, Machine


@dataclass(frozen=True)
class Estimates:
    """The estimate of each stage that will run, in the order they run."""

    machine: Machine
    stages: Mapping[str, Estimate | None]
    """``None`` for a kind without an estimate."""
    warnings: Mapping[str, Sequence[str]]
    """By stage, what will disappoint and what to change; stages without warnings are left out."""

    def to_json(self, plan: Plan) -> dict[str, Any]:
        """Return the plan with its estimates, as JSON values."""
        planned = plan.to_json()
        for stage in planned["stages"]:
            found = self.stages.get(stage["stage"])
            stage["estimate"] = None if found is None else found.to_json()
            stage["warnings"] = list(self.warnings.get(stage["stage"], ()))
        return {**planned, "machine": self.machine.to_json()}

    def __rich__(self) -> RenderableType:
        """Return a line about the machine, a row for each stage, and the notes."""
        machine, known = self.machine, {name: e for name, e in self.stages.items() if e is not None}
        gpus = f"{len(machine.gpus)} GPUs" if machine.gpus else "no GPU"
        head = f"expected on this machine: {machine.cpus} CPUs, {_size(machine.memory)} free, {gpus}"
        notes = [f"{name}: {note}" for name, found in known.items() for note in found.notes]
        if any(found.memory and not found.measured for found in known.values()):
            notes.append("~ is an estimate by formula; with --measure a matching step is tried")
        rows = [{"stage": name, **_expected(found)} for name, found in self.stages.items()]
        shown = [Text(f"warning: {line}", "yellow") for line in cautions.lines(self.warnings)]
        return Group(
            Text(f"\n{head}", "dim"), rows_table(rows), *(Text(note, "dim") for note in notes), *shown
        )


def _expected(found: Estimate | None) -> dict[str, str]:
    if found is None:
        return {"work": "?"}
    peak = "?" if found.memory is None else f"{'' if found.measured else '~'}{_size(found.memory)}"
    return {
        "work": found.work,
        "at once": str(found.at_once),
        "peak memory each": f"{peak} {'measured' if found.measured else ''}".strip(),
        "of": found.device,
        "written": "?" if found.written is None else f"~{_size(found.written)}",
    }


def _size(count: int) -> str:
    from rayddl.stages.estimates import shown

    return shown(count)


def estimate(plan: Plan, *, measure: bool = False) -> Estimates:
    """Return the estimates of all stages of ``plan`` that are not done.

    With ``measure``, kinds that can measure run one step in another process, which takes about a minute.
    Raises :class:`~rayddl.errors.SourceError` if the images cannot be listed.
    """
    from rayddl.stages.kinds import outlook

    definition = plan.definition
    configs = {stage.name: stage.config for stage in definition.stages}
    with plan.known.used():
        view = outlook(definition.source)
        found = {
            planned.name: planned.stage.kind.estimate(planned.stage.config, configs, view, measure=measure)
            for planned in plan.stages
            if planned.state != "done"
        }
    return Estimates(view.machine, found, cautions.before(plan, view))
