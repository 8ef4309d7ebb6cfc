"""Learning rates selected from a grid, on a validation part of the train split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from rayddl import seeds
from rayddl.nets.config import NetConfig
from rayddl.stages.context import Progress
from rayddl.stages.evaluate import worker as students
from rayddl.stages.evaluate.settings import EvaluateConfig
from rayddl.stages.evaluate.student_data import Shared, Student, TrainingData
from rayddl.stages.runtime.slots import Work
from rayddl.stages.runtime.sources import SharedSource
from rayddl.stages.runtime.workers import Backend, Workers

Rates = Mapping[tuple[str, NetConfig], float]
"""Learning rates by the training data's name and network."""


def found(
    config: EvaluateConfig,
    nets: Sequence[NetConfig],
    kinds: Sequence[TrainingData],
    shared: Shared,
    backend: Backend,
    free: Workers,
    progress: Progress,
) -> Rates:
    """The best rate of ``config.lr_grid`` for each training data and network; empty without a grid.

    Trial students train on the first seed's data. Ties go to the rate listed first.
    """
    grid = config.lr_grid or ()
    if not grid:
        return {}
    places = held_back(shared.source, config.grid_images, shared.seed)
    trials = {
        (data.name, net, lr): Student(
            data.name, net, 0, f"student-trial-{data.name}-{n}-{i}.json", lr, trial=True
        )
        for data in kinds
        for n, net in enumerate(nets)
        for i, lr in enumerate(grid)
    }
    sent = {data.name: backend.put(data) for data in kinds}
    kept = backend.put(replace(shared, trials_on=places))

    def work(student: Student) -> Work:
        return (students.train_one, kept, sent[student.data], student)

    missing = [student for student in trials.values() if not shared.out.has(student.file)]
    for done, _ in enumerate(free.each(missing, work, lambda student: students.named([student])), 1):
        progress.update(0, 1, f"learning rates: {done} of {len(missing)} students")
    right = {key: shared.out.read_json(student.file)["accuracy"] for key, student in trials.items()}

    def best(data: str, net: NetConfig) -> float:
        return max(grid, key=lambda lr: float(right[data, net, lr]))

    return {(data.name, net): best(data.name, net) for data in kinds for net in nets}


def held_back(source: SharedSource, share: float, seed: int) -> torch.Tensor:
    """int64 indices of ``share`` of the train split, ascending; on average at least one image per class."""
    count = source.counts[0]
    many = min(max(round(count * share), len(source.classes)), count - 1)
    return torch.randperm(count, generator=seeds.generator(seed, "grid"))[:many].sort().values
