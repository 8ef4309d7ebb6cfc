"""Runs a plan: skips finished stages and continues partial ones, several at the same time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn

from rayddl import interrupts
from rayddl.credentials import scrub
from rayddl.errors import StageError, UserError
from rayddl.pipeline import artifacts, cautions, reach
from rayddl.pipeline.artifacts import Artifact
from rayddl.pipeline.definition.load import Stage
from rayddl.pipeline.display.base import Display, Ending, Hidden
from rayddl.pipeline.fingerprints import plugins_of
from rayddl.pipeline.plan import Plan, PlannedStage, files_changed
from rayddl.pipeline.records import Heartbeat, Record
from rayddl.pipeline.results import RunResult
from rayddl.pipeline.reusable import reusable
from rayddl.pipeline.schedule import Schedule
from rayddl.pipeline.session import RaySession
from rayddl.pipeline.stage_errors import explained
from rayddl.pipeline.stopwatch import FILE, Stopwatch
from rayddl.stages.context import Context, Result
from rayddl.stages.kinds import Kind
from rayddl.stages.runtime import room

_NOTICE_SECONDS = 5.0
"""Time limit of an interrupt for another thread's write of the record."""
_importing = threading.Lock()
"""Held while a kind's modules are imported: threads that import the same modules in different orders may see parts."""


def execute(
    plan: Plan, display: Display | None = None, ray: RaySession | None = None, *, strict: bool = False
) -> RunResult:
    """Run ``plan`` and return its artifacts. With ``strict``, warnings about results that disappoint are errors.

    A failed stage does not stop stages that do not need it; then raises a :class:`RayddlError` that names the failed
    ones. ``KeyboardInterrupt`` ends all running stages, and is raised again after it is recorded. If every stage is
    finished, neither torch nor Ray is imported.
    """
    display = display or Hidden()
    run = _Run(plan, display, ray or RaySession(display), Record(plan), strict=strict)
    try:
        with interrupts.noticed(run.interrupted), plan.known.used():
            display.plan(plan)
            if plan.known.kept:
                display.note(
                    f"the source's files are those that this run began with, listed in {plan.known.kept}; remove that "
                    "to list them again"
                )
            run.ready()
            run.warn_first()
            run.write_first()
            run.require()
            run.stages()
    except KeyboardInterrupt:
        interrupts.react()
        run.interrupted()
        raise
    finally:
        # A closed terminal must not hide how the run ended.
        with suppress(OSError):
            display.close()
    record = plan.out.path(run.record.file)
    order = [planned.name for planned in plan.chosen]
    result = RunResult(
        plan,
        {name: run.finished[name] for name in order},
        {name: run.endings[name] for name in order},
        record,
        dict(run.warnings),
    )
    display.result(result.closing())
    return result


