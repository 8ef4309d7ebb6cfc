"""Settings of ``kind: mean``."""

from typing import ClassVar, Literal

from pydantic import Field

from rayddl.stages.settings import StageConfig, Tunable


class MeanConfig(StageConfig):
    """The mean image of each class, drawn towards the mean of all."""

    produces: ClassVar[str] = "set"
    tunable: ClassVar[Tunable | None] = Tunable({"accuracy": "max"}, "toy.mean.trials:trials")

    kind: Literal["mean"]
    shrink: float = Field(default=0.0, ge=0, le=1)
    """The part of the mean of all classes in each image."""
