"""Trials of ``kind: match``: the stage's own loop in slices, judged by the stage's own short evaluations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any

import torch
from safetensors.torch import load, save

from rayddl.data.config import augmentation_names
from rayddl.data.distilled import DistilledSet
from rayddl.errors import DivergedError
from rayddl.methods.matching.loop import Loop
from rayddl.methods.matching.state import State, load_state
from rayddl.methods.training.hard import Protocol
from rayddl.nets.config import NetConfig
from rayddl.seeds import derive
from rayddl.stages.context import Context, Input
from rayddl.stages.evaluate import worker as students
from rayddl.stages.experts.artifact import refuse_other_experts
from rayddl.stages.experts.cache import experts_for
from rayddl.stages.experts.settings import ExpertsConfig
from rayddl.stages.match import stage as match
from rayddl.stages.match import worker as matcher
from rayddl.stages.match.settings import MatchConfig
from rayddl.stages.runtime import cluster, devices
from rayddl.stages.runtime.sources import SharedSource, publish, read_space
from rayddl.stages.settings import StageConfig
from rayddl.stages.tune.settings import TuneConfig, configured
from rayddl.stages.tune.space import Settings
from rayddl.stages.tune.store import MADE
from rayddl.stages.tune.trial import HELD_OUT, Ticket
from rayddl.storage import Folder

SHELF = "work/experts"
"""Where experts lie that trials have trained."""


def trials(
    config: TuneConfig, templates: Mapping[str, StageConfig], context: Context, out: Folder
) -> MatchTrials:
    """What makes the trials of a search over a match stage; ``out`` is the search's folder."""
    import ray

    source, template = publish(context.source), templates[config.of]
    assert isinstance(template, MatchConfig)
    # Experts that are varied with the template are no input: trials train them.
    experts, space = context.inputs.get(template.experts), None
    if experts is not None:
        refuse_other_experts(experts, source, context.source.name)
        space = ray.put(read_space(experts.folder, source))
    return MatchTrials(config, templates, context, source, space, out)


@dataclass(frozen=True)
class MatchTrials:
    """Makes trials of a match stage. Sent to every worker."""

    config: TuneConfig
    templates: Mapping[str, StageConfig]
    context: Context
    """The template's, as if it ran by itself: its name and the run's seed decide a trial's randomness."""
    source: SharedSource
    space: Any
    """The reference of the pixel space that the experts were trained in; ``None`` where trials train them."""
    out: Folder

    def __call__(self, ticket: Ticket) -> MatchTrial:
        """The trial, which does nothing before it is asked to."""
        return MatchTrial(self._job(ticket), self.context, ticket.folder)

    def held_out(self, ticket: Ticket, seed: int) -> float:
        """The accuracy of a student with a seed that the search never saw, on what the trial made."""
        job = self._job(ticket)
        made = DistilledSet.load(ticket.folder.child(MADE).child("set"))
        folder = ticket.folder.child("held-out")
        return taught(job, made.images, made.labels, made.lr_student, folder, HELD_OUT, seed, "held-out")

    def pinned(self, settings: Settings, iteration: int) -> Mapping[str, Any]:
        """Whether the steps were compiled, which a shorter run might decide otherwise."""
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

    def _job(self, ticket: Ticket) -> matcher.Job:
        found = configured(self.config, self.templates, ticket.settings)
        config = found[self.config.of]
        assert isinstance(config, MatchConfig)
        experts = self._experts(found, config.experts, ticket)
        refuse_other_experts(experts, self.source, self.context.source.name)
        seed, net = self.context.seed_of(), NetConfig.model_validate(experts.summary["net"])
        labels, picked = match.started(config, self.source, seed)
        job = matcher.Job(
            config,
            net,
            self.source,
            self._space(experts),
            experts.folder,
            int(experts.summary["count"]),
            ticket.folder,
            seed,
            labels,
            picked,
            match.compiled(config, net, self.source, len(labels)),
            ticket.threads,
            name=f"trial {ticket.number}",
        )
        return match.from_set(job, config, self.context.inputs)

    def _experts(self, found: Mapping[str, StageConfig], stage: str, ticket: Ticket) -> Input:
        config = found.get(stage)
        if config is None:
            return self.context.inputs[stage]
        assert isinstance(config, ExpertsConfig)
        seed = derive(self.context.seed, stage)
        devices.enter(ticket.threads, config.precision, f"trial {ticket.number}")
        return experts_for(stage, config, self.source, seed, self.out.child(SHELF), ticket.threads)

    def _space(self, experts: Input) -> Any:
        import ray

        return self.space if self.space is not None else ray.put(read_space(experts.folder, self.source))


