"""Trials of stages that report once, at their end: ``rded`` and ``teacher``, run whole in the trial's process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from rayddl.data.distilled import DistilledSet
from rayddl.methods.training.soft import published_lr
from rayddl.seeds import derive
from rayddl.stages.context import Context
from rayddl.stages.evaluate import protocol as lessons
from rayddl.stages.evaluate import soft_labels
from rayddl.stages.evaluate import worker as students
from rayddl.stages.evaluate.settings import EvaluateConfig
from rayddl.stages.rded.settings import RdedConfig
from rayddl.stages.runtime import devices
from rayddl.stages.runtime.sources import SharedSource
from rayddl.stages.settings import StageConfig
from rayddl.stages.teacher.settings import TeacherConfig
from rayddl.stages.tune.settings import TuneConfig, configured
from rayddl.stages.tune.space import Settings
from rayddl.stages.tune.store import MADE
from rayddl.stages.tune.trial import HELD_OUT, Ticket
from rayddl.storage import Folder


@dataclass(frozen=True)
class StageTrials:
    """Makes trials of a stage of either kind. Sent to every worker."""

    config: TuneConfig
    templates: Mapping[str, StageConfig]
    context: Context
    """The template's, as if it ran by itself."""
    source: SharedSource

    def __call__(self, ticket: Ticket) -> StageTrial:
        """The trial, which does nothing before it is asked to."""
        return StageTrial(self, ticket)

    def held_out(self, ticket: Ticket, seed: int) -> float:
        """For a set, a fresh student; for a teacher, the same training with another seed."""
        folder = ticket.folder.child(f"held-out-{seed}")
        if isinstance(self.template(ticket), TeacherConfig):
            fresh = replace(self.context, out=folder, seed=derive(self.context.seed, HELD_OUT, seed))
            return self._teacher(ticket, fresh)
        return self._student(ticket, HELD_OUT, seed, folder)

    def pinned(self, settings: Settings, iteration: int) -> Mapping[str, Any]:
        """Nothing: these stages have no length."""
        del settings, iteration
        return {}

    def template(self, ticket: Ticket) -> StageConfig:
        """The template with the trial's settings."""
        return configured(self.config, self.templates, ticket.settings)[self.config.of]

    def run(self, ticket: Ticket) -> float:
        """Run the stage into ``made`` in the trial's folder; how good what it made is, 0..1."""
        context = replace(self.context, out=ticket.folder.child(MADE))
        config = self.template(ticket)
        devices.enter(ticket.threads, getattr(config, "precision", "fp32"), f"trial {ticket.number}")
        if isinstance(config, TeacherConfig):
            return self._teacher(ticket, context)
        assert isinstance(config, RdedConfig)
        from rayddl.stages.rded.stage import select_inline

        select_inline(config, context)
        return fmean(
            self._student(ticket, "short", s, ticket.folder) for s in range(self.config.students.seeds)
        )

    def _teacher(self, ticket: Ticket, context: Context) -> float:
        from rayddl.stages.teacher.stage import run_inline

        config = self.template(ticket)
        assert isinstance(config, TeacherConfig)
        device = devices.enter(ticket.threads, config.precision, f"trial {ticket.number}")
        return float(run_inline(config, context, self.source, device).summary["accuracy"])

    def _student(self, ticket: Ticket, lesson: str, seed: int, folder: Folder) -> float:
        import ray

        made = DistilledSet.load(ticket.folder.child(MADE).child("set"))
        asked, template = self.config.students, self.template(ticket)
        assert isinstance(template, RdedConfig)
        nets = None if asked.net is None else (asked.net,)
        config = EvaluateConfig(
            kind="evaluate", set=self.config.of, observer=template.teacher, nets=nets, epochs=asked.epochs,
            seeds=asked.seeds, random=False, compile=False,
        )  # fmt: skip
        teaching = soft_labels.of_stage(config, made, replace(self.context, out=folder))
        assert teaching is not None
        task = lessons.Task(
            lessons.settled(config, made, self.source, teaching),
            made,
            self.source,
            teaching,
            self.context.seed_of(),
        )
        told, _ = lessons.lessons_of(task)[0]
        net, observer = task.nets[0], ray.put(teaching.observer)
        shared = students.Class(
            self.source, ray.put(made.space), folder, task.seed, config.precision, False, ticket.threads,
            teaching.frame, observer,
        )  # fmt: skip
        pupil = students.Student(lesson, net, seed, f"student-{seed}.json", published_lr(net.name))
        return float(students.teach(shared, told, pupil)["accuracy"])


class StageTrial:
    """One run of the stage."""

    def __init__(self, trials: StageTrials, ticket: Ticket) -> None:
        self._trials, self._ticket = trials, ticket

    def reach(self, until: int) -> Mapping[str, float]:
        """Run it; what an earlier attempt left in the trial's folder is taken up by the stage itself."""
        del until
        return {"accuracy": self._trials.run(self._ticket)}

    def save(self) -> bytes:
        """Nothing: the stage's files are its state."""
        return b""

    def load(self, data: bytes) -> None:
        """Nothing: see :meth:`save`."""
        del data

    def leave(self) -> None:
        """Nothing: the stage has left it already."""