@dataclass
class _Run:
    """A run in progress."""

    plan: Plan
    display: Display
    ray: RaySession
    record: Record
    finished: dict[str, Artifact] = field(default_factory=dict)
    endings: dict[str, Literal["done", "cached"]] = field(default_factory=dict)
    warnings: dict[str, tuple[str, ...]] = field(default_factory=dict)
    recorded: bool = False
    """True once the record has been written; nothing starts before."""
    schedule: Schedule | None = None
    clock: Callable[[], float] = time.monotonic
    strict: bool = False
    _writing: threading.RLock = field(default_factory=threading.RLock)
    """Held while the record is changed and written."""

    def ready(self) -> None:
        """Raise :class:`UserError` for stages that cannot run in this environment."""
        left = [planned for planned in self.plan.chosen if planned.artifact is None]
        problems = [f"{p.name}: {text}" for p in left for text in p.stage.config.unready()]
        if problems:
            listed = "\n".join(f"  {text}" for text in problems)
            raise UserError(
                f"{self.plan.definition.name} cannot run here; nothing was started.\n{listed}",
                code="environment-not-ready",
            )

    def warn_first(self) -> None:
        """Show and record what the settings let expect. Raises :class:`UserError` if ``strict``."""
        found = cautions.before(self.plan)
        if self.strict:
            cautions.refuse_before(found)
        self.record.warnings |= {stage: list(texts) for stage, texts in found.items()}
        for line in cautions.lines(found):
            self.display.note(f"warning: {line}")

    def write_first(self) -> None:
        """Write the record before anything runs, which also checks that ``--out`` is writable."""
        for planned in self.plan.stages:
            if planned not in self.plan.chosen and planned.artifact is not None:
                self.record.note(planned.name, "cached", planned.artifact)
        if replaced := self.record.replaced():
            self.display.note(
                f"the record {self.record.file} was of a run with other settings, and becomes that of this one; the "
                f"earlier results stay in {', '.join(replaced)}; give --set name=NAME to record both"
            )
        try:
            with interrupts.held():
                self.record.write()
                self.recorded = True
                self.plan.known.keep(self.plan.out, self.plan.definition.source)
        except (OSError, ValueError) as error:
            if all(planned.artifact for planned in self.plan.chosen):
                self.display.note(f"the run's record could not be written: {scrub(str(error))}")
                return
            raise UserError(
                f"--out {scrub(str(self.plan.out))!r} cannot be written: {scrub(str(error))}; "
                "nothing was started; make it writable, or choose another with --out",
                code="out-not-writable",
            ) from error

    def require(self) -> None:
        """Check before anything runs that the cluster has the resources of all remaining stages."""
        left = [p for p in self.plan.chosen if p.artifact is None and p.stage.kind.needs_ray]
        if left:
            self.ray.reach(self._places())
            self.ray.require({planned.name: planned.stage.config.asks for planned in left})

    def _places(self) -> dict[str, str]:
        """Return the folders that workers of the stages that are left read and write, by the option that sets each."""
        left = [p for p in self.plan.chosen if p.artifact is None and p.name not in self.finished]
        return reach.places(self.plan, left)

    def stages(self) -> None:
        """Use the artifacts of finished stages, and run the others. Raises the error of failed ones."""
        for planned in self.plan.chosen:
            if planned.artifact is not None:
                self._reuse(planned, planned.artifact)
        left = [planned for planned in self.plan.chosen if planned.artifact is None]
        self.schedule = Schedule(left, self.finished, self._stage, self.ray.room(), self.display.note)
        self.schedule.go()
        failure = self.schedule.failure([planned.name for planned in self.plan.chosen])
        if failure is not None:
            for name, needs in self.schedule.missing().items():
                self.display.missing(name, needs)
            raise failure

    def _stage(self, planned: PlannedStage, lease: Any) -> None:
        """Run one stage in this thread, with ``lease`` of the cluster."""
        began = self.clock()
        try:
            with room.of_stage(lease), artifacts.locked(planned.folder):
                # Another command may have finished the stage since the plan was made.
                if artifacts.state(planned.folder) == "done":
                    found = artifacts.open_artifact(planned.folder, fingerprint=planned.fingerprint)
                    self._reuse(planned, found)
                    return
                planned.folder.sweep()
                planned.folder.delete(artifacts.ERROR)  # of an earlier attempt
                self._note(planned, "running")
                artifact = self._run(planned)
        except BaseException as error:
            self._failed(planned, error, self.clock() - began)
        self._finish(planned, artifact, "done")

    def interrupted(self) -> None:
        """Record the run as interrupted, at its running stages or else at its first unfinished one."""
        left = [planned for planned in self.plan.chosen if planned.name not in self.finished]
        running = self.schedule.running if self.schedule else []
        if self.recorded and self._writing.acquire(timeout=_NOTICE_SECONDS):
            try:
                for planned in [p for p in left if p.name in running] or left[:1]:
                    self._note(planned, "interrupted")
            finally:
                self._writing.release()

    def _run(self, planned: PlannedStage) -> Artifact:
        if planned.stage.kind.needs_ray:
            self.ray.reach(self._places())
        watch = Stopwatch(planned.folder, self.clock)
        progress = Heartbeat(
            self.display.begin(planned.name), lambda beat: self._observe(planned, beat, watch)
        )
        context = Context(
            stage=planned.name,
            source=self.plan.definition.source,
            seed=self.plan.definition.seed,
            out=planned.folder,
            inputs={read: self.finished[read].as_input(self._spent(read)) for read in planned.stage.reads},
            definition=scrub(self.plan.definition.to_json()),
            progress=progress,
            templates={
                s.name: s.config for s in self.plan.definition.stages if s.name in planned.stage.templates
            },
            reusable=reusable(self.plan, planned),
        )
        with _importing:
            run = planned.stage.kind.run
        with watch:
            result = run(planned.stage.config, context)
            self._refuse_changed(planned)
        with interrupts.held():
            manifest = self._manifest(planned, result, watch)
            return artifacts.seal(planned.folder, manifest, (*result.leftovers, FILE))

    def _refuse_changed(self, planned: PlannedStage) -> None:
        """Raise :class:`StageError` if files that no stage has made have changed since the plan: which the stage has
        read is not known.
        """
        if files_changed(self.plan, planned):
            raise StageError(
                f"the files that {planned.name} reads have changed since this command began. Run it again when they "
                "are complete.",
                code="files-changed",
            )

    def _spent(self, name: str) -> dict[str, float]:
        """Return the seconds of the finished stage ``name`` and of all stages that it depends on, by stage.

        Empty, for unknown, if the folder of one of these was deleted and is not yet made again.
        """
        reads = {planned.name: planned.stage.reads for planned in self.plan.stages}
        found: dict[str, float] = {}
        waiting = [name]
        while waiting:
            stage = waiting.pop()
            if stage not in self.finished:
                return {}
            if stage not in found:
                found[stage] = self.finished[stage].seconds
                waiting += reads[stage]
        return dict(sorted(found.items()))

    def _manifest(self, planned: PlannedStage, result: Result, watch: Stopwatch) -> dict[str, Any]:
        stage, summary = planned.stage, dict(result.summary)
        if "seconds" in summary:  # of this attempt
            summary["seconds"] += watch.before
        inputs = {read: self.finished[read] for read in stage.reads}
        return {
            "stage": planned.name,
            "kind": stage.kind.name,
            "kind_version": stage.kind.version,
            "fingerprint": planned.fingerprint,
            "config": stage.config.model_dump(mode="json"),
            "inputs": {
                read: {"kind": found.kind, "fingerprint": found.fingerprint} for read, found in inputs.items()
            },
            "source": {
                "config": self.plan.definition.source.model_dump(mode="json"),
                "fingerprint": self.plan.source_fingerprint,
            },
            "seed": self.plan.definition.seed,
            **self._plugins(stage),
            **({"read_files": dict(planned.files)} if planned.files else {}),
            "summary": summary,
            "table": [dict(row) for row in result.table],
            **(
                {"more": {k: [dict(row) for row in rows] for k, rows in result.more.items()}}
                if result.more
                else {}
            ),
            "seconds": round(watch.seconds + result.earlier, 3),
        }

    def _plugins(self, stage: Stage) -> dict[str, Any]:
        """Return the manifest's entry for the plugins of a stage; empty if it uses none."""
        used = plugins_of(stage, {each.name: each for each in self.plan.definition.stages})
        return {"plugins": used} if used else {}

    def _reuse(self, planned: PlannedStage, artifact: Artifact) -> None:
        self._finish(planned, artifact, "cached")

    def _finish(self, planned: PlannedStage, artifact: Artifact, ending: Literal["done", "cached"]) -> None:
        """Record and show a finished stage with its warnings. Raises :class:`StageError` for these if ``strict``."""
        kind = planned.stage.kind
        self.endings[planned.name] = ending
        with self._writing:
            found = {planned.name: kind.cautions_after(artifact.summary)}
            for name, texts in self._beside(kind, {**self.finished, planned.name: artifact}).items():
                found[name] = (*found.get(name, ()), *texts)
            for name, texts in found.items():
                if texts:
                    self.warnings[name] = (*self.warnings.get(name, ()), *texts)
                    self.record.warnings[name] = [*self.record.warnings.get(name, ()), *texts]
            refused = self.strict and any(found.values())
            if not refused:
                # Stages that read this one may start.
                self.finished[planned.name] = artifact
        self._note(planned, ending, artifact)
        self._end(planned, ending, artifact.seconds, artifact)
        for line in cautions.lines(found):
            self.display.note(f"warning: {line}")
        if refused:
            name, texts = next((name, texts) for name, texts in found.items() if texts)
            cautions.refuse_after(name, texts)

    def _beside(self, kind: Kind, done: Mapping[str, Artifact]) -> dict[str, tuple[str, ...]]:
        """The warnings, by stage, that follow only from all stages of ``kind``; none before these are ``done``."""
        names = [each.name for each in self.plan.chosen if each.stage.kind.name == kind.name]
        if any(name not in done for name in names):
            return {}
        found = {}
        for name in names:
            others = [done[other].summary for other in names if other != name]
            known = self.warnings.get(name, ())
            texts = kind.cautions_beside(done[name].summary, others)
            found[name] = tuple(text for text in texts if text not in known)
        return found

    def _failed(self, planned: PlannedStage, error: BaseException, seconds: float) -> NoReturn:
        """Show and record how the stage ended, and raise the error for the caller."""
        if not isinstance(error, Exception):
            interrupts.react()
            self._note(planned, "interrupted")
            with suppress(OSError, ValueError):
                self._end(planned, "interrupted", seconds, None)
            raise error
        explanation = explained(planned, error)
        self._note(planned, "failed", error=str(explanation))
        self._end(planned, "failed", seconds, None)
        raise explanation from error

    def _note(
        self,
        planned: PlannedStage,
        outcome: Ending | Literal["running"],
        artifact: Artifact | None = None,
        error: str = "",
    ) -> None:
        # Only the stages' manifests decide what is finished, so an outdated record does no harm.
        with interrupts.held(), self._writing, suppress(OSError):
            self.record.note(planned.name, outcome, artifact, error)
            self.record.write()

    def _observe(self, planned: PlannedStage, progress: Mapping[str, Any], watch: Stopwatch) -> None:
        self.ray.observe(self.plan.definition.name, planned.name, progress)
        watch.keep()
        with interrupts.held(), self._writing, suppress(OSError):
            self.record.note_progress(planned.name, progress)
            self.record.write()

    def _end(self, planned: PlannedStage, ending: Ending, seconds: float, artifact: Artifact | None) -> None:
        summary: Mapping[str, Any] = artifact.summary if artifact else {}
        details = {"folder": scrub(str(planned.folder)), "summary": dict(summary)}
        self.display.end(planned.name, ending, seconds, details)
