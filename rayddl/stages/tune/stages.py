"""Trials of stages that report once, at their end: ``rded`` and ``teacher``, run whole in the trial's process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from rayddl.data.distilled import DistilledSet
from rayddl.seeds import derive
from rayddl.stages.context import Context
from rayddl.stages.evaluate import protocol, soft_labels
from rayddl.stages.evaluate.settings import EvaluateConfig
from rayddl.stages.rded import stage as rded
from rayddl.stages.rded.settings import RdedConfig
from rayddl.stages.runtime.in_process import InProcess
from rayddl.stages.runtime.sources import SharedSource, adopt
from rayddl.stages.settings import StageConfig
from rayddl.stages.teacher import stage as teacher
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
        config = self.template(ticket)
        if isinstance(config, TeacherConfig):
            fresh = self._here(ticket, folder)
            fresh = replace(fresh, seed=derive(self.context.seed, HELD_OUT, seed))
            return float(teacher.run(config, fresh).summary["accuracy"])
        return fmean(self._judged(ticket, folder, HELD_OUT, (seed,)))

    def pinned(self, settings: Settings, iteration: int) -> Mapping[str, Any]:
        """Nothing: these stages have no length."""
        del settings, iteration
        return {}

    def template(self, ticket: Ticket) -> StageConfig:
        """The template with the trial's settings."""
        return configured(self.config, self.templates, ticket.settings)[self.config.of]

    def run(self, ticket: Ticket) -> float:
        """Run the stage into ``made`` in the trial's folder; how good what it made is, 0..1."""
        context, config = self._here(ticket, ticket.folder.child(MADE)), self.template(ticket)
        if isinstance(config, TeacherConfig):
            return float(teacher.run(config, context).summary["accuracy"])
        assert isinstance(config, RdedConfig)
        rded.run(config, context)
        return fmean(self._judged(ticket, ticket.folder, "short", range(self.config.students.seeds)))

    def _here(self, ticket: Ticket, out: Folder) -> Context:
        """The template's context in this process."""
        adopt(self.context.source, self.source)
        return replace(self.context, out=out, backend=InProcess(ticket.threads))

    def _judged(self, ticket: Ticket, folder: Folder, name: str, seeds: Sequence[int]) -> list[float]:
        """The accuracies of students of the set that the trial made."""
        made = DistilledSet.load(ticket.folder.child(MADE).child("set"))
        asked, template = self.config.students, self.template(ticket)
        assert isinstance(template, RdedConfig)
        nets = None if asked.net is None else (asked.net,)
        config = EvaluateConfig(
            kind="evaluate", set=self.config.of, observer=template.teacher, nets=nets, epochs=asked.epochs,
            seeds=len(seeds), random=False, compile=False,
        )  # fmt: skip
        context = self._here(ticket, folder)
        teaching = soft_labels.of_stage(config, made, context)
        config = protocol.settled(config, made, self.source, teaching)
        task = protocol.Task(
            config,
            made,
            self.source,
            teaching,
            context.seed_of(),
            backend=context.backend,
            name=name,
            seeds=seeds,
        )
        return [float(result["accuracy"]) for result in protocol.judge(task, folder, context.progress)]


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
