"""Trials of ``kind: teacher``: each trains an observer and reports its accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from rayddl.seeds import derive
from rayddl.stages.context import Context
from rayddl.stages.runtime.sources import publish
from rayddl.stages.settings import StageConfig
from rayddl.stages.teacher import stage as teacher
from rayddl.stages.teacher.settings import TeacherConfig
from rayddl.stages.tune.settings import TuneConfig
from rayddl.stages.tune.stages import StageTrials
from rayddl.stages.tune.store import MADE
from rayddl.stages.tune.trial import HELD_OUT, TrialTask
from rayddl.storage import Folder


def trials(
    config: TuneConfig, templates: Mapping[str, StageConfig], context: Context, out: Folder
) -> TeacherTrials:
    """The factory of the trials of a search over a teacher stage."""
    del out
    return TeacherTrials(config, templates, context, publish(context.source))


class TeacherTrials(StageTrials):
    """Makes trials of a teacher stage."""

    def run(self, task: TrialTask) -> Sequence[float]:
        """Train the observer, and return its accuracy."""
        return (self._trained(task, self.here(task, task.folder.child(MADE))),)

    def held_out(self, task: TrialTask, seed: int) -> float:
        """The accuracy of the same training with seed ``seed``."""
        context = self.here(task, task.folder.child(f"held-out-{seed}"))
        return self._trained(task, replace(context, seed=derive(self.context.seed, HELD_OUT, seed)))

    def _trained(self, task: TrialTask, context: Context) -> float:
        config = self.template(task)
        assert isinstance(config, TeacherConfig)
        return float(teacher.run(config, context).summary["accuracy"])
