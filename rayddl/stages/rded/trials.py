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
from rayddl.stages.runtime.sources import listed_too, publish_held_out
from rayddl.stages.settings import StageConfig
from rayddl.stages.tune.settings import TuneConfig
from rayddl.stages.tune.stages import StageTrials
from rayddl.stages.tune.store import MADE
from rayddl.stages.tune.trial import HELD_OUT, TrialTask
from rayddl.storage import Folder


def trials(
    config: TuneConfig, templates: Mapping[str, StageConfig], context: Context, out: Folder
) -> RdedTrials:
    """The factory of the trials of a search over an rded stage."""
    del out
    # Students of selected crops need only the held-out split.
    source = listed_too(context.source, publish_held_out(context.source))
    return RdedTrials(config, templates, context, source)


class RdedTrials(StageTrials):
    """Makes trials of an rded stage."""

    def run(self, task: TrialTask) -> Sequence[float]:
        """Select and stitch the images, and return the accuracies of short student trainings."""
        rded.run(self.template(task), self.here(task, task.folder.child(MADE)))
        return self._judged(task, task.folder, "short", range(self.config.students.seeds))

    def held_out(self, task: TrialTask, seed: int) -> float:
        """The accuracy of a student of the trial's set with seed ``seed``."""
        return fmean(self._judged(task, task.folder.child(f"held-out-{seed}"), HELD_OUT, (seed,)))

    def template(self, task: TrialTask) -> RdedConfig:
        """The template with the trial's settings."""
        config = super().template(task)
        assert isinstance(config, RdedConfig)
        return config

    def _judged(self, task: TrialTask, folder: Folder, name: str, seeds: Sequence[int]) -> list[float]:
        """The accuracies of students of the trial's set, one per seed."""
        made = DistilledSet.load(task.folder.child(MADE).child("set"))
        asked = self.config.students
        nets = None if asked.net is None else (asked.net,)
        config = EvaluateConfig(
            kind="evaluate", set=self.config.of, observer=self.template(task).teacher, nets=nets,
            epochs=asked.epochs, seeds=len(seeds), random=False, own_labels=False, compile=False,
        )  # fmt: skip
        context = self.here(task, folder)
        label_source = soft_labels.of_stage(config, made, context)
        config = protocol.settled(config, made, self.source, label_source)
        evaluation = protocol.EvaluateTask(
            config,
            made,
            self.source,
            label_source,
            context.seed_of(),
            backend=context.backend,
            name=name,
            seeds=seeds,
        )
        return [
            float(result["accuracy"]) for result in distribution.judge(evaluation, folder, context.progress)
        ]
