"""Settings of ``kind: evaluate``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rayddl.nets.config import NetConfig
from rayddl.stages.config import NetStageConfig, Reads


class EvaluateConfig(NetStageConfig):
    """Students trained on the distilled set, beside random real images (hard-label protocol)."""

    kind: Literal["evaluate"]
    set: Annotated[str, Reads(("match",))]
    nets: tuple[NetConfig, ...] | None = Field(default=None, min_length=1)
    """Networks to train; default: the one that the set was made with."""
    seeds: int = Field(default=5, ge=1)
    """Students per net and set."""
    epochs: int = Field(default=1000, ge=1)
    lr: float | None = Field(default=None, gt=0)
    """Learning rate; default: the set's own for the set, the same for random images."""
    batch: int = Field(default=256, ge=1)
    random: bool = True
    """Also train on as many random real images, a fresh draw per seed."""
    whole: bool = False
    """Also train on the whole train split."""
    whole_epochs: int = Field(default=50, ge=1)
