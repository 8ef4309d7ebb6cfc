"""The hard-label protocol (MTT, section 4.1): a fresh network trained on the distilled images alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rayddl.data import augment
from rayddl.seeds import generator
from rayddl.training.steps import Steps, one_hot, sgd


@dataclass(frozen=True)
class Protocol:
    """How a student is trained: SGD, the rate cut to a tenth halfway, augmentation at every step."""

    epochs: int
    lr: float
    augment: tuple[str, ...]
    batch: int = 256
    momentum: float = 0.9
    weight_decay: float = 5e-4


def train_student(
    steps: Steps, protocol: Protocol, theta_P: Tensor, images: Tensor, labels: Tensor, classes: int, seed: int
) -> Tensor:
    """The parameters ``[P]`` of a student trained on ``images`` ``[N, C, H, W]`` in model space.

    ``labels`` are int64 ``[N]`` or probabilities ``[N, K]``. As in the published code, one epoch more
    than ``protocol.epochs`` is trained, and the cut starts with fresh momentum.

    With batch norm, ``theta_P`` and what is returned differ: behind the parameters come the running
    statistics, ``[P + S]``, by which :func:`~rayddl.training.metrics.accuracy` tests the student.
    """
    theta = theta_P.to(images.device, copy=True)
    targets = one_hot(labels, classes)
    draws = generator(seed, "student")
    lr, velocity = protocol.lr, torch.zeros_like(theta)
    statistics = steps.fresh_statistics(images.device)
    for epoch in range(protocol.epochs + 1):
        for picked in torch.randperm(len(images), generator=draws).to(images.device).split(protocol.batch):
            x = images[picked]
            x = augment.apply(x, augment.draw(protocol.augment, tuple(x.shape), draws))
            usual = len(picked) == min(protocol.batch, len(images))
            gradient, _, statistics = steps.training(theta, statistics, x, targets[picked], usual=usual)
            sgd(
                theta, gradient, velocity,
                lr=lr, momentum=protocol.momentum, weight_decay=protocol.weight_decay,
            )  # fmt: skip
        if epoch == protocol.epochs // 2 + 1:
            lr, velocity = lr * 0.1, torch.zeros_like(theta)
    return theta if statistics is None else torch.cat([theta, statistics])
