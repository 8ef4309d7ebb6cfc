"""Units of work of ``kind: experts``: train experts in turns, and measure the best number per task."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Generator, Sequence

import torch
from safetensors.torch import load, save

from rayddl import seeds
from rayddl.errors import DivergedError
from rayddl.methods.training.input_spec import BATCH
from rayddl.methods.training.observer import Observer
from rayddl.methods.training.steps import steps_for
from rayddl.methods.training.teacher import outputs
from rayddl.methods.trajectories import files
from rayddl.methods.trajectories.curriculum import el2n
from rayddl.methods.trajectories.expert import Lanes, Training, load_training, training_steps, worthwhile
from rayddl.methods.trajectories.settings import ExpertSettings
from rayddl.nets.build import initial
from rayddl.stages.experts.artifact import ExpertsTask, contents, partial_name
from rayddl.stages.runtime import devices, model_space
from rayddl.stages.runtime.progress import ProgressCounter
from rayddl.stages.runtime.sources import train_batches, train_labels

SCORES = "el2n.safetensors"
PARTIAL_SECONDS = 60.0
"""Seconds of training between two partial files."""
WARM, TIMED = 5, 30
"""Steps of each expert before, and during, a measurement of throughput."""
MEMORY_SHARE = 0.8
"""Share of a GPU's free memory available to the experts of one task."""


def train_some(job: ExpertsTask, indices: Sequence[int], counter: ProgressCounter) -> None:
    """Train experts ``indices`` in turns and write their files; resumes from partial files."""
    device = devices.enter(job.threads, job.config.precision, f"expert {indices[0]}")
    missing = [i for i in indices if not job.out.has(files.file_name(i))]
    if not missing:
        return
    trainer = Trainer(job, device)
    lanes = Lanes([trainer.lane(i, counter) for i in missing], device)
    while lanes:
        for place, training in lanes.turn():
            job.out.write(files.file_name(missing[place]), contents(job, trainer.steps, training))
            job.out.delete(partial_name(missing[place]))


def tried(job: ExpertsTask) -> None:
    """Train an expert for some steps and discard it, so that the caller can measure GPU memory."""
    device = devices.enter(job.threads, job.config.precision, "experts tried")
    Trainer(job, device).rate(1)


def measured(job: ExpertsTask, most: int, gpu: float) -> int:
    """The best number of experts per task, at most ``most``, on the share ``gpu`` of a worker's GPU.

    Determined by the memory of one expert, and by the steps per second of 1, 2, 4, ... experts; 1 without a
    GPU.
    """
    device = devices.enter(job.threads, job.config.precision, "experts measured")
    if device.type != "cuda":
        return 1
    trainer = Trainer(job, device)
    shared = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    trainer.rate(1)  # compiles
    each = max(torch.cuda.max_memory_allocated(device) - shared, 1)
    free = torch.cuda.mem_get_info(device)[0] * gpu * MEMORY_SHARE
    return worthwhile(trainer.rate, min(most, 1 + int(free // each)))


def score(job: ExpertsTask, observer: Observer) -> None:
    """Write the EL2N scores of the training images by ``observer``, whose classes are the source's."""
    if job.out.has(SCORES):
        return
    device = devices.enter(job.threads, job.config.precision, "EL2N scores")
    known = outputs(observer.on(device).module, observer.input_spec, train_batches(job.source), device)
    labels = train_labels(job.source).long().split(BATCH)
    scores = [el2n(logits.float(), right) for logits, right in zip(known, labels, strict=True)]
    job.out.write(SCORES, save({"scores": torch.cat(scores)}))


class Trainer:
    """Images and step functions on ``device``, shared by all experts of a process."""

    def __init__(self, job: ExpertsTask, device: torch.device) -> None:
        config = job.config
        self._job, self._device, self._classes = job, device, len(job.source.classes)
        graphs = config.cuda_graphs
        if graphs is None:
            graphs = device.type == "cuda" and (config.experts_per_task or 1) == 1
        self.steps = steps_for(
            config.net, job.source.shape, self._classes, config.precision, job.compile, graphs
        )
        self._train = model_space.train(job.source, job.space, device)
        self._test = model_space.test(job.source, job.space, device)
        self._scores = None if config.scores is None else load(job.out.read(SCORES))["scores"]

    def lane(self, index: int, counter: ProgressCounter) -> Generator[None, None, Training]:
        """The training of expert ``index``, which yields after every SGD step; ``counter`` gets a report per epoch."""
        job, name, who = self._job, partial_name(index), f"expert {index}"
        saved, epochs = time.monotonic(), job.config.length

        def on_epoch(training: Training) -> None:
            nonlocal saved
            last = training.history[-1]
            # The loss is that before the last update.
            if not math.isfinite(last.train_loss + last.step_norm):
                raise DivergedError(
                    f"{who} diverged in epoch {last.epoch}: its loss is {last.train_loss}, its step of length "
                    f"{last.step_norm}. Lower lr "
                    f"({job.config.lr:g} now), or flat_rho, if it is set.",
                    code="expert-diverged",
                )
            counter.report(who, last.epoch, f"{who}: test {100 * last.test_accuracy:.1f} %")
            if time.monotonic() - saved > PARTIAL_SECONDS and last.epoch < epochs:
                job.out.write(name, training.dump())
                saved = time.monotonic()

        start: torch.Tensor | Training
        try:
            start = load_training(job.out.read(name))
        except FileNotFoundError:  # none yet; or a trial that shares these experts has finished this one
            start = self._initial(index)
        return self._steps(index, start, job.config, on_epoch)

    def rate(self, count: int) -> float:
        """SGD steps per second of ``count`` experts in turns; their parameters are discarded."""
        endless = self._job.config.model_copy(update={"epochs": sys.maxsize})
        statistics = self.steps.fresh_statistics(self._device)
        starts = [Training((self._initial(i),), None, (), statistics) for i in range(count)]
        lanes = Lanes([self._steps(i, start, endless) for i, start in enumerate(starts)], self._device)
        for _ in range(WARM):
            lanes.turn()
        self._settle()
        began = time.perf_counter()
        for _ in range(TIMED):
            lanes.turn()
        self._settle()
        return count * TIMED / (time.perf_counter() - began)

    def _settle(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _steps(
        self,
        index: int,
        start: Training | torch.Tensor,
        settings: ExpertSettings,
        on_epoch: Callable[[Training], None] = lambda _: None,
    ) -> Generator[None, None, Training]:
        seed = seeds.derive(self._job.seed, "expert", index)
        return training_steps(
            self.steps, settings, start, self._train, self._test, self._classes, seed, on_epoch, self._scores
        )

    def _initial(self, index: int) -> torch.Tensor:
        job = self._job
        seed = seeds.derive(seeds.derive(job.seed, "expert", index), "start")
        return initial(job.config.net, job.source.shape, self._classes, seed=seed)
