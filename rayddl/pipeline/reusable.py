"""Finds finished stages that differ from one to be run only in how many units of work they have.

More experts, or more students, are then trained in addition to those that are there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from rayddl.errors import ArtifactError
from rayddl.pipeline import artifacts
from rayddl.pipeline.artifacts import Artifact
from rayddl.pipeline.fingerprints import folders_of
from rayddl.pipeline.plan import Plan, PlannedStage, fingerprint_of
from rayddl.stages.context import Input


def reusable(plan: Plan, planned: PlannedStage) -> tuple[Input, ...]:
    """The finished stages in ``plan.out`` whose fingerprint would be that of ``planned``, were it not for the number of
    their units (:attr:`StageConfig.unit_count`), with unaltered files.
    """
    if not planned.stage.config.unit_count:
        return ()
    return tuple(artifact.as_input({}) for artifact in _alike(plan, planned, verify=True))


def units_made(plan: Plan, planned: PlannedStage) -> int:
    """The units of ``planned`` that one of the stages of :func:`reusable` has. Their files are not read."""
    name = planned.stage.config.unit_count
    if not name:
        return 0
    made = (int(artifact.manifest["config"][name]) for artifact in _alike(plan, planned, verify=False))
    return min(int(getattr(planned.stage.config, name)), max(made, default=0))


def _alike(plan: Plan, planned: PlannedStage, *, verify: bool) -> Iterator[Artifact]:
    for folder in folders_of(plan.out, planned.name):
        if folder.name != planned.folder_name:
            try:
                if artifacts.state(folder) == "done" and _differs_in_units(
                    plan, planned, artifacts.open_artifact(folder)
                ):
                    yield artifacts.open_artifact(folder, verify=verify)
            except (ArtifactError, OSError):
                continue


def _differs_in_units(plan: Plan, planned: PlannedStage, artifact: Artifact) -> bool:
    config, theirs = planned.stage.config, artifact.manifest["config"]
    units = theirs.get(config.unit_count)
    if not isinstance(units, int) or isinstance(units, bool):
        return False
    # Sums are split between that many threads, which counts in their last digits.
    if (theirs.get("resources") or {}).get("num_cpus") != config.resources.num_cpus:
        return False
    config = config.model_copy(update={config.unit_count: units})
    return fingerprint_of(plan, replace(planned.stage, config=config)) == artifact.fingerprint
