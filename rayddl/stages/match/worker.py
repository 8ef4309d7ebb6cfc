"""Actors that run the matching loop: built from settings and files, checkpointed, stopped and resumed."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, TypeAlias

import torch
from safetensors.torch import load, save
from torch import Tensor

from rayddl import seeds
from rayddl.data.distilled import DistilledSet
from rayddl.errors import ArtifactError, DivergedError
from rayddl.methods.matching import correct
from rayddl.methods.matching.gradient import MetaGradient
from rayddl.methods.matching.loop import COLUMNS, Loop, Matcher, WindowRecord
from rayddl.methods.matching.state import State, first_state, load_state
from rayddl.methods.training.steps import steps_for
from rayddl.methods.trajectories import files
from rayddl.methods.trajectories.convex import Trajectory
from rayddl.nets.config import NetConfig
from rayddl.stages.match.settings import MatchConfig
from rayddl.stages.runtime import cluster, devices, model_space
from rayddl.stages.runtime.sources import SharedSource
from rayddl.storage import Folder

CHECKPOINT = "checkpoint.safetensors"
CHECKPOINT_SECONDS = 30.0
"""Seconds of matching between two checkpoints."""
LABEL_EXPERTS = 5
"""Number of experts whose mean logits initialise learned labels."""
SMALLEST = 1e-12
"""Probabilities of a set's labels are at least this for their logarithms."""


@dataclass(frozen=True)
class MatchTask:
    """The arguments of a matching actor."""

    config: MatchConfig
    net: NetConfig
    source: SharedSource
    space: Any
    """Reference to the pixel space in the object store."""
    experts: Folder
    count: int
    out: Folder
    seed: int
    labels: Tensor
    """int64 ``[N]``: labels of the synthetic images, in class order."""
    picked: Tensor | None
    """int64 ``[N]``: the initial real images as indices into the train split; ``None``: noise, ``given``, or those
    that experts classify correctly."""
    compile: bool
    threads: int
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    given: DistilledSet | None = None
    """The initial set, its images in the order of ``labels``."""
    name: str = "match"
    """The worker's name on the dashboard."""


Snapshot: TypeAlias = tuple[Tensor, Tensor, float]
"""Images, labels and the student's learning rate."""


@dataclass(frozen=True)
class MatchProgress:
    """The progress of a run."""

    iteration: int
    loss: float
    lr: float
    retries: int
    skipped: int
    diverged: str | None


def make_matcher(job: MatchTask, device: torch.device) -> Matcher:
    """The matcher of the run, on ``device``. Raises :class:`ArtifactError` for experts that do not fit."""
    classes = len(job.source.classes)
    config = job.config
    trajectories = [
        files.open_trajectory(job.experts, files.file_name(i), config.trajectory, config.waypoints)
        for i in range(job.count)
    ]
    _refuse_short(job, trajectories)
    graphs = device.type == "cuda" if config.cuda_graphs is None else config.cuda_graphs
    steps = steps_for(job.net, job.source.shape, classes, config.precision, job.compile, graphs)
    return Matcher(steps, config, trajectories, job.labels, classes, job.seed, device)


def _refuse_short(job: MatchTask, trajectories: Sequence[Trajectory]) -> None:
    # The definition's check covers trained experts; imported ones' length is known only now.
    needed = math.ceil(job.config.max_start_epoch + job.config.expert_epochs)
    shortest = min(t.last for t in trajectories)
    if shortest < needed:
        raise ArtifactError(
            f"windows reach epoch {needed} (max_start_epoch {job.config.max_start_epoch:g} + expert_epochs "
            f"{job.config.expert_epochs:g}), but an expert in {job.experts} has {shortest} epochs. "
            "Lower max_start_epoch or expert_epochs, or use longer experts.",
            code="experts-too-short",
        )


def starting_images(job: MatchTask, matcher: Matcher) -> Tensor:
    """The initial images ``[N, C, H, W]`` in model space, in class order: given, real, or unit Gaussian noise."""
    device = matcher.device
    if job.given is not None:
        import ray

        space = ray.get(job.space)
        # Pixels are rounded and clamped, but matched images exceed the range of pixels.
        same = space.fingerprint == job.given.space.fingerprint
        images: Tensor = job.given.images if same else space.encode(job.given.pixels())
        return images.to(device)
    if job.config.start_from == "correct":
        train = model_space.train(job.source, job.space, device)
        picked = correct.chosen(
            _experts(job, matcher, job.count), train.x, train.y, job.source.classes, job.config.ipc, job.seed
        )
        return train.x[picked]
    if job.picked is None:
        draws = seeds.generator(job.seed, "images")
        return torch.randn((len(job.labels), *job.source.shape), generator=draws).to(device)
    return model_space.some_of_train(job.source, job.space, job.picked, device)


