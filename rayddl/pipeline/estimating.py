"""What the stages that will run are going to take, on this machine.

The figures are the kinds' own; here they are gathered and shown. Nothing is started on a cluster.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rayddl.pipeline.plan import Plan

if TYPE_CHECKING:
    from rayddl.stages.estimates import Estimate, Machine


@dataclass(frozen=True)
class Estimates:
    """What is expected of each stage that will run, in the order they run."""

    machine: Machine
    stages: Mapping[str, Estimate | None]
    """``None`` where the kind cannot tell."""

    def to_json(self, plan: Plan) -> dict[str, Any]:
        """The plan with its estimates, as JSON values."""
        told = plan.to_json()
        for stage in told["stages"]:
            found = self.stages.get(stage["stage"])
            stage["estimate"] = None if found is None else found.to_json()
        return {**told, "machine": self.machine.to_json()}

    def __rich__(self) -> Any:
        from rayddl.pipeline.display.tables import estimates_table

        return estimates_table(self)


def estimate(plan: Plan, *, measure: bool = False) -> Estimates:
    """The estimates of all stages of ``plan`` that are not done.

    With ``measure``, kinds that can do so try a step in another process, which takes a minute or so. Raises
    :class:`~rayddl.errors.SourceError` where the images cannot be listed.
    """
    from rayddl.stages.kinds import outlook

    definition = plan.definition
    configs = {stage.name: stage.config for stage in definition.stages}
    view = outlook(definition.source)
    found = {
        planned.name: planned.stage.kind.estimate(planned.stage.config, configs, view, measure=measure)
        for planned in plan.stages
        if planned.state != "done"
    }
    return Estimates(view.machine, found)
