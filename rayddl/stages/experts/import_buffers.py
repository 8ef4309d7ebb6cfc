"""Import of experts from MTT's replay buffers, one Ray task per buffer file."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import torch

from rayddl.errors import ArtifactError
from rayddl.methods.training.metrics import accuracy
from rayddl.methods.training.steps import steps_for
from rayddl.methods.trajectories import buffers as replay
from rayddl.methods.trajectories import files
from rayddl.methods.trajectories.expert import Epoch, Training
from rayddl.stages.context import Context
from rayddl.stages.experts.artifact import ExpertsTask, contents
from rayddl.stages.runtime import devices, model_space, slots

CHANCE_TIMES = 1.5
"""Least accuracy of imported experts on held-out images, as a multiple of chance."""


def import_all(job: ExpertsTask, context: Context, path: str) -> int:
    """Convert the experts at ``path`` that have no file yet, and return the number of all experts."""
    found = replay.buffers(path)
    share = context.backend.spread(job.config.resources, units=len(found))
    starts, total = [], 0
    for file in found:
        starts.append(total)
        total += replay.count(file)
    total = min(total, job.config.count)
    shared = context.backend.put(job)
    # A worker on another node has another working directory.
    units = [
        (str(file.absolute()), start) for file, start in zip(found, starts, strict=True) if start < total
    ]

    def work(unit: tuple[str, int]) -> slots.Work:
        return (import_file, shared, *unit, total)

    with context.backend.opened(share, "experts imported", note=context.progress.note) as free:
        finished = free.each(units, work, lambda unit: f"experts of {Path(unit[0]).name}")
        for done, (_, worst) in enumerate(finished, start=1):
            context.progress.update(done, len(units), f"weakest expert: test {100 * worst:.1f} %")
    return total


def import_file(job: ExpertsTask, file: str, start: int, total: int) -> float:
    """Write the experts of one buffer file, and return the lowest test accuracy among them.

    Raises :class:`ArtifactError` for an expert with about chance accuracy: it was trained in
    another pixel space, on other images, or with other class numbers.
    """
    device = devices.enter(job.threads, job.config.precision, f"experts of {Path(file).name}")
    source, config = job.source, job.config
    classes = len(source.classes)
    steps = steps_for(config.net, source.shape, classes, config.precision, False)
    test = model_space.test(source, job.space, device)
    worst = 1.0
    for index, snapshots in enumerate(replay.read(Path(file), steps.net.shapes), start=start):
        if index >= total:
            break
        last = len(snapshots) - 1 if config.epochs is None else config.epochs
        if last > len(snapshots) - 1:
            raise ArtifactError(
                f"epochs is {config.epochs}, but expert {index} in {file} has {len(snapshots) - 1}; "
                "leave epochs out to take all of them.",
                code="buffer-too-short",
            )
        hits = accuracy(steps, snapshots[last].to(device), test.x, test.y)
        if hits < CHANCE_TIMES / classes:
            raise ArtifactError(
                f"expert {index} in {file} gets {100 * hits:.1f} % of the held-out images right, about as many as "
                f"guessing does. Check source.space ({source.space_kind} here), the images, and the order of classes.",
                code="buffer-guesses",
            )
        worst = min(worst, hits)
        training = Training(tuple(snapshots[: last + 1]), None, _history(snapshots[: last + 1], hits))
        job.out.write(files.file_name(index), contents(job, steps, training))
    return worst


def _history(snapshots: torch.Tensor, hits: float) -> tuple[Epoch, ...]:
    # A buffer contains no metrics: the last accuracy is measured, all others are unknown.
    steps = [
        0.0,
        *(float((b - a).double().norm()) for a, b in itertools.pairwise(snapshots)),
    ]
    last = len(snapshots) - 1
    return tuple(
        Epoch(epoch, math.nan, hits if epoch == last else math.nan, step, 0.0)
        for epoch, step in enumerate(steps)
    )