def _start(job: MatchTask, matcher: Matcher) -> State:
    images = starting_images(job, matcher)
    logits = None
    if job.config.labels == "learned" and job.given is not None and job.given.labels.ndim == 2:
        # Their softmax is those labels again.
        logits = job.given.labels.to(matcher.device).clamp(min=SMALLEST).log()
    elif job.config.labels == "learned":
        masked = job.config.start_from == "correct"
        some = _experts(job, matcher, job.count if masked else LABEL_EXPERTS)
        with torch.no_grad():
            found = torch.stack([expert(images) for expert in some])
        logits = correct.masked_mean(found, job.labels.to(matcher.device)) if masked else found.mean(0)
    return first_state(images, logits, matcher.settings)


def _experts(job: MatchTask, matcher: Matcher, count: int) -> Iterator[correct.Logits]:
    """The first ``count`` experts' networks at their last epoch."""
    for trajectory in matcher.trajectories[:count]:
        theta = trajectory.at(trajectory.last).to(matcher.device)
        yield partial(matcher.steps.net, theta)


class WindowWorker:
    """An actor that computes one window of a meta-batch."""

    def __init__(self, packed: bytes) -> None:
        self._job: MatchTask = cluster.unpacked(packed)
        self._device = devices.enter(self._job.threads, self._job.config.precision, self._job.name)

    @cached_property
    def _matcher(self) -> Matcher:
        # Made at the first call: what a call raises reaches the driver, what a constructor raises does not.
        return make_matcher(self._job, self._device)

    def gradient(
        self, state: dict[str, Any], iteration: int, worker: int
    ) -> tuple[dict[str, Any], WindowRecord]:
        """The meta-gradient of window ``worker`` of ``iteration`` as NumPy arrays, and its figures."""
        logits = state["logits"]
        here = State(
            iteration,
            torch.tensor(state["images"]).to(self._device),
            None if logits is None else torch.tensor(logits).to(self._device),
            torch.tensor(state["lr"], dtype=torch.float64),
            {},
        )
        found, facts = self._matcher.gradient(here, iteration, worker)
        parts = {"loss": found.loss, "images": found.images, "labels": found.labels, "lr": found.lr}
        return {name: part.cpu().numpy() for name, part in parts.items()}, facts


