"""Plans a run: the stages in order, their folders, and which of them are finished."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeAlias

from rich.console import Group, RenderableType
from rich.text import Text

from rayddl import documents
from rayddl.credentials import scrub
from rayddl.data.config import SourceConfig
from rayddl.data.sources import known
from rayddl.data.sources.known import Known
from rayddl.errors import ArtifactError, UserError
from rayddl.pipeline import artifacts, outside
from rayddl.pipeline.definition import graph
from rayddl.pipeline.definition.load import Definition, Stage, fits, fitted
from rayddl.pipeline.fingerprints import SHOWN_DIGITS, configs_of, files_of, fingerprint
from rayddl.pipeline.tables import as_text, rows_table
from rayddl.plugins import suggestion
from rayddl.storage import Folder

SourceFingerprint: TypeAlias = Callable[[SourceConfig], str]


@dataclass(frozen=True)
class PlannedStage:
    """One stage of a plan."""

    stage: Stage
    fingerprint: str
    folder: Folder
    state: artifacts.State
    """``done``: is skipped. ``partial``: continues from its partial results. ``new``: runs from its start."""
    artifact: artifacts.Artifact | None
    """The artifact, if the stage is done."""
    files: Mapping[str, str] = field(default_factory=dict)
    """By place, the identity of the files that it reads and no stage has made (:mod:`.outside`)."""

    @property
    def name(self) -> str:
        """The stage's name."""
        return self.stage.name

    @property
    def folder_name(self) -> str:
        """``<stage>-<first digits of the fingerprint>``."""
        return f"{self.name}-{self.fingerprint[:SHOWN_DIGITS]}"

    def to_json(self) -> dict[str, Any]:
        """Return the stage as JSON values, without credentials."""
        return {
            "stage": self.name,
            "kind": self.stage.kind.name,
            "reads": list(self.stage.reads),
            "state": self.state,
            "fingerprint": self.fingerprint,
            "folder": scrub(str(self.folder)),
        }


@dataclass(frozen=True)
class Fitted:
    """Settings of a stage that were not given and follow the number of training images."""

    images: int
    settings: Mapping[str, Any]
    """Their values, as in JSON."""

    def __str__(self) -> str:
        values = {k: f"{v:g}" if isinstance(v, float) else v for k, v in self.settings.items()}
        listed = ", ".join(f"{name} {value}" for name, value in values.items())
        which = "it" if len(self.settings) == 1 else "them"
        return f"{listed}, for {self.images:,} training images; set {which} to change"