class MatchTrial(matcher.MatchWorker):
    """A matching run that stops where it is told, says how good its set is there, and can be copied."""

    def __init__(self, job: matcher.Job, context: Context, folder: Folder) -> None:
        super().__init__(cluster.packed(job), [])
        self._context, self._folder = context, folder
        self._given: bytes | None = None

    def reach(self, until: int) -> Mapping[str, float]:
        """Match up to iteration ``until`` and judge the set there."""
        where = self.advance(until, float("inf"))
        if where.diverged is not None:
            raise DivergedError(where.diverged)
        accuracies = [self._accuracy(seed, until) for seed in range(self._job.config.evaluate_seeds)]
        losses = [row[1] for row in self._loop.rows[-match.FIRST_AND_LAST :]]
        return {"accuracy": fmean(accuracies), "loss": fmean(losses), "lr_student": where.lr}

    def _accuracy(self, seed: int, iteration: int) -> float:
        state, job = self._loop.state, self._job
        return taught(
            job,
            state.images.cpu(),
            self._labels(state).cpu(),
            float(state.lr),
            job.out,
            "short",
            seed,
            f"student-{iteration:06d}",
        )

    def _labels(self, state: State) -> torch.Tensor:
        probabilities = state.logits is not None or self._matcher.settings.labels == "expert"
        return self._soft(state) if probabilities else self._matcher.labels

    def save(self) -> bytes:
        """The state, the one that it can be taken back to, and the rows: everything a run hangs on."""
        loop = self._loop
        parts = {"state": loop.state, "anchor": loop.anchor}
        rows = torch.tensor(loop.rows, dtype=torch.float64)
        rms = torch.tensor(loop.start_rms, dtype=torch.float64)
        dumped = {name: state.dump(rows=rows, start_rms=rms) for name, state in parts.items()}
        return save({n: torch.frombuffer(bytearray(data), dtype=torch.uint8) for n, data in dumped.items()})

    def load(self, data: bytes) -> None:
        """Go on from ``data``, or from a checkpoint of the same run that is further on."""
        self._given = data

    @cached_property
    def _loop(self) -> Loop:
        if self._given is None:
            return super()._loop
        parts = {name: bytes(t.numpy().tobytes()) for name, t in load(self._given).items()}
        state, more = load_state(parts["state"], self._device)
        anchor, _ = load_state(parts["anchor"], self._device)
        if self._job.out.has(matcher.CHECKPOINT):
            further = super()._resumed()
            if further.state.iteration > state.iteration:
                return further
        loop = Loop.begin(self._matcher, state, float(more["start_rms"]))
        loop.anchor, loop.rows = anchor, [tuple(row) for row in more["rows"].tolist()]
        self._saved_at = state.iteration
        return loop

    def leave(self) -> None:
        """Write the set as it stands."""
        import ray

        state, job = self._loop.state, self._job
        made = DistilledSet(
            state.images.cpu(),
            self._labels(state).cpu(),
            float(state.lr),
            job.source.classes,
            ray.get(job.space),
            match.info(job.config, self._context, job, state.iteration),
        )
        made.save(self._folder.child(MADE).child("set"))


def taught(
    job: matcher.Job,
    images: torch.Tensor,
    labels: torch.Tensor,
    lr: float,
    folder: Folder,
    lesson: str,
    seed: int,
    file: str,
) -> float:
    """The accuracy of one student, taught as a match stage's short evaluations teach it."""
    config = job.config
    threads = torch.get_num_threads()
    shared = students.Class(job.source, job.space, folder, job.seed, config.precision, job.compile, threads=1)
    protocol = Protocol(config.evaluate_epochs, lr, augmentation_names(config.augment))
    told = students.Lesson(lesson, images, labels, None, protocol)
    result = students.teach(shared, told, students.Student(lesson, job.net, seed, f"{file}-{seed}.json"))
    # The matching goes on with its own.
    torch.set_num_threads(threads)
    return float(result["accuracy"])
