"""Trials of ``kind: rded``: each selects a set, judged by short students of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from statistics import fmean

from rayddl.data.distilled import DistilledSet
from rayddl.methods.training.soft import published_lr
from rayddl.stages.context import Context
from rayddl.stages.evaluate import protocol as lessons
from rayddl.stages.evaluate import soft_labels
from rayddl.stages.evaluate import worker as students
from rayddl.stages.evaluate.settings import EvaluateConfig
from rayddl.stages.rded.settings import RdedConfig
from rayddl.stages.rded.stage import select_inline
from rayddl.stages.runtime import devices
from rayddl.stages.runtime.sources import publish_held_out
from rayddl.stages.settings import StageConfig
from rayddl.stages.tune.settings import TuneConfig
from rayddl.stages.tune.stages import StageTrials
from rayddl.stages.tune.store import MADE
from rayddl.stages.tune.trial import HELD_OUT, Ticket
from rayddl.storage import Folder


def trials(
    config: TuneConfig, templates: Mapping[str, StageConfig], context: Context, out: Folder
) -> RdedTrials:
    """What makes the trials of a search over an rded stage."""
    del out
    # Students of selected crops are but tested on the source.
    return RdedTrials(config, templates, context, publish_held_out(context.source))


class RdedTrials(StageTrials):
    """Makes trials of an rded stage."""

    def run(self, ticket: Ticket) -> float:
        """Select and stitch the images; the mean accuracy of short students of them."""
        context = replace(self.context, out=ticket.folder.child(MADE))
        config = self.template(ticket)
        devices.enter(ticket.threads, config.precision, f"trial {ticket.number}")
        select_inline(config, context)
        return fmean(
            self._student(ticket, "short", s, ticket.folder) for s in range(self.config.students.seeds)
        )

    def held_out(self, ticket: Ticket, seed: int) -> float:
        """A fresh student of the set that the trial made."""
        return self._student(ticket, HELD_OUT, seed, ticket.folder.child(f"held-out-{seed}"))

    def template(self, ticket: Ticket) -> RdedConfig:
        """The template with the trial's settings."""
        config = super().template(ticket)
        assert isinstance(config, RdedConfig)
        return config

    def _student(self, ticket: Ticket, lesson: str, seed: int, folder: Folder) -> float:
        import ray

        made = DistilledSet.load(ticket.folder.child(MADE).child("set"))
        asked, template = self.config.students, self.template(ticket)
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
