"""Trains the observer on real images: SGD with momentum, warm-up and cosine schedule, random flips and shifts.

Several processes may train together (:mod:`rayddl.methods.training.team`). They go through the same batches as one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rayddl.data.pixels import augment
from rayddl.errors import DivergedError
from rayddl.methods.training import checkpoint
from rayddl.methods.training.feeding import lane_to, through
from rayddl.methods.training.input_spec import BATCH, InputSpec
from rayddl.methods.training.settings import TeacherSettings
from rayddl.methods.training.soft import Execution
from rayddl.methods.training.team import joined
from rayddl.nets.compiling import compiled
from rayddl.seeds import derive, generator

COLUMNS = ("epoch", "train_loss", "test_accuracy", "lr", "seconds")


@dataclass(frozen=True)
class Epoch:
    """What is recorded after an epoch; epochs are counted from 1."""

    epoch: int
    train_loss: float
    test_accuracy: float
    lr: float
    """The learning rate of the epoch's last step."""
    seconds: float


class TeacherTraining:
    """The training of a teacher. Stopped after any step and resumed, it gives the same bits."""

    def __init__(
        self,
        module: nn.Module,
        settings: TeacherSettings,
        input_spec: InputSpec,
        images: Tensor,
        labels: Tensor,
        execution: Execution,
        seed: int,
    ) -> None:
        """``images`` uint8 ``[N, C, H, W]`` and ``labels`` int64 ``[N]`` may be on the device or on the CPU."""
        self._norms = joined(module, execution.team)
        self.module: nn.Module = module.to(execution.device).to(memory_format=torch.channels_last)
        self.module.requires_grad_(True)
        self.history: list[Epoch] = []
        self._settings, self._frame, self._manner, self._seed = settings, input_spec, execution, seed
        self._images, self._labels = images, labels
        # A single remaining image is skipped, because batch norm needs a variance.
        self._steps = max(1, -(-(len(labels) - 1) // settings.batch))
        self._step, self._seconds = 0, 0.0
        self._loss = self._nothing()
        self._optimiser = torch.optim.SGD(
            self.module.parameters(),
            lr=settings.lr,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
        )

        def loss(x: Tensor, y: Tensor) -> Tensor:
            return F.cross_entropy(self.module(x).float(), y, label_smoothing=settings.label_smoothing)

        self._plain = loss
        self._fast = compiled(loss, wanted=execution.compile)

    @property
    def done(self) -> float:
        """Finished epochs, with the finished share of the current one."""
        return len(self.history) + self._step / self._steps

    def dump(self) -> bytes:
        """The state of the training as bytes, for :meth:`resume`. Raises :class:`DivergedError` for a loss that is not
        finite.
        """
        self._refuse_diverged(float(self._loss))
        rows = [[getattr(e, c) for c in COLUMNS] for e in self.history]
        numbers = {
            "history": torch.tensor(rows, dtype=torch.float64).view(-1, len(COLUMNS)),
            "running": torch.tensor([self._step, float(self._loss), self._seconds], dtype=torch.float64),
        }
        return checkpoint.dump(self.module, self._optimiser, numbers)

    def resume(self, data: bytes) -> None:
        """Continue from the state that :meth:`dump` returned."""
        numbers = checkpoint.restore(data, self.module, self._optimiser)
        self.history = [Epoch(int(row[0]), *row[1:]) for row in numbers["history"].tolist()]
        step, loss, self._seconds = numbers["running"].tolist()
        self._step, self._loss = int(step), self._nothing() + loss

    def run(
        self, test: Callable[[], float], on_step: Callable[[TeacherTraining], None] = lambda _: None
    ) -> nn.Module:
        """Train to the last epoch and return the network in eval mode. Raises :class:`DivergedError` for a loss that is
        not finite.

        ``test`` measures the held-out accuracy, in 0..1, after each epoch; ``on_step`` is called after each
        step, and may :meth:`dump`. In a team, every process calls them at the same steps.
        """
        with checkpoint.own_noise(self._manner.device):
            while len(self.history) < self._settings.epochs:
                self._one_epoch(test, on_step)
        self.module.eval()
        return self.module

    def _one_epoch(self, test: Callable[[], float], on_step: Callable[[TeacherTraining], None]) -> None:
        epoch, began = len(self.history), time.perf_counter() - self._seconds
        draws = generator(self._seed, "order", epoch)
        batches = torch.randperm(len(self._labels), generator=draws).split(self._settings.batch)
        self.module.train()
        for picked in batches[self._step : self._steps]:
            self._loss += self._learn(picked, epoch) * len(picked)
            self._step += 1
            self._seconds = time.perf_counter() - began
            if self._step < self._steps:
                on_step(self)
        accuracy = test()
        mean, lr = float(self._loss) / len(self._labels), float(self._optimiser.param_groups[0]["lr"])
        self._refuse_diverged(mean)
        self.history.append(Epoch(epoch + 1, mean, accuracy, lr, time.perf_counter() - began))
        self._step, self._loss, self._seconds = 0, self._nothing(), 0.0
        on_step(self)

    def _refuse_diverged(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise DivergedError(
                f"the training diverged in epoch {len(self.history) + 1}: its loss is {loss}. Lower lr "
                f"({self._settings.lr:g} now).",
                code="teacher-diverged",
            )

    def _nothing(self) -> Tensor:
        # The sum stays on the device: reading it at every step would make the CPU wait for the GPU.
        return torch.zeros((), dtype=torch.float64, device=self._manner.device)

    def _learn(self, picked: Tensor, epoch: int) -> Tensor:
        """Train on this process's part of the batch ``picked``; returns the loss of the whole batch."""
        device, settings, team, count = self._manner.device, self._settings, self._manner.team, len(picked)
        rows = team.rows(count)
        own = picked[rows]
        torch.manual_seed(derive(self._seed, "noise", epoch, self._step, *team.noise))
        for group in self._optimiser.param_groups:
            group["lr"] = settings.lr_at(epoch * self._steps + self._step, self._steps)
        for norm in self._norms:
            norm.apart = count < team.size
        x = self._images[own.to(self._images.device)].to(device, non_blocking=True)
        y = self._labels[own.to(self._labels.device)].to(device, non_blocking=True)
        x = self._frame.normalised(x).contiguous(memory_format=torch.channels_last)
        draws = generator(self._seed, "augment", epoch, self._step)
        for name in settings.augmentations:
            drawn = augment.draw((name,), (count, *x.shape[1:]), draws)
            x = augment.apply(x, None if drawn is None else drawn.of(rows))
        usual = count == min(settings.batch, len(self._labels)) and team.even(count)
        loss = (self._fast if usual else self._plain)(x, y)
        self._optimiser.zero_grad(set_to_none=True)
        loss = team.backward(loss, count, self.module.parameters())
        self._optimiser.step()
        return loss


@torch.no_grad()
def outputs(
    module: nn.Module,
    input_spec: InputSpec,
    images: Tensor | Iterable[Tensor],
    device: torch.device,
    *,
    zoom: bool = False,
) -> Iterator[Tensor]:
    """Logits ``[B, K]`` on the CPU for uint8 ``images`` ``[N, C, H, W]``, batch by batch; they may be given in batches.

    ``zoom``: the images are shown by :meth:`InputSpec.zoomed`, as in RDED's published code, else by
    :meth:`InputSpec.fitted`.
    The mode of ``module``, training or eval, is restored.
    """
    shown = input_spec.zoomed if zoom else input_spec.fitted
    training = module.training
    module.eval()
    try:
        parts = images.split(BATCH) if isinstance(images, Tensor) else images
        yield from through(
            ((shown(part),) for part in parts),
            lambda x: module(input_spec.normalised(x).contiguous(memory_format=torch.channels_last)),
            lane_to(device),
        )
    finally:
        module.train(training)


def predictions(
    module: nn.Module,
    input_spec: InputSpec,
    images: Tensor | Iterable[Tensor],
    device: torch.device,
    *,
    zoom: bool = False,
) -> Tensor:
    """The output with the largest logit for each of ``images``, from :func:`outputs`: int64 ``[N]`` on the CPU."""
    return torch.cat([logits.argmax(1) for logits in outputs(module, input_spec, images, device, zoom=zoom)])


def share_right(predicted: Tensor, labels: Tensor) -> float:
    """Share of int64 ``predicted`` that equals ``labels``, in 0..1."""
    return int((predicted == labels.cpu()).sum()) / len(labels)


@dataclass(frozen=True)
class ObserverCheck:
    """The accuracy of an observer on held-out images, and checks of it."""

    accuracy: float
    reordered: float
    """The accuracy if every class were assigned to the output that is predicted most often for it."""
    images: int
    classes: int

    @classmethod
    def of(cls, predicted: Tensor, labels: Tensor, classes: int) -> ObserverCheck:
        """The check of predictions and labels int64 ``[N]``."""
        pairs = torch.bincount(labels.cpu() * classes + predicted, minlength=classes * classes)
        most = pairs.view(classes, classes).amax(1).sum()
        return cls(share_right(predicted, labels), int(most) / len(labels), len(labels), classes)

    @property
    def bar(self) -> float:
        """The accuracy below which it counts as guessing: three times that of chance, less for few classes."""
        chance = 1 / self.classes
        return chance + min(2 * chance, 0.2 * (1 - chance))

    @property
    def weak(self) -> bool:
        """True if it is below :attr:`bar` by at least two standard deviations, given the number of images."""
        spread = math.sqrt(self.bar * (1 - self.bar) / self.images)
        return self.accuracy + 2 * spread < self.bar

    @property
    def shuffled(self) -> bool:
        """True if the outputs distinguish the classes, but do not match the class names."""
        return self.weak and self.reordered > max(2 * self.bar, 3 * self.accuracy)