class MatchWorker:
    """An actor that runs the outer loop. After a restart it resumes from its last checkpoint."""

    def __init__(self, packed: bytes, helpers: list[Any]) -> None:
        self._job: MatchTask = cluster.unpacked(packed)
        self._helpers = helpers
        self._device = devices.enter(self._job.threads, self._job.config.precision, self._job.name)
        self._saved, self._saved_at = time.monotonic(), 0
        self._begun: Loop | None = None
        self._diverged: str | None = None

    @cached_property
    def _matcher(self) -> Matcher:
        # Made at the first call: what a call raises reaches the driver, what a constructor raises does not.
        return make_matcher(self._job, self._device)

    @property
    def _loop(self) -> Loop:
        if self._begun is None:
            out = self._job.out
            fresh = (
                None if out.has(CHECKPOINT) else Loop.begin(self._matcher, _start(self._job, self._matcher))
            )
            self._begin(fresh or self._resumed(out.read(CHECKPOINT)))
        assert self._begun is not None
        return self._begun

    def _begin(self, loop: Loop) -> None:
        loop.gradients = self._spread if self._helpers else None
        self._begun, self._saved_at = loop, loop.state.iteration

    def _resumed(self, data: bytes) -> Loop:
        state, more = load_state(data, self._device)
        loop = Loop.begin(self._matcher, state, float(more["start_rms"]))
        loop.rows = [tuple(row) for row in more["rows"].tolist()]
        if "anchor" in more:
            loop.anchor, _ = load_state(more["anchor"].numpy().tobytes(), self._device)
        return loop

    def _spread(self, state: State, iteration: int) -> list[tuple[MetaGradient, WindowRecord]]:
        import ray

        sent = ray.put(
            {
                "images": state.images.cpu().numpy(),
                "logits": None if state.logits is None else state.logits.cpu().numpy(),
                "lr": float(state.lr),
            }
        )
        refs = [h.gradient.remote(sent, iteration, w) for w, h in enumerate(self._helpers, start=1)]
        got = [self._matcher.gradient(state, iteration, 0)]
        for parts, facts in ray.get(refs):
            tensors = {name: torch.tensor(part).to(self._device) for name, part in parts.items()}
            got.append((MetaGradient(**tensors), facts))
        return got

    def advance(self, until: int, seconds: float) -> MatchProgress:
        """Run to iteration ``until``, for at most about ``seconds``, and return the progress."""
        deadline = time.monotonic() + seconds
        while self._diverged is None and self._loop.state.iteration < until and time.monotonic() < deadline:
            try:
                self._loop.step()
            except DivergedError as error:
                self._diverged = str(error)
                break
            self._checkpoint()
        state, rows = self._loop.state, self._loop.rows
        loss = rows[-1][1] if rows else float("nan")
        return MatchProgress(
            state.iteration, loss, float(state.lr), state.retries, state.skipped, self._diverged
        )

    def _checkpoint(self) -> None:
        # Only states that a diverged run is restored to are saved, so that a resumed run has the same one.
        anchor = self._loop.anchor
        early = time.monotonic() - self._saved < self._job.checkpoint_seconds
        if early or anchor.iteration <= self._saved_at:
            return
        rows = torch.tensor(self._loop.rows[: anchor.iteration], dtype=torch.float64)
        rms = torch.tensor(self._loop.start_rms, dtype=torch.float64)
        self._job.out.write(CHECKPOINT, anchor.dump(rows=rows, start_rms=rms))
        self._saved, self._saved_at = time.monotonic(), anchor.iteration

    def pause(self) -> int:
        """Write a checkpoint of the current state, and return its iteration, where the next attempt resumes."""
        self._job.out.write(CHECKPOINT, self.state())
        self._saved, self._saved_at = time.monotonic(), self._loop.state.iteration
        return self._saved_at

    def state(self) -> bytes:
        """The current state of the run as bytes, for :meth:`restore`.

        Includes the anchor (last good state), so that a resumed run that diverges is restored to the same state as
        an uninterrupted one.
        """
        loop = self._loop
        rows = torch.tensor(loop.rows, dtype=torch.float64)
        rms = torch.tensor(loop.start_rms, dtype=torch.float64)
        anchor = torch.frombuffer(bytearray(loop.anchor.dump()), dtype=torch.uint8)
        return loop.state.dump(rows=rows, start_rms=rms, anchor=anchor)

    def restore(self, data: bytes) -> None:
        """Continue from ``data``, the result of :meth:`state`, or from this run's checkpoint if it is later.

        The result is bit-identical to that of an uninterrupted run.
        """
        loop = self._resumed(data)
        if self._job.out.has(CHECKPOINT):
            kept = self._resumed(self._job.out.read(CHECKPOINT))
            loop = kept if kept.state.iteration > loop.state.iteration else loop
        self._begin(loop)

    def _reach(self, iteration: int) -> None:
        # A restarted worker is at its checkpoint, an earlier iteration than the driver last received.
        self.advance(iteration, float("inf"))

    def keep(self, name: str, iteration: int | None) -> None:
        """Write the set at ``iteration``, for :func:`read_snapshot`; ``None``: at the last good state."""
        if iteration is not None:
            self._reach(iteration)
        images, labels, lr = self._set_of(self._loop.anchor if iteration is None else self._loop.state)
        self._job.out.write(name, save({"images": images, "labels": labels, "lr": lr}))

    def standing(self) -> Snapshot:
        """The current set."""
        images, labels, lr = self._set_of(self._loop.state)
        return images, labels, float(lr)

    def _set_of(self, state: State) -> tuple[Tensor, Tensor, Tensor]:
        state = replace(state, images=state.shown)
        probabilities = state.logits is not None or self._matcher.settings.labels == "expert"
        labels = self._soft(state) if probabilities else self._matcher.labels
        images, labels, lr = (t.detach().cpu().contiguous() for t in (state.images, labels, state.lr))
        return images, labels, lr

    def _soft(self, state: State) -> Tensor:
        if state.logits is not None:
            return state.logits.softmax(1)
        reach = self._job.config.max_start_epoch + self._job.config.expert_epochs
        targets = [t.at(min(reach, t.last)) for t in self._matcher.trajectories]
        return torch.stack([self._matcher.probabilities(state, t.to(self._device)) for t in targets]).mean(0)

    def rows(self, iteration: int) -> dict[str, list[float]]:
        """The metrics of every iteration up to ``iteration``, by column."""
        self._reach(iteration)
        return {name: [row[k] for row in self._loop.rows] for k, name in enumerate(COLUMNS)}


def read_snapshot(folder: Folder, name: str) -> Snapshot:
    """Read the file that :meth:`MatchWorker.keep` wrote."""
    tensors = load(folder.read(name))
    return tensors["images"], tensors["labels"], float(tensors["lr"])
