"""The settings of an expert's training. Imports no torch."""

from __future__ import annotations

from pydantic import Field

from rayddl.data.config import Augmented


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
    """Real images in one step."""

    flat_rho: float = Field(default=0.0, ge=0)
    """Flat experts (FTD, Du et al. 2023; DATM and PAD use them): every step takes the gradient at the end of a step of
    this length uphill (GSAM), which takes twice the time. Published: 0.01. 0: plain SGD."""
    flat_alpha: float = Field(default=0.3, ge=0)
    """``flat_rho``: how much of the gradient's part that is perpendicular to the one uphill is subtracted. Published:
    0.3 or 1, by data set."""

    @property
    def length(self) -> int:
        """The number of epochs, after the default has been resolved."""
        assert self.epochs is not None
        return self.epochs
