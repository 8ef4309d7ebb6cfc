"""The settings of a matching run. Imports no torch, because definitions are checked with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from rayddl.config import Config
from rayddl.data.config import Augmented

if TYPE_CHECKING:
    import torch

GPU_PART = 128 << 20
"""Bytes of batches and parameter vectors up to which a GPU computes a student's steps together."""
KEPT = 1 << 30
"""Bytes of long convolutions that N steps of a student keep for the way back on a CPU, each a Nth of it or nothing."""


class WindowRule(Config):
    """How windows are drawn (MTT, section 3.2; MCT, section 3).

    MTT draws an integer start epoch from {0 .. max_start_epoch - 1}. MCT draws a real one from
    [0, max_start_epoch] (continuous sampling, section 3.3); without ``continuous`` it draws integers,
    the paper's ablation. The target is ``expert_epochs`` later, at most at E.

    With ``grow_iterations`` the range grows (DATM's curriculum; MCT's floating upper bound): its upper
    end increases linearly from ``first_start_epoch`` to ``max_start_epoch`` over that many
    iterations.
    """

    trajectory: Literal["convex", "snapshots"] = "convex"
    """``convex``: MCT's convexified trajectory. ``snapshots``: the experts' own parameters (MTT)."""
    expert_epochs: float = Field(default=2.0, gt=0)
    """M: epochs of the expert between a window's start and its target (MTT section 3.2). Whole for
    ``snapshots``. Default: 2, or as many as have about 70 steps of an expert where there are few images."""
    max_start_epoch: float = Field(default=2.0, gt=0)
    """T+: the latest epoch at which a window may start (exclusive for ``snapshots``). Default: 2, or as many as have
    about 150 steps of an expert where there are few images."""
    continuous: bool = True
    """``convex``: draw real-valued start epochs (MCT section 3.3, continuous sampling); false draws whole
    ones."""
    min_start_epoch: float = Field(default=0.0, ge=0)
    """The earliest epoch at which a window may start (DATM's T-)."""
    first_start_epoch: float | None = Field(default=None, gt=0)
    """The upper end of the start range in iteration 0, if the range grows (DATM's T). Default: it does not
    grow."""
    grow_iterations: int = Field(default=0, ge=0)
    """Iterations over which the upper end of the start range grows to ``max_start_epoch``."""

    def upper(self, iteration: int) -> float:
        """The upper end of the start range, in epochs, at ``iteration`` (counted from 0)."""
        if self.first_start_epoch is None or self.grow_iterations <= 0:
            return self.max_start_epoch
        share = min(iteration / self.grow_iterations, 1.0)
        return self.first_start_epoch + share * (self.max_start_epoch - self.first_start_epoch)

    def start(self, iteration: int, draws: torch.Generator) -> float:
        """The start epoch drawn for ``iteration``."""
        import torch

        low, high = self.min_start_epoch, self.upper(iteration)
        share = float(torch.rand((), generator=draws, dtype=torch.float64))
        if self.continuous and self.trajectory == "convex":
            return low + share * (high - low)
        whole = max(int(high) - int(low), 1)
        return float(int(low) + int(share * whole))


