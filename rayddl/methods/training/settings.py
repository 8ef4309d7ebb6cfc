"""The settings that decide teachers and students; importing them imports no torch."""

from __future__ import annotations

import math
from typing import Any, Self

from pydantic import Field

from rayddl.config import Config
from rayddl.data.config import Augmented

HARD_EPOCHS, HARD_BATCH = 1000, 256
SOFT_EPOCHS, SOFT_LR = 300, 1e-3


class TeacherSettings(Augmented):
    """How a teacher is trained: SGD with momentum and a warmed-up cosine."""

    epochs: int = Field(default=50, ge=1)
    lr: float = Field(default=0.05, gt=0)
    """The highest learning rate: after the warm-up, from where it follows a cosine down to 0."""
    warmup: float = Field(default=5.0, ge=0)
    """Epochs of warm-up; a fifth of all where that is less."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=5e-4, ge=0)
    batch: int = Field(default=128, ge=2)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    augment: str = "crop_flip"
    """Augmentations joined by ``_``, or ``none``; a teacher's batches get all of them, one after the other.
    ``crop`` shifts by up to an eighth of a side."""

    def lr_at(self, step: int, steps_an_epoch: int) -> float:
        """The learning rate of ``step``, counted from 0: up in a straight line, then down a cosine to 0."""
        whole = self.epochs * steps_an_epoch
        rising = min(self.warmup, self.epochs / 5) * steps_an_epoch
        if step < rising:
            return self.lr * (step + 1) / (math.floor(rising) + 1)
        return self.lr * 0.5 * (1 + math.cos(math.pi * (step - rising) / (whole - rising)))


class StudentSettings(Config):
    """What can be set of students' training, by either protocol; a protocol has defaults for what is left open."""

    epochs: int | None = Field(default=None, ge=1)
    """Default: 1000 for ``hard``, 300 for ``soft``."""
    lr: float | None = Field(default=None, gt=0)
    """Learning rate. Default for ``hard``: the set's own for the set, the same for random images; for
    ``soft`` what is published for the student, mostly 0.001."""
    batch: int | None = Field(default=None, ge=1)
    """Default: 256 for ``hard``; for ``soft`` 10, 50 or 100 from IPC 1, 10 or 50 on, twice that from 100
    classes on, at most the whole set."""

    @classmethod
    def of(cls, settings: StudentSettings, **settled: Any) -> Self:
        """A protocol with what ``settings`` set, and ``settled`` in place of that."""
        given = settings.model_dump(include=set(cls.model_fields), exclude_none=True)
        return cls(**{**given, **settled})

    def at(self, lr: float | None) -> Self:
        """With the learning rate ``lr``, if there is one."""
        return self if lr is None else self.model_copy(update={"lr": lr})
