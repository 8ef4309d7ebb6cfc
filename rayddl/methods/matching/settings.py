"""The numbers that decide a matching run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rayddl.methods.matching.windows import WindowRule

Labels = Literal["hard", "expert", "learned"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How synthetic images are updated. Names are the papers'."""

    syn_steps: int
    """N: student steps per window."""
    batch_syn: int | None
    """Images per student step; ``None``: the whole set."""
    lr_image: float
    lr_lr: float
    lr_student: float
    """alpha at the start."""
    momentum: float
    image_optimizer: Literal["sgd", "adam"] = "sgd"
    """``sgd`` with ``momentum``, as published; ``adam`` (0.9, 0.999) for images."""
    image_decay: float = 0.0
    """Weight decay on the images, towards the mean pixel of the model space."""
    augment: tuple[str, ...]
    rule: WindowRule
    gradient: Literal["exact", "truncated", "unrolled"] = "exact"
    labels: Labels = "hard"
    """``hard``: one-hot (MTT, MCT). ``expert``: the softmax of the expert at the window's end (TESLA).
    ``learned``: logits that start as the experts' and are learned (DATM)."""
    lr_label: float = 0.0
    lr_space: Literal["linear", "log"] = "linear"
    """What the student's learning rate is learned as. ``linear`` is published."""
    start_noise: float = 0.0
    """Relative noise on the start parameters (MCT's code: ``noise_start``)."""
    clip: float | None = None
    """Largest L2 norm of the images' gradient; ``None``: unbounded, as published."""
    workers: int = 1
    """Windows averaged in one update."""
    retries: int = 3
    """Times that a run going astray is taken back before it counts as diverged."""
