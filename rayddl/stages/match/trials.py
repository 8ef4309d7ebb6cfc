"""Trials of ``kind: match``: the stage's loop in slices, evaluated by the stage's short evaluations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from rayddl.data.distilled import DistilledSet
from rayddl.errors import DivergedError
from rayddl.nets.config import NetConfig
from rayddl.stages.context import Context, Input
from rayddl.stages.evaluate import worker as students
from rayddl.stages.evaluate.student_data import Student
from rayddl.stages.experts.artifact import refuse_other_experts
from rayddl.stages.experts.cache import experts_for
from rayddl.stages.experts.settings import ExpertsConfig
from rayddl.stages.match import short_evaluations
from rayddl.stages.match import stage as match
from rayddl.stages.match import worker as matcher
from rayddl.stages.match.settings import MatchConfig
from rayddl.stages.runtime import cluster, in_process
from rayddl.stages.runtime.in_process import InProcess
from rayddl.stages.runtime.sources import SharedSource, adopt, publish
from rayddl.stages.settings import StageConfig
from rayddl.stages.tune.settings import TuneConfig, configured
from rayddl.stages.tune.space import Settings
from rayddl.stages.tune.store import MADE
from rayddl.stages.tune.trial import HELD_OUT, TrialTask, over_seeds
from rayddl.storage import Folder

EXPERTS = "work/experts"
"""The folder of the experts that trials have trained."""


def trials(
    config: TuneConfig, templates: Mapping[str, StageConfig], context: Context, out: Folder
) -> MatchTrials:
    """The factory of the trials of a search over a match stage; ``out`` is the search's folder."""
    source, template = publish(context.source), templates[config.of]
    assert isinstance(template, MatchConfig)
    # Experts whose settings are searched too are no input: trials train them.
    experts = context.inputs.get(template.experts)
    if experts is not None:
        refuse_other_experts(experts, source, context.source.name)
    return MatchTrials(config, templates, context, source, out)


@dataclass(frozen=True)
class MatchTrials:
    """Makes trials of a match stage. Sent to every worker."""

    config: TuneConfig
    templates: Mapping[str, StageConfig]
    context: Context
    """The template's context: its name and the run's seed determine a trial's random numbers."""
    source: SharedSource
    out: Folder

    def __call__(self, task: TrialTask) -> MatchTrial:
        """A trial that has not started."""
        return MatchTrial(*self._job(task))

    def held_out(self, task: TrialTask, seed: int) -> float:
        """The accuracy of a student with a seed that the search did not use, on the trial's set."""
        job, _ = self._job(task)
        made = DistilledSet.load(task.folder.child(MADE).child("set"))
        job = replace(job, out=task.folder.child("held-out"))
        kept = (made.images, made.labels, made.lr_student)
        return accuracy_of(job, kept, HELD_OUT, seed, "held-out")

    def pinned(self, settings: Settings, iteration: int) -> Mapping[str, Any]:
        """The setting ``compile`` as the trial resolved it: a shorter run might resolve it differently."""
        found = configured(self.config, self.templates, settings)
        config = found[self.config.of]
        assert isinstance(config, MatchConfig)
        if config.compile is not None or iteration == config.iterations:
            return {}
        experts = found.get(config.experts)
        net = experts.net if isinstance(experts, ExpertsConfig) else self._net(config)
        labels, _ = match.started(config, self.source, self.context.seed_of())
        return {"compile": match.compiled(config, net, self.source, len(labels))}

    def _net(self, config: MatchConfig) -> NetConfig:
        return NetConfig.model_validate(self.context.inputs[config.experts].summary["net"])

    def _job(self, task: TrialTask) -> tuple[matcher.MatchTask, Context]:
        found = configured(self.config, self.templates, task.settings)
        config = found[self.config.of]
        assert isinstance(config, MatchConfig)
        adopt(self.context.source, self.source)
        inputs = {**self.context.inputs, config.experts: self._experts(found, config.experts, task)}
        context = replace(self.context, out=task.folder, inputs=inputs, backend=InProcess(task.threads))
        job, _ = match.prepared(config, context)
        return replace(job, name=f"trial {task.number}"), context

    def _experts(self, found: Mapping[str, StageConfig], stage: str, task: TrialTask) -> Input:
        config = found.get(stage)
        if config is None:
            return self.context.inputs[stage]
        assert isinstance(config, ExpertsConfig)
        context = replace(self.context, stage=stage)
        return experts_for(config, context, self.out.child(EXPERTS), task.threads)


class MatchTrial:
    """A matching run that stops at given iterations and evaluates its set there."""

    def __init__(self, job: matcher.MatchTask, context: Context) -> None:
        self._job, self._context = job, context
        self._worker = matcher.MatchWorker(cluster.packed(job), [])

    def reach(self, until: int) -> Mapping[str, float]:
        """Match up to iteration ``until``, and return the metrics of the set at that iteration."""
        where = self._worker.advance(until, float("inf"))
        if where.diverged is not None:
            raise DivergedError(where.diverged, code="matching-diverged")
        kept, seeds = self._worker.standing(), range(self._job.config.evaluate_seeds)
        accuracies = [accuracy_of(self._job, kept, "short", seed, f"student-{until:06d}") for seed in seeds]
        losses = self._worker.rows(until)["loss"][-match.FIRST_AND_LAST :]
        return {**over_seeds(accuracies), "loss": fmean(losses), "lr_student": where.lr}

    def save(self) -> bytes:
        """The complete state of the run: the current state, the last good state, and the rows."""
        return self._worker.state()

    def load(self, data: bytes) -> None:
        """Continue from ``data``, or from a checkpoint of the same run at a later iteration."""
        self._worker.restore(data)

    def leave(self) -> None:
        """Write the current set."""
        job, where = self._job, self._worker.advance(0, 0.0)
        made = match.made_of(self._worker.standing(), job.config, self._context, job, where.iteration)
        made.save(job.out.child(MADE).child("set"))


def accuracy_of(job: matcher.MatchTask, kept: matcher.Snapshot, name: str, seed: int, file: str) -> float:
    """The accuracy of one student, trained as in a match stage's short evaluations."""
    student = Student(name, job.net, seed, f"{file}-{seed}.json")
    data = short_evaluations.training_data_of(job, kept, name)
    result = in_process.done((students.train_one, short_evaluations.shared_by(job), data, student))
    return float(result["accuracy"])