@dataclass(frozen=True)
class Plan:
    """The stages of a definition in the order they run, with their folders and states."""

    definition: Definition
    out: Folder
    source_fingerprint: str
    stages: tuple[PlannedStage, ...]
    known: Known = field(default_factory=Known, compare=False, repr=False)
    """What was found out about the source for the plan; a run uses it."""
    fitted: Mapping[str, Fitted] = field(default_factory=dict, compare=False)
    """By stage, the settings that the number of training images decided."""
    only: frozenset[str] | None = None
    """The names of the stages that are run; ``None``: all. See :meth:`narrowed`."""
    unneeded: tuple[str, ...] = ()
    """The names of stages that were deleted, and that are not run because whatever reads them is finished."""

    @property
    def chosen(self) -> tuple[PlannedStage, ...]:
        """The stages that are run, in the order they run."""
        return tuple(stage for stage in self.stages if self.only is None or stage.name in self.only)

    def narrowed(self, names: Sequence[str]) -> Plan:
        """Return the plan of the stages ``names`` and all that they need; all stages if ``names`` is empty.

        A stage that is missing is left out, too, if no stage that is left reads it: it was deleted after those that do.
        Raises :class:`UserError` for a name that is not a stage of the plan.
        """
        reads = {stage.name: stage.stage.reads for stage in self.stages}
        for name in names:
            if name not in reads:
                raise UserError(
                    f"--stage {name!r} is not a stage that runs; {suggestion(name, reads, 'stages')}",
                    code="stage-not-in-plan",
                )
        ends = list(names) or [name for name in reads if not any(name in others for others in reads.values())]
        done = {stage.name for stage in self.stages if stage.state == "done"}
        found = _reached(ends, reads)
        needed = _reached(
            [name for name in ends if name not in done],
            {name: [other for other in others if other not in done] for name, others in reads.items()},
        )
        new = {stage.name for stage in self.stages if stage.state == "new"}
        missing = tuple(name for name in reads if name in found & new - needed)
        if not names and not missing:
            return self
        return replace(self, only=frozenset(found).difference(missing), unneeded=missing)

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON values, without credentials."""
        return {
            "name": self.definition.name,
            "seed": self.definition.seed,
            "out": scrub(str(self.out)),
            "source_fingerprint": self.source_fingerprint,
            "stages": [
                {**stage.to_json(), "fitted": dict(self.fitted[stage.name].settings)}
                if stage.name in self.fitted
                else stage.to_json()
                for stage in self.chosen
            ],
        }

    def left_out(self) -> tuple[str, ...]:
        """A line for each stage that was deleted and is not needed."""
        return tuple(
            f"{name}: deleted, and nothing that is left to do reads it; --stage {name} makes it again"
            for name in self.unneeded
        )

    def __str__(self) -> str:
        return as_text(self)

    def __rich__(self) -> RenderableType:
        """Return a line about the run and a row for each stage."""
        source = self.definition.source
        head = Text.assemble(
            (self.definition.name, "bold"),
            (
                f"  seed {self.definition.seed}  source {source.name} ({source.space})  out {scrub(str(self.out))}",
                "dim",
            ),
        )
        rows = [
            {
                "stage": stage.name,
                "kind": stage.stage.kind.name,
                "reads": ", ".join(stage.stage.reads),
                "state": stage.state,
                "folder": stage.folder_name,
            }
            for stage in self.chosen
        ]
        chosen = {stage.name for stage in self.chosen}
        fitted = [f"{name}: {said}" for name, said in self.fitted.items() if name in chosen]
        return Group(head, rows_table(rows), *(Text(line, "dim") for line in (*fitted, *self.left_out())))


def _reached(names: Iterable[str], reads: Mapping[str, Sequence[str]]) -> set[str]:
    """``names`` and all that they read, directly or not."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += reads[name]
    return found


def make(definition: Definition, out: str, source_fingerprint: SourceFingerprint | None = None) -> Plan:
    """Return the plan for running ``definition`` under ``out``, a path or URI. Starts and writes nothing.

    If a run was interrupted or killed in the middle of a stage, the plan is made with the listing of remote files that
    it kept.

    Stages that are only templates of others do not run and are not in the plan. Settings that are not given and follow
    the number of training images are set, unless ``source_fingerprint`` stands in for the images.

    Raises :class:`UserError` for an ``out`` that cannot be read, :class:`SourceError` for missing images, and
    :class:`ArtifactError` for a stage's folder that is altered or unreadable.
    """
    folder = Folder(out)
    _check_readable(folder)
    kept = known.read(folder, definition.source)
    if kept is not None:
        plan = _made(definition, folder, source_fingerprint, kept)
        if _in_progress(plan):
            return plan
    return _made(definition, folder, source_fingerprint, Known())


def _made(
    definition: Definition, folder: Folder, source_fingerprint: SourceFingerprint | None, found: Known
) -> Plan:
    said: dict[str, Fitted] = {}
    with found.used():
        if source_fingerprint is not None:
            source = source_fingerprint(definition.source)
        else:
            from rayddl.data.sources import registry

            source = registry.fingerprint(definition.source)
            definition, said = _fitted(definition)
    stages = {stage.name: stage for stage in definition.stages}
    not_run = graph.idle({name: stage.config for name, stage in stages.items()})
    order, _ = graph.order({name: stage.reads for name, stage in stages.items() if name not in not_run})
    prints: dict[str, str] = {}
    planned = []
    with found.used():
        for name in order:
            as_it_was = partial(fingerprint, stages, name, prints, source, definition)
            files = files_of(stages[name], stages, folder, as_it_was)
            prints[name] = fingerprint(stages, name, prints, source, definition, files)
            planned.append(_planned(stages, name, prints[name], folder, files))
    made = Plan(definition, folder, source, tuple(planned), found, said)
    if any(stage.state != "done" for stage in made.narrowed(()).chosen):
        _check_writable(folder)
    return made


