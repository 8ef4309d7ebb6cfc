"""Trials of ``kind: rded``: each selects a set, and evaluates it with short student trainings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from rayddl.data.distilled import DistilledSet
from rayddl.stages.context import Context
from rayddl.stages.evaluate import distribution, protocol, soft_labels
from rayddl.stages.evaluate.settings import EvaluateConfig
from rayddl.stages.rded import stage as rded
from rayddl.stages.rded.settings import RdedConfig
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
    """The factory of the trials of a search over an rded stage."""
    del out
    # Students of selected crops need only the held-out split.
    return RdedTrials(config, templates, context, publish_held_out(context.source))


class RdedTrials(StageTrials):
    """Makes trials of an rded stage."""

    def run(self, ticket: Ticket) -> Sequence[float]:
        """Select and stitch the images, and return the accuracies of short student trainings."""
        rded.run(self.template(ticket), self.here(ticket, ticket.folder.child(MADE)))
        return self._judged(ticket, ticket.folder, "short", range(self.config.students.seeds))

    def held_out(self, ticket: Ticket, seed: int) -> float:
        """The accuracy of a student of the trial's set with seed ``seed``."""
        return fmean(self._judged(ticket, ticket.folder.child(f"held-out-{seed}"), HELD_OUT, (seed,)))

    def template(self, ticket: Ticket) -> RdedConfig:
        """The template with the trial's settings."""
        config = super().template(ticket)
        assert isinstance(config, RdedConfig)
        return config

    def _judged(self, ticket: Ticket, folder: Folder, name: str, seeds: Sequence[int]) -> list[float]:
        """The accuracies of students of the trial's set, one per seed."""
        made = DistilledSet.load(ticket.folder.child(MADE).child("set"))
        asked = self.config.students
        nets = None if asked.net is None else (asked.net,)
        config = EvaluateConfig(
            kind="evaluate", set=self.config.of, observer=self.template(ticket).teacher, nets=nets,
            epochs=asked.epochs, seeds=len(seeds), random=False, own_labels=False, compile=False,
        )  # fmt: skip
        context = self.here(ticket, folder)
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
        return [float(result["accuracy"]) for result in distribution.judge(task, folder, context.progress)]
