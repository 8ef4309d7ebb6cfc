"""What the settings of all stage kinds have in common; the kinds' own are in ``configs``.

Imports neither torch nor Ray.

A field that names another stage is marked with :class:`Reads`; those marks are the stage graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, field_validator

from rayddl.config import Config
from rayddl.data.config import augmentation_names

DSA = "color_crop_cutout_flip_scale_rotate"


@dataclass(frozen=True)
class Reads:
    """Marks a field as the name of a stage whose output is read, and the kinds that will do.

    The field is a name, ``None`` (nothing read), or a tuple of names. ``"*"`` in a tuple stands for
    every other stage that does not itself read this one.
    """

    kinds: tuple[str, ...]


@dataclass(frozen=True)
class Template:
    """Marks a field as the name of a stage that this one runs itself, with settings of its own choice.

    What the named stage reads is read by this one, except stages that are templates of it too. A stage that
    is only a template does not run by itself; its settings are part of this one's fingerprint.
    """

    kinds: tuple[str, ...]


class Resources(Config):
    """What one worker of the stage asks Ray for. Never part of a fingerprint."""

    num_cpus: float | None = Field(default=None, gt=0)
    num_gpus: float | None = Field(default=None, ge=0)
    memory: int | None = Field(default=None, gt=0)
    """Bytes of heap."""
    at_once: int | None = Field(default=None, ge=1)
    """Units of work in flight; default: as many as the cluster's resources hold."""


@dataclass(frozen=True)
class Ask:
    """What workers of a stage ask for, and how many of them only run together."""

    key: str
    """The setting that says so."""
    resources: Resources
    together: int = 1


class StageConfig(Config):
    """The keys that every stage has."""

    kind: str
    resources: Resources = Resources()

    def check(self, reads: Mapping[str, StageConfig]) -> list[str]:
        """What is wrong between this stage and the ones it reads, by the fields that name them."""
        del reads
        return []

    def resolved(self, readers: Sequence[StageConfig]) -> StageConfig:
        """The config with defaults filled in that depend on the stages that read it."""
        del readers
        return self

    def as_readers(self, templates: Mapping[str, StageConfig]) -> Sequence[StageConfig]:
        """The settings that count for the stages this one reads: its own, or those of what it runs."""
        del templates
        return (self,)

    def asks(self) -> Sequence[Ask]:
        """Everything that workers of this stage ask for by its settings."""
        return (Ask("resources", self.resources),)

    @property
    def last_epoch(self) -> int | None:
        """The last expert epoch that this stage reads, if it reads experts."""
        return None


Precision = Literal["fp32", "bf16", "tf32"]


class NetStageConfig(StageConfig):
    """The keys of stages that train networks."""

    augment: str = DSA
    """Augmentations joined by ``_``, or ``none``; one of them is drawn for every batch."""
    precision: Precision = "fp32"
    """What convolutions are computed in. Parameters, sums and updates are float32 in each."""
    compile: bool | None = None
    """Compile the steps; default: where the work is long enough to pay for it."""

    @field_validator("augment")
    @classmethod
    def _known_augmentation(cls, value: str) -> str:
        augmentation_names(value)
        return value


def without_resources(config: StageConfig) -> dict[str, Any]:
    """The settings that decide the result, as JSON values: what a fingerprint hashes.

    Defaults are left out, so that a new setting whose default changes nothing moves no folder. Whoever
    changes what a default means raises the kind's version.
    """
    apart = {"resources", "decoders", "experts_per_task"}
    return config.model_dump(mode="json", exclude=apart, exclude_defaults=True)
