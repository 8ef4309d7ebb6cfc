"""Training one expert (MTT, section 3.1): SGD on the real images, a snapshot after every epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import torch
from safetensors.torch import load, save
from torch import Tensor

from rayddl.data.pixels import augment
from rayddl.data.pixels.encoded import Encoded, InBatches
from rayddl.methods.training.metrics import accuracy
from rayddl.methods.training.steps import Steps, batches, one_hot, sgd
from rayddl.methods.trajectories.curriculum import ranks, shown
from rayddl.methods.trajectories.settings import ExpertSettings
from rayddl.seeds import generator

T = TypeVar("T")

GAIN = 1.1
"""Smallest increase of throughput for which twice as many experts are trained at once."""


@dataclass(frozen=True)
class Images:
    """A split in model space, of which any images can be read: ``x`` float32 ``[N, C, H, W]``, ``y`` int64 ``[N]``."""

    x: Tensor | Encoded
    y: Tensor


@dataclass(frozen=True)
class HeldOut:
    """A split in model space that is read from first to last: ``x`` float32 ``[N, C, H, W]``, ``y`` int64 ``[N]``."""

    x: InBatches
    y: Tensor


@dataclass(frozen=True)
class Epoch:
    """What is recorded after an epoch. Epoch 0 is the untrained network."""

    epoch: int
    train_loss: float
    test_accuracy: float
    step_norm: float
    seconds: float


@dataclass(frozen=True)
class Training:
    """The state of an expert's training after a number of epochs.

    It suffices to resume, because every epoch has its own random generator.
    """

    snapshots: tuple[Tensor, ...]
    """float32 ``[P]`` on the CPU, one per epoch, from epoch 0."""
    velocity: Tensor | None
    history: tuple[Epoch, ...]
    statistics: Tensor | None = None
    """The running statistics ``[S]`` of batch norm, for testing the expert; not part of a snapshot."""

    def table(self) -> Tensor:
        """The history as float64 ``[epochs + 1, 5]``, columns as in :class:`Epoch`."""
        rows = [[e.epoch, e.train_loss, e.test_accuracy, e.step_norm, e.seconds] for e in self.history]
        return torch.tensor(rows, dtype=torch.float64)

    def dump(self) -> bytes:
        """The training as bytes, for :func:`load_training`."""
        tensors = {"snapshots": torch.stack(self.snapshots), "history": self.table()}
        if self.velocity is not None:
            tensors["velocity"] = self.velocity.cpu()
        if self.statistics is not None:
            tensors["statistics"] = self.statistics.cpu()
        return save(tensors)


def load_training(data: bytes) -> Training:
    """The training that :meth:`Training.dump` wrote."""
    tensors = load(data)
    history = tuple(Epoch(int(row[0]), *row[1:]) for row in tensors["history"].tolist())
    return Training(tuple(tensors["snapshots"]), tensors.get("velocity"), history, tensors.get("statistics"))


def training_steps(
    steps: Steps,
    settings: ExpertSettings,
    start: Training | Tensor,
    train: Images,
    test: HeldOut,
    classes: int,
    seed: int,
    on_epoch: Callable[[Training], None] = lambda _: None,
    scores: Tensor | None = None,
) -> Generator[None, None, Training]:
    """Train from parameters ``[P]``, or resume a training, until ``settings.length`` epochs.

    Yields after every SGD step and returns the finished training. ``seed`` is the expert's. ``on_epoch`` is
    called with the training after every epoch. ``scores`` ``[N]`` are the images' difficulty, for a curriculum.
    """
    ranked = None if scores is None else ranks(scores.cpu(), train.y.cpu())
    if isinstance(start, Tensor):
        statistics = steps.fresh_statistics(train.x.device)
        tested = _tested(start.to(train.x.device), statistics)
        first = Epoch(0, math.nan, accuracy(steps, tested, test.x, test.y), 0.0, 0.0)
        training = Training((start.detach().cpu().clone(),), None, (first,), statistics)
    else:
        training = start
    while len(training.snapshots) <= settings.length:
        training = yield from _one_epoch(steps, settings, training, train, test, classes, seed, ranked)
        on_epoch(training)
    return training


@dataclass
class _Running:
    theta: Tensor
    velocity: Tensor | None
    statistics: Tensor | None
    loss: Tensor = field(default_factory=lambda: torch.zeros(()))


def _one_epoch(
    steps: Steps,
    settings: ExpertSettings,
    training: Training,
    train: Images,
    test: HeldOut,
    classes: int,
    seed: int,
    ranked: tuple[Tensor, Tensor] | None,
) -> Generator[None, None, Training]:
    began = time.perf_counter()
    epoch, device = len(training.snapshots), train.x.device
    before = training.snapshots[-1]
    velocity = training.velocity
    if velocity is None and settings.momentum:
        velocity = torch.zeros_like(before)
    run = _Running(
        before.to(device, copy=True),
        None if velocity is None else velocity.to(device, copy=True),
        None if training.statistics is None else training.statistics.to(device),
    )
    run.loss = run.loss.to(device)
    draws = generator(seed, "epoch", epoch)
    if settings.curriculum is None or ranked is None:
        order = torch.randperm(len(train.y), generator=draws).to(device)
    else:
        seen = shown(settings.curriculum, epoch - 1, *ranked)
        order = seen[torch.randperm(len(seen), generator=draws)].to(device)
    never_one = len(order) % settings.batch == 1 and steps.needs_two(run.theta, train.x)
    for picked in batches(order, settings.batch, never_one=never_one):
        x = train.x[picked]
        drawn = augment.draw(settings.augmentations, tuple(x.shape), draws)
        x, y = augment.apply(x, drawn), one_hot(train.y[picked], classes)
        usual = len(picked) == settings.batch
        gradient, value, run.statistics = (
            steps.flat_training(
                run.theta, run.statistics, x, y, settings.flat_rho, settings.flat_alpha, usual=usual
            )
            if settings.flat_rho
            else steps.training(run.theta, run.statistics, x, y, usual=usual)
        )
        sgd(
            run.theta, gradient, run.velocity,
            lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay,
        )  # fmt: skip
        run.loss += value * len(picked)
        yield
    after = run.theta.cpu()
    record = Epoch(
        epoch,
        float(run.loss) / len(order),
        accuracy(steps, _tested(run.theta, run.statistics), test.x, test.y),
        float((after.double() - before.double()).norm()),
        time.perf_counter() - began,
    )
    return replace(
        training,
        snapshots=(*training.snapshots, after),
        velocity=run.velocity,
        history=(*training.history, record),
        statistics=run.statistics,
    )


def _tested(theta_P: Tensor, statistics_S: Tensor | None) -> Tensor:
    return theta_P if statistics_S is None else torch.cat([theta_P, statistics_S])


class Lanes(Generic[T]):
    """Generators that are advanced in turns, each on its own CUDA stream. A generator's return value is its result.

    One expert of a small network leaves most of a large GPU idle. Steps on several streams overlap, read the same
    images and share compiled functions. Each expert's result is the same as without the others: it runs the same
    kernels, and its random numbers do not depend on the others.
    """

    def __init__(self, lanes: Sequence[Generator[None, None, T]], device: torch.device) -> None:
        self._lanes = dict(enumerate(lanes))
        self._streams: dict[int, Any] = {}
        if device.type == "cuda" and len(lanes) > 1:
            here = torch.cuda.current_stream(device)
            for place in self._lanes:
                self._streams[place] = torch.cuda.Stream(device)
                # The current stream copied the inputs to the device, perhaps not completely yet.
                self._streams[place].wait_stream(here)

    def __bool__(self) -> bool:
        return bool(self._lanes)

    def turn(self) -> list[tuple[int, T]]:
        """Advance every generator by a step. Returns index and result of those that ended."""
        ended = []
        for place, lane in list(self._lanes.items()):
            stream = self._streams.get(place)
            with nullcontext() if stream is None else torch.cuda.stream(stream):
                try:
                    next(lane)
                except StopIteration as stop:
                    ended.append((place, stop.value))
                    del self._lanes[place]
        return ended


def worthwhile(rate: Callable[[int], float], most: int) -> int:
    """How many to train at once: doubled from one, up to ``most``, as long as ``rate`` grows by :data:`GAIN`.

    ``rate(n)`` is the throughput, in units per second, of n at once.
    """
    best, found = 1, rate(1) if most > 1 else 0.0
    while 2 * best <= most:
        more = rate(2 * best)
        if more < GAIN * found:
            break
        best, found = 2 * best, more
    return best