class Settings(WindowRule, Augmented):
    """The settings of the matching loop, named as in the papers."""

    syn_steps: int = Field(default=20, ge=1)
    """N: student steps on the synthetic set in one iteration (MTT section 3.2)."""
    batch_syn: int | None = Field(default=None, ge=1)
    """Synthetic images in one student step (MTT section 3.3). Default: all of them."""
    keep_remainder: bool = False
    """Train on the smaller batch that remains of a pass over the set, at the pass's start, as in the published
    code. Without it, those images wait for the next pass, and all steps have one shape."""
    lr_image: float = Field(default=1000.0, gt=0)
    """Learning rate of the synthetic images. Default: 1000, or less where few images make windows short. The codes of
    TESLA and MCT give images half of the truncated gradient: their ``lr_img: 1000`` is 500 here with ``gradient:
    truncated``, and about 700 with ``exact``."""
    lr_lr: float = Field(default=1e-5, ge=0, le=1)
    """Learning rate of the student's learning rate; 0 keeps that constant. Default: 1e-5, or less where few images make
    windows short."""
    lr_student: float | None = Field(default=None, gt=0)
    """The student's learning rate in iteration 0. Default: that of the set of ``start_set``, else 0.01."""
    momentum: float = Field(default=0.5, ge=0, lt=1)
    """Momentum of the updates of the images and of the student's learning rate."""
    gradient: Literal["exact", "truncated", "unrolled"] = "exact"
    """``exact``: the whole meta-gradient in the memory of one step. ``truncated``: TESLA's. ``unrolled``:
    autograd through all steps, as MTT's code does."""
    skip_layers: int = Field(default=0, ge=0)
    """Leave the parameters of this many layers, from the input, out of the matching loss (PAD's information
    embedding): the student trains them, but nothing compares them."""
    depth_ratio: float = Field(default=0.0, ge=0, lt=1)
    """The same for this share of all parameters, as PAD's published code counts depth: of the 320,010 of ``convnet`` at
    32 pixels, the first layer has 1 % and the first two have 47 %. Published for CIFAR-10 at IPC 10: 0.5."""
    threshold: float | None = Field(default=None, gt=0)
    """Leave images, labels and learning rate as they are in iterations whose matching loss is larger: such a student
    ends farther from the target than it started. 1 in the codes of DATM and PAD. Default: no iteration is left out."""
    labels: Literal["hard", "expert", "learned"] = "hard"
    """``hard``: class indices (MTT, MCT). ``expert``: softmax of the expert at the window's end (TESLA).
    ``learned``: logits that start as the experts' and are learned (DATM)."""
    lr_label: float = Field(default=1.0, gt=0)
    """``labels: learned``: learning rate of the label logits."""
    momentum_label: float | None = Field(default=None, ge=0, lt=1)
    """``labels: learned``: momentum of the label logits' updates; 0.9 in DATM and PAD. Default: ``momentum``."""
    start_noise: float = Field(default=0.0, ge=0)
    """Standard deviation of noise on a window's start parameters, relative to theirs."""
    image_optimizer: Literal["sgd", "adam"] = "sgd"
    """``sgd`` with ``momentum``, as published; ``adam`` (0.9, 0.999) for images."""
    image_decay: float = Field(default=0.0, ge=0)
    """Weight decay of the images, towards the mean pixel of the pixel space."""
    image_ema: float | None = Field(default=None, ge=0, lt=1)
    """Evaluate and keep the moving average of the images over the iterations in place of the last ones (FTD): after
    each update it is ``image_ema`` times itself and 1 - ``image_ema`` times the images; it begins as the initial ones.
    Matching continues with the images themselves. FTD's values are from 0.999 to 0.9999. Default: no average."""
    clip: float | None = Field(default=None, gt=0)
    """Largest norm of the images' gradient. Default: not clipped."""
    lr_space: Literal["linear", "log"] = "linear"
    """Learn the student's learning rate itself (``linear``, as published) or its logarithm (``log``)."""
    workers: int = Field(default=1, ge=1)
    """Windows averaged in one update, each computed by its own worker."""
    retries: int = Field(default=3, ge=0)
    """Restarts from the last good state, with a tenth of the learning rates, before a run counts as
    diverged."""

    def method_name(self, flat: bool = False) -> str:
        """The name of the method that these settings are: MTT, FTD, TESLA, DATM, PAD or MCT.

        ``flat``: the experts are flat ones (FTD). MCT with a part of another method is named after both, as in
        ``MCT+DATM``. A growing range of start epochs is DATM's and MCT's, the truncated gradient TESLA's and MCT's.
        """
        convex = self.trajectory == "convex"
        if self.labels == "learned" or (self.first_start_epoch is not None and not convex):
            other = "PAD" if self.skip_layers or self.depth_ratio else "DATM"
        elif self.labels == "expert" or (self.gradient == "truncated" and not convex):
            other = "TESLA"
        elif flat:
            other = "FTD"
        else:
            return "MCT" if convex else "MTT"
        return f"MCT+{other}" if convex else other

    @property
    def first_lr(self) -> float:
        """The student's learning rate in iteration 0."""
        from rayddl.data.distilled import LR_STUDENT

        return self.lr_student or LR_STUDENT