def _fitted(definition: Definition) -> tuple[Definition, dict[str, Fitted]]:
    """Return ``definition`` with the settings that the number of its training images decides, and what they are."""
    # Counting may take a while.
    if fits(definition.stages):
        return definition, {}
    from rayddl.data.sources.summary import source_summary

    images = source_summary(definition.source).train
    stages, said = fitted(definition.stages, images), {}
    for before, after in zip(definition.stages, stages, strict=True):
        config = after.config
        changed = {
            name
            for name in type(config).model_fields
            if getattr(config, name) != getattr(before.config, name)
        }
        if changed:
            said[after.name] = Fitted(images, config.model_dump(mode="json", include=changed))
    return replace(definition, stages=stages), said


def fingerprint_of(plan: Plan, stage: Stage) -> str:
    """The fingerprint that ``stage`` would have in place of the plan's stage of the same name."""
    stages = {each.name: each for each in plan.definition.stages} | {stage.name: stage}
    done = {planned.name: planned.fingerprint for planned in plan.stages}
    files = next((planned.files for planned in plan.stages if planned.name == stage.name), {})
    return fingerprint(stages, stage.name, done, plan.source_fingerprint, plan.definition, files)


def files_changed(plan: Plan, planned: PlannedStage) -> bool:
    """True if files that ``planned`` reads and no stage has made are not what they were when the plan was made."""
    if not planned.files:
        return False
    stages = {stage.name: stage for stage in plan.definition.stages}
    now = outside.identities(configs_of(planned.stage, stages), again=True)
    return any(
        isinstance(found := now.get(where, ""), str) and found != identity
        for where, identity in planned.files.items()
    )


def _in_progress(plan: Plan) -> bool:
    """True if a stage of the plan was begun by a command that was interrupted or killed.

    One that failed does not count: its images may have been repaired since.
    """
    file = f"{plan.definition.name}{artifacts.RECORD}"
    try:
        stages = plan.out.read_document(file, documents.RunRecord, "")["stages"]
    except (OSError, ArtifactError):
        return False
    begun = {
        entry.get("fingerprint") for entry in stages.values() if entry["state"] in ("running", "interrupted")
    }
    return any(stage.fingerprint in begun and stage.state != "done" for stage in plan.stages)


def _planned(
    stages: Mapping[str, Stage], name: str, fingerprint: str, out: Folder, files: Mapping[str, str]
) -> PlannedStage:
    stage = stages[name]
    folder = out.child(f"{name}-{fingerprint[:SHOWN_DIGITS]}")
    state = artifacts.state(folder)
    artifact = artifacts.open_artifact(folder, fingerprint=fingerprint) if state == "done" else None
    return PlannedStage(stage, fingerprint, folder, state, artifact, files)


def _check_writable(out: Folder) -> None:
    """Refuse a local ``out`` that cannot be made or written; other places are tried when a run begins."""
    place = out.local
    while place is not None and not place.exists() and place != place.parent:
        place = place.parent
    if place is None or (place.is_dir() and os.access(place, os.W_OK | os.X_OK)):
        return
    why = f"{place} is not a folder" if not place.is_dir() else f"{place} may not be written"
    raise UserError(
        f"--out {scrub(str(out))!r} cannot be written: {why}; make it writable, or choose another with --out",
        code="out-not-writable",
    )


def _check_readable(out: Folder) -> None:
    try:
        out.folders()
    except (OSError, ValueError) as error:
        raise UserError(
            f"--out {scrub(str(out))!r} cannot be read: {scrub(str(error))}; "
            "give a folder, or a URI such as s3://bucket/runs",
            code="out-unreadable",
        ) from error
