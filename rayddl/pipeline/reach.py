"""The folders and files that every node of a cluster has to see."""

from __future__ import annotations

from collections.abc import Iterable

from rayddl.data.sources import registry as sources
from rayddl.pipeline.fingerprints import configs_of
from rayddl.pipeline.plan import Plan, PlannedStage
from rayddl.stages.runtime import nodes
from rayddl.stages.runtime.large import is_large


def places(plan: Plan, left: Iterable[PlannedStage]) -> dict[str, str]:
    """The folders and files that workers of the stages ``left`` read and write, by the option that sets each."""
    left = list(left)
    source, stages = plan.definition.source, {stage.name: stage for stage in plan.definition.stages}
    read = sources.in_place(source) and any(
        any(config.reads_source for config in configs_of(planned.stage, stages))
        or (planned.stage.kind.needs_ray and (is_large(source, "train") or is_large(source, "test")))
        for planned in left
    )
    given = {
        f"{planned.name}.{setting}": where
        for planned in left
        for config in configs_of(planned.stage, stages)
        for setting, where in config.read_by_workers.items()
    }
    return {nodes.OUT: str(plan.out)} | ({nodes.ROOT: str(source.root)} if read else {}) | given
