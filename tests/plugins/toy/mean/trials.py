"""Trials of ``kind: mean``: each makes a set, judged by short students of it."""

from statistics import fmean

from rayddl.data.distilled import DistilledSet
from rayddl.stages.evaluate import distribution, protocol
from rayddl.stages.evaluate.settings import EvaluateConfig
from rayddl.stages.runtime.sources import publish
from rayddl.stages.tune.stages import StageTrials
from rayddl.stages.tune.store import MADE
from rayddl.stages.tune.trial import HELD_OUT
from toy.mean import stage


def trials(config, templates, context, out):
    """What makes the trials of a search over a mean stage."""
    del out
    return MeanTrials(config, templates, context, publish(context.source))


class MeanTrials(StageTrials):
    """Makes trials of a mean stage."""

    def run(self, task):
        stage.run(self.template(task), self.here(task, task.folder.child(MADE)))
        return self._judged(task, task.folder, "short", range(self.config.students.seeds))

    def held_out(self, task, seed):
        return fmean(self._judged(task, task.folder.child(f"held-out-{seed}"), HELD_OUT, (seed,)))

    def _judged(self, task, folder, name, seeds):
        made, asked = DistilledSet.load(task.folder.child(MADE).child("set")), self.config.students
        config = EvaluateConfig(
            kind="evaluate",
            set=self.config.of,
            epochs=asked.epochs,
            seeds=len(seeds),
            random=False,
            compile=False,
        )
        context = self.here(task, folder)
        config = protocol.settled(config, made, self.source, None)
        evaluation = protocol.EvaluateTask(
            config,
            made,
            self.source,
            None,
            context.seed_of(),
            backend=context.backend,
            name=name,
            seeds=seeds,
        )
        return [
            float(result["accuracy"]) for result in distribution.judge(evaluation, folder, context.progress)
        ]
