"""The settings of teachers' and students' training. Imports no torch."""

from __future__ import annotations

import math
from typing import Any

from pydantic import Field
from typing_extensions import Self

from rayddl.config import Config
from rayddl.data.config import Augmented

HARD_EPOCHS, HARD_BATCH = 1000, 256
SOFT_EPOCHS, SOFT_LR = 300, 1e-3
KL = "kl"
"""The loss of the published soft-label protocol."""


def zoomed(side: int) -> int:
    """The side in pixels to which RDED's published code scales test images before it crops ``side``."""
    return side // 7 * 8 or side


def published_batch(ipc: int, classes: int, count: int) -> int:
    """The published batch for ``ipc`` images a class: 10, 50, 100 from IPC 1, 10, 50 on.

    Twice that from 100 classes on, but 100 for the 200 classes of Tiny ImageNet; at most ``count``, the
    number of images of the set.
    """
    batch = 100 if ipc >= 50 else 50 if ipc >= 10 else 10
    if classes == 200:
        batch = 100
    elif classes >= 100:
        batch *= 2
    return max(1, min(batch, count))


class TeacherSettings(Augmented):
    """How a teacher is trained: SGD with momentum, linear warm-up and cosine schedule."""

    epochs: int = Field(default=50, ge=1)
    """Epochs of training."""
    lr: float = Field(default=0.05, gt=0)
    """The highest learning rate, reached after the warm-up; from there it follows a cosine down to 0. Default: 0.05,
    and as much less as ``batch`` is smaller than 128 where it follows a small number of images."""
    warmup: float = Field(default=5.0, ge=0)
    """Epochs of linear warm-up, at most a fifth of ``epochs``."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Momentum of SGD."""
    weight_decay: float = Field(default=5e-4, ge=0)
    """Weight decay of SGD."""
    batch: int = Field(default=128, ge=2)
    """Real images in one step. Default: 128, or fewer where an epoch would have fewer than 5 steps."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Label smoothing of the cross-entropy."""
    zoom: bool | None = None
    """Test on images as RDED's published code shows them: scaled by 8/7, and the centre cut out; at 64 pixels the
    central 57. Costs much accuracy if no augmentation scales images: a teacher of ``tinyimagenet20-rded.yaml`` loses 16
    points. Default: for ``tinyimagenet`` and ``imagenet``. No effect at 8 and 32 pixels."""
    augment: str = "crop_flip"
    """Augmentations joined by ``_``, or ``none``; all of them are applied to every batch, one after the
    other. ``crop`` shifts by up to an eighth of a side."""

    def lr_at(self, step: int, steps_an_epoch: int) -> float:
        """The learning rate of ``step``, counted from 0: linear increase, then a cosine down to 0."""
        whole = self.epochs * steps_an_epoch
        rising = min(self.warmup, self.epochs / 5) * steps_an_epoch
        if step < rising:
            return self.lr * (step + 1) / (math.floor(rising) + 1)
        return self.lr * 0.5 * (1 + math.cos(math.pi * (step - rising) / (whole - rising)))


class StudentSettings(Config):
    """The settings of students' training common to both protocols; each protocol has its own defaults."""

    epochs: int | None = Field(default=None, ge=1)
    """Epochs of a student. Default: 1000 for ``hard``, 300 for ``soft``."""
    lr: float | None = Field(default=None, gt=0)
    """Learning rate. Default for ``hard``: the set's own, also for random images; for ``soft`` the published
    one of the network, mostly 0.001."""
    batch: int | None = Field(default=None, ge=1)
    """Images in one step. Default: 256 for ``hard``; for ``soft`` 10, 50 or 100 from IPC 1, 10 or 50 on,
    twice that from 100 classes on, at most the whole set."""

    @classmethod
    def of(cls, settings: StudentSettings, **settled: Any) -> Self:
        """A protocol with the values set in ``settings``, overridden by ``settled``."""
        given = settings.model_dump(include=set(cls.model_fields), exclude_none=True)
        return cls(**{**given, **settled})

    def at(self, lr: float | None) -> Self:
        """The protocol with the learning rate ``lr``; unchanged if ``lr`` is ``None``."""
        return self if lr is None else self.model_copy(update={"lr": lr})
