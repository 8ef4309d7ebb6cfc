"""What the settings of all stage kinds have in common; the kinds' own are in ``configs``.

Imports neither torch nor Ray.

A field that names another stage is marked with :class:`Reads`; those marks are the stage graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rayddl.config import Config
from rayddl.data.config import Augmented
from rayddl.stages.runtime import sizes
from rayddl.stages.runtime.capacity import Capacity
from rayddl.stages.runtime.sizes import Ask, Resources


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

    def asks(self, have: Capacity) -> Sequence[Ask]:
        """Everything that has to fit on the cluster ``have`` for this stage to run."""
        return (Ask("resources", sizes.spread(self.resources, have, units=1)),)

    @property
    def last_epoch(self) -> int | None:
        """The last expert epoch that this stage reads, if it reads experts."""
        return None


Precision = Literal["fp32", "bf16", "tf32"]


class NetStageConfig(Augmented, StageConfig):
    """The keys of stages that train networks."""

    precision: Precision = "fp32"
    """What convolutions are computed in. Parameters, sums and updates are float32 in each."""
    compile: bool | None = None
    """Compile the steps; default: where the work is long enough to pay for it."""


def without_resources(config: StageConfig) -> dict[str, Any]:
    """The settings that decide the result, as JSON values: what a fingerprint hashes.

    Defaults are left out, so that a new setting whose default changes nothing moves no folder. Whoever
    changes what a default means raises the kind's version.
    """
    apart = {"resources", "decoders", "experts_per_task"}
    return config.model_dump(mode="json", exclude=apart, exclude_defaults=True)
