"""The hard-label protocol (MTT, section 4.1): a fresh network trained on the distilled images alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor

from rayddl.data.config import Augmented
from rayddl.data.pixels import augment
from rayddl.data.pixels.encoded import Encoded
from rayddl.methods.training.settings import HARD_BATCH, HARD_EPOCHS, StudentSettings
from rayddl.methods.training.steps import Steps, batches, one_hot, sgd
from rayddl.seeds import generator


class Protocol(StudentSettings, Augmented):
    """How a student is trained: SGD with the learning rate divided by 10 halfway, augmentation at every step."""

    epochs: int = HARD_EPOCHS
    lr: float
    batch: int = HARD_BATCH
    momentum: float = 0.9
    weight_decay: float = 5e-4

    def order(self, count: int, draws: Generator, *, never_one: bool = False) -> tuple[Tensor, ...]:
        """The indices of each batch, int64 ``[B]``, of an epoch of ``count`` images, from :func:`batches`."""
        return batches(torch.randperm(count, generator=draws), self.batch, never_one=never_one)

    def augmented(self, x: Tensor, draws: Generator) -> Tensor:
        """The batch ``x`` ``[B, C, H, W]`` after one randomly drawn augmentation."""
        return augment.apply(x, augment.draw(self.augmentations, tuple(x.shape), draws))

    def update(self, theta: Tensor, gradient: Tensor, velocity: Tensor, lr: float) -> None:
        """Take one step of SGD, in place."""
        sgd(theta, gradient, velocity, lr=lr, momentum=self.momentum, weight_decay=self.weight_decay)

    def cut_after(self, epoch: int) -> bool:
        """True if the learning rate is divided by 10 after ``epoch``, counted from 0."""
        return epoch == self.epochs // 2 + 1


def train_student(
    steps: Steps,
    protocol: Protocol,
    theta_P: Tensor,
    images: Tensor | Encoded,
    labels: Tensor,
    classes: int,
    seed: int,
    on_epoch: Callable[[int], None] = lambda _: None,
) -> Tensor:
    """The parameters ``[P]`` of a student trained on ``images`` ``[N, C, H, W]`` in model space.

    ``labels`` are int64 ``[N]`` or probabilities ``[N, K]``. As in the published code, one epoch more
    than ``protocol.epochs`` is trained, and momentum restarts at 0 when the learning rate falls. ``on_epoch``
    gets the number of finished epochs.

    With batch norm, the result is ``[P + S]``: the parameters followed by the running statistics, with
    which :func:`~rayddl.methods.training.metrics.accuracy` tests the student.
    """
    theta = theta_P.to(images.device, copy=True)
    draws = generator(seed, "student")
    lr, velocity = protocol.lr, torch.zeros_like(theta)
    statistics = steps.fresh_statistics(images.device)
    never_one = len(images) % protocol.batch == 1 and steps.needs_two(theta, images)
    for epoch in range(protocol.epochs + 1):
        for places in protocol.order(len(images), draws, never_one=never_one):
            picked = places.to(images.device)
            x = protocol.augmented(images[picked], draws)
            usual = len(picked) == min(protocol.batch, len(images))
            # Of a batch alone: those of all images are as many numbers as images times classes.
            targets = one_hot(labels[picked], classes)
            gradient, _, statistics = steps.training(theta, statistics, x, targets, usual=usual)
            protocol.update(theta, gradient, velocity, lr)
        if protocol.cut_after(epoch):
            lr, velocity = lr * 0.1, torch.zeros_like(theta)
        on_epoch(epoch + 1)
    return theta if statistics is None else torch.cat([theta, statistics])


def train_together(
    steps: Steps,
    protocol: Protocol,
    theta_SP: Tensor,
    images: Sequence[Tensor],
    labels: Sequence[Tensor],
    classes: int,
    seeds: Sequence[int],
    on_epoch: Callable[[int], None] = lambda _: None,
) -> Tensor:
    """The parameters ``[S, P]`` of S students of one network without batch norm, trained together.

    Student s equals the result of :func:`train_student` for ``theta_SP[s]``, ``images[s]``, ``labels[s]`` and
    ``seeds[s]`` up to rounding: the gradients of all S are computed in one call (``torch.vmap``), everything
    else is separate. All students must have the same number of images.
    """
    theta = theta_SP.to(images[0].device, copy=True)
    draws = [generator(seed, "student") for seed in seeds]
    lr, velocity = protocol.lr, torch.zeros_like(theta)
    for epoch in range(protocol.epochs + 1):
        orders = [protocol.order(len(images[0]), own) for own in draws]
        for places in zip(*orders, strict=True):
            picked = [each.to(theta.device) for each in places]
            shown = zip(images, picked, draws, strict=True)
            x = torch.stack([protocol.augmented(own[at], chance) for own, at, chance in shown])
            y = torch.stack([one_hot(own[at], classes) for own, at in zip(labels, picked, strict=True)])
            gradient, _ = steps.side_by_side(theta, x, y)
            protocol.update(theta, gradient, velocity, lr)
        if protocol.cut_after(epoch):
            lr, velocity = lr * 0.1, torch.zeros_like(theta)
        on_epoch(epoch + 1)
    return theta
