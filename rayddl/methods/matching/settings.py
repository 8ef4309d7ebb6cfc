"""The settings that decide a matching run. Importing them imports no torch: definitions are checked with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from rayddl.config import Config
from rayddl.data.config import Augmented

if TYPE_CHECKING:
    import torch


class WindowRule(Config):
    """How windows are drawn.

    MTT draws a whole start epoch from {0 .. max_start_epoch - 1}. MCT draws a real one from
    [0, max_start_epoch] (continuous sampling, section 3.3); with ``continuous`` off it draws whole
    ones, which is the paper's ablation. The target lies ``expert_epochs`` later, at E at most.

    ``grow_iterations`` widens the range with the iterations (DATM's curriculum; MCT's floating upper
    bound): the upper end goes linearly from ``first_start_epoch`` to ``max_start_epoch`` over that
    many iterations.
    """

    trajectory: Literal["convex", "snapshots"] = "convex"
    """``convex``: MCT. ``snapshots``: MTT."""
    expert_epochs: float = Field(gt=0)
    """M: epochs of the expert that the student is to cover. Whole for ``snapshots``."""
    max_start_epoch: float = Field(gt=0)
    """T+: the latest epoch a window may start at (exclusive for ``snapshots``)."""
    continuous: bool = True
    """Real start epochs when ``trajectory: convex`` (MCT's continuous sampling); whole ones if false."""
    min_start_epoch: float = Field(default=0.0, ge=0)
    """The earliest epoch a window may start at (DATM's T-)."""
    first_start_epoch: float | None = Field(default=None, gt=0)
    """Where the upper end of the start range begins when it grows (DATM's T); default: it is fixed."""
    grow_iterations: int = Field(default=0, ge=0)
    """Iterations over which the upper end grows to ``max_start_epoch``."""

    def upper(self, iteration: int) -> float:
        """The upper end of the start range at ``iteration`` (counted from 0)."""
        if self.first_start_epoch is None or self.grow_iterations <= 0:
            return self.max_start_epoch
        share = min(iteration / self.grow_iterations, 1.0)
        return self.first_start_epoch + share * (self.max_start_epoch - self.first_start_epoch)

    def start(self, iteration: int, draws: torch.Generator) -> float:
        """A start epoch for ``iteration``."""
        import torch

        low, high = self.min_start_epoch, self.upper(iteration)
        share = float(torch.rand((), generator=draws, dtype=torch.float64))
        if self.continuous and self.trajectory == "convex":
            return low + share * (high - low)
        whole = max(int(high) - int(low), 1)
        return float(int(low) + min(int(share * whole), whole - 1))


class Settings(WindowRule, Augmented):
    """How synthetic images are updated. Names are the papers'."""

    syn_steps: int = Field(ge=1)
    """N: student steps on the synthetic set in one iteration."""
    batch_syn: int | None = Field(default=None, ge=1)
    """Synthetic images in one student step; default: all of them."""
    lr_image: float = Field(default=1000.0, gt=0)
    lr_lr: float = Field(default=1e-5, ge=0)
    """Rate at which the student's learning rate is learned; 0 keeps it."""
    lr_student: float | None = Field(default=None, gt=0)
    """The student's learning rate at the start; default: that of ``start_set``'s set, else 0.01."""
    momentum: float = Field(default=0.5, ge=0, lt=1)
    """Momentum of the images' and the learning rate's updates."""
    gradient: Literal["exact", "truncated", "unrolled"] = "exact"
    """``exact``: constant memory. ``truncated``: TESLA's. ``unrolled``: autograd, as MTT publishes it."""
    labels: Literal["hard", "expert", "learned"] = "hard"
    """``hard``: MTT and MCT. ``expert``: TESLA's soft labels, the softmax of the expert at the window's end.
    ``learned``: DATM's, logits that start as the experts' and are learned."""
    lr_label: float = Field(default=1.0, gt=0)
    """Rate of the label logits when ``labels: learned``."""
    start_noise: float = Field(default=0.0, ge=0)
    """Relative noise on the start parameters."""
    image_optimizer: Literal["sgd", "adam"] = "sgd"
    """``sgd`` with ``momentum``, as published; ``adam`` (0.9, 0.999) for images."""
    image_decay: float = Field(default=0.0, ge=0)
    """Weight decay on the images, towards the mean pixel of the model space."""
    clip: float | None = Field(default=None, gt=0)
    """Largest norm of the images' gradient; default: unbounded."""
    lr_space: Literal["linear", "log"] = "linear"
    """What the student's learning rate is learned as; ``linear`` is published."""
    workers: int = Field(default=1, ge=1)
    """Windows averaged in one update, each computed by a worker of its own."""
    retries: int = Field(default=3, ge=0)
    """Times a run that diverges is restored, with a tenth of the rates, before it counts as diverged."""

    @property
    def first_lr(self) -> float:
        """The student's learning rate at the start."""
        from rayddl.data.distilled import LR_STUDENT

        return self.lr_student or LR_STUDENT
