"""The outer loop (MTT, section 3.2): draw a window, run the student, update the synthetic set.

Every random choice of iteration i comes from generators seeded with i. So an interrupted and resumed
run gives the same result, and any worker can compute any window.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rayddl.data.pixels import augment
from rayddl.errors import DivergedError, StageError
from rayddl.methods.matching.gradient import MODES, MetaGradient, StudentRun
from rayddl.methods.matching.settings import Settings
from rayddl.methods.matching.state import State, average, symptom, update
from rayddl.methods.matching.windows import Window, cut, expert_at
from rayddl.methods.training.steps import Steps, one_hot
from rayddl.methods.trajectories.convex import Trajectory
from rayddl.seeds import generator

ANCHOR = 25
"""Iterations between the states that can be restored after divergence."""
REDRAWS = 20
"""Windows tried in one iteration before the run ends because no expert moves."""
COLUMNS = ("iteration", "loss", "lr_student", "start", "expert", "seconds")


@dataclass(frozen=True)
class WindowRecord:
    """What is recorded about one window."""

    expert: int
    start: float
    skipped: int


@dataclass(frozen=True)
class Matcher:
    """The constant inputs of a run, and the functions of one window."""

    steps: Steps
    settings: Settings
    trajectories: Sequence[Trajectory]
    labels: Tensor
    """Int64 class labels ``[N]``."""
    classes: int
    seed: int
    device: torch.device

    def window(self, iteration: int, worker: int = 0) -> tuple[Window, WindowRecord]:
        """The window of ``iteration`` for one worker. Raises :class:`StageError` if no expert moves."""
        slot = iteration * self.settings.workers + worker
        for attempt in range(REDRAWS):
            expert = expert_at(slot + attempt, len(self.trajectories), self.seed)
            draws = generator(self.seed, "window", slot, attempt)
            found = cut(self.trajectories[expert], expert, self.settings, iteration, draws)
            if not found.still:
                return found, WindowRecord(expert, found.epoch, attempt)
        raise StageError(
            f"no expert moves over {self.settings.expert_epochs:g} epochs from epochs up to "
            f"{self.settings.upper(iteration):g}: {REDRAWS} windows were tried in iteration {iteration + 1}. "
            "Check the experts' curves, raise expert_epochs, or lower max_start_epoch.",
            code="experts-do-not-move",
        )

    def gradient(self, state: State, iteration: int, worker: int = 0) -> tuple[MetaGradient, WindowRecord]:
        """The meta-gradient of one window of ``iteration``."""
        window, facts = self.window(iteration, worker)
        draws = generator(self.seed, "student", iteration * self.settings.workers + worker)
        start, target = window.start_P.to(self.device), window.target_P.to(self.device)
        if self.settings.start_noise:
            noise = torch.randn(start.shape, generator=draws).to(self.device)
            start = start + self.settings.start_noise * start.abs() * noise
        labels = self.probabilities(state, target)
        picks = self._picks(len(state.images), draws)
        pixels = tuple(state.images.shape[1:])
        run = StudentRun(
            state.images,
            labels,
            state.lr.to(self.device, torch.float32),
            picks,
            [augment.draw(self.settings.augmentations, (len(pick), *pixels), draws) for pick in picks],
            self._skipped,
        )
        return MODES[self.settings.gradient](self.steps, run, start, target), facts

    @property
    def _skipped(self) -> int:
        """The number of parameters, from the input, that the loss leaves out."""
        net, settings = self.steps.net, self.settings
        return max(net.before_layer(settings.skip_layers), int(settings.depth_ratio * sum(net.sizes)))

    def probabilities(self, state: State, target_P: Tensor | None = None) -> Tensor:
        """The labels ``[N, K]`` that a student is trained on, as probabilities."""
        if state.logits is not None:
            return state.logits.softmax(1)
        if self.settings.labels == "expert" and target_P is not None:
            with torch.no_grad():
                return self.steps.net(target_P, state.images).softmax(1)
        return one_hot(self.labels.to(self.device), self.classes)

    def _picks(self, count: int, draws: torch.Generator) -> list[Tensor]:
        # Passes over the set in random order. Without `keep_remainder`, every step has the same shape.
        batch = min(self.settings.batch_syn or count, count)
        picks: list[Tensor] = []
        while len(picks) < self.settings.syn_steps:
            *whole, last = torch.randperm(count, generator=draws).split(batch)
            if len(last) == batch:
                whole.append(last)
            elif self.settings.keep_remainder:
                whole.insert(0, last)
            picks += whole
        picks = picks[: self.settings.syn_steps]
        # One copy to the device for all.
        return list(torch.cat(picks).to(self.device).split([len(pick) for pick in picks]))


Gradients = Callable[[State, int], list[tuple[MetaGradient, WindowRecord]]]
"""Computes the meta-gradients of all windows of an iteration."""


@dataclass
class Loop:
    """A run in progress. ``rows`` has a row of :data:`COLUMNS` for each finished iteration."""

    matcher: Matcher
    state: State
    anchor: State
    rows: list[tuple[float, ...]]
    start_rms: float
    gradients: Gradients | None = None
    """Computes the windows of an iteration. Default: one after the other, in this process."""

    @classmethod
    def begin(cls, matcher: Matcher, state: State, start_rms: float | None = None) -> Loop:
        """A loop at ``state``. ``start_rms`` is the RMS of the initial images (default: of the state's)."""
        rms = float(state.images.square().mean().sqrt()) if start_rms is None else start_rms
        return cls(matcher, state, state, [], rms)

    def step(self) -> None:
        """Run one iteration. Raises :class:`DivergedError` if the run diverges after all ``retries``."""
        began, iteration = time.perf_counter(), self.state.iteration
        got = (self.gradients or self._here)(self.state, iteration)
        mean = average([gradient for gradient, _ in got])
        facts = got[0][1]
        loss = float(mean.loss)
        most = self.matcher.settings.threshold
        if most is not None and loss > most:
            after = replace(self.state, iteration=iteration + 1)
        else:
            after = update(self.state, mean, self.matcher.settings)
        after = replace(after, skipped=after.skipped + sum(f.skipped for _, f in got))
        wrong = symptom(after, loss, self.matcher.settings, self.start_rms)
        if wrong is not None:
            self._take_back(wrong, facts, iteration)
            return
        seconds = time.perf_counter() - began
        self.rows.append((iteration + 1, loss, float(after.lr), facts.start, facts.expert, seconds))
        self.state = after
        if after.iteration % ANCHOR == 0:
            self.anchor = after

    def _here(self, state: State, iteration: int) -> list[tuple[MetaGradient, WindowRecord]]:
        return [self.matcher.gradient(state, iteration, w) for w in range(self.matcher.settings.workers)]

    def _take_back(self, wrong: str, facts: WindowRecord, iteration: int) -> None:
        settings = self.matcher.settings
        tries = self.state.retries + 1
        if tries > settings.retries:
            raise DivergedError(
                f"diverged at iteration {iteration + 1}: {wrong} (expert {facts.expert}, start epoch "
                f"{facts.start:.2f}, lr_image {settings.lr_image * self.state.scale:.3g}, student learning rate "
                f"{float(self.state.lr):.3g}). The last good state was restored {settings.retries} times, each time "
                f"with a tenth of the rates. The last good set, of iteration {self.anchor.iteration}, is kept. "
                f"Try a smaller lr_image (it was {settings.lr_image:g}) or lr_lr (it was {settings.lr_lr:g}).",
                code="matching-diverged",
            )
        self.anchor = self.state = replace(
            self.anchor, retries=tries, scale=self.state.scale * 0.1, moments={}
        )
        del self.rows[self.anchor.iteration :]
