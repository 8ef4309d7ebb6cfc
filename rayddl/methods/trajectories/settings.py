"""The settings of an expert's training. Imports no torch."""

from __future__ import annotations

import re

from pydantic import Field, model_validator

from rayddl.config import Config
from rayddl.data.config import Augmented

BUFFER = re.compile(r"replay_buffer_(\d+)\.pt")
"""Names of the published code's files of experts."""


class Curriculum(Config):
    """The images of each epoch by their EL2N scores (PAD, Li et al. 2024): easy ones first, in the end without the
    easiest. The defaults are those of PAD's published code for 100 epochs of CIFAR-10; its scores are of the same kind
    (GraNd, EL2N), averaged over networks in early training. Epochs are counted from 0.
    """

    first: float = Field(default=0.75, gt=0, le=1)
    """Share of each class, the easiest images, in epoch 0."""
    complete: int = Field(default=20, ge=1)
    """The epoch until which that share grows to all images, linearly."""
    drop: tuple[tuple[int, float], ...] = ((40, 0.1), (60, 0.2))
    """Pairs of an epoch and a share: after that epoch, this share of each class, the easiest images, is left out."""

    @model_validator(mode="after")
    def _epochs_rise(self) -> Curriculum:
        epochs = [self.complete, *(epoch for epoch, _ in self.drop)]
        if epochs != sorted(epochs) or not all(0 <= share < 1 for _, share in self.drop):
            raise ValueError(
                "drop must have rising epochs, none before complete, with shares from 0 to below 1"
            )
        return self

    def range_in(self, epoch: int) -> tuple[float, float]:
        """The share of the easiest images that is left out in ``epoch``, and the share up to which images are shown."""
        if epoch <= self.complete:
            return 0.0, min(1.0, self.first + (1 - self.first) * epoch / self.complete)
        dropped = [share for after, share in self.drop if epoch > after]
        return (dropped[-1] if dropped else 0.0), 1.0


class ExpertSettings(Augmented):
    """How an expert is trained: SGD with a constant learning rate (MTT, section 3.1)."""

    epochs: int | None = Field(default=None, ge=1)
    """E: epochs of each expert. Default: 50 for ``keep: convex``, whose end point is the last epoch;
    for ``keep: all`` the ``max_start_epoch + expert_epochs`` of the stages that read it."""
    lr: float = Field(default=0.01, gt=0)
    """Learning rate, constant over the epochs."""
    momentum: float = Field(default=0.0, ge=0, lt=1)
    """Momentum of SGD."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Weight decay of SGD."""
    batch: int = Field(default=256, ge=1)
    """Real images in one step. Default: 256, or fewer where an epoch would have fewer than 5 steps."""

    flat_rho: float = Field(default=0.0, ge=0)
    """Flat experts (FTD, Du et al. 2023; DATM and PAD use them): every step takes the gradient at the end of a step
    uphill (adaptive GSAM), in which this is the norm of the parameters' relative changes. It takes twice the time.
    Published: 0.01. 0: plain SGD."""
    flat_alpha: float = Field(default=0.3, ge=0)
    """``flat_rho``: how much of the gradient's part that is perpendicular to the one uphill is subtracted. Published:
    0.3 or 1, by data set."""

    curriculum: Curriculum | None = None
    """Which images each epoch has (PAD). Needs ``scores``. Default: all, in random order."""

    @property
    def length(self) -> int:
        """The number of epochs, after the default has been resolved."""
        assert self.epochs is not None
        return self.epochs
