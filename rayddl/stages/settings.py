"""What the settings of all stage kinds have in common; a kind's own stand in its folder.

Imports neither torch nor Ray.

A field that names another stage is marked with :class:`Reads`; those marks are the stage graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from rayddl.config import Config
from rayddl.data.config import Augmented
from rayddl.nets.config import NetConfig
from rayddl.stages.runtime import sizes
from rayddl.stages.runtime.capacity import Capacity
from rayddl.stages.runtime.sizes import Ask, Resources


def _producer(products: Sequence[str]) -> str:
    """``a stage that produces experts or a teacher``."""
    named = [product if product.endswith("s") else f"a {product}" for product in products]
    return f"a stage that produces {' or '.join(named)}"


@dataclass(frozen=True)
class Reads:
    """Marks a field as the name of a stage whose output is read, with the products that will do.

    The field is a name, ``None`` (nothing read), or a tuple of names. ``"*"`` in a tuple stands for
    every other stage that does not itself read this one.
    """

    produces: tuple[str, ...]
    """Values of :attr:`StageConfig.produces`."""

    def fits(self, config: type[StageConfig]) -> bool:
        """True if a stage with settings of this class can be read."""
        return config.produces in self.produces

    @property
    def wanted(self) -> str:
        """What the stage must be, for an error message."""
        return _producer(self.produces)


@dataclass(frozen=True)
class Template:
    """Marks a field as the name of a stage that this one runs itself, with settings of its own choice.

    What the named stage reads is read by this one, except stages that are templates of it too. A stage that
    is only a template does not run by itself; its settings are part of this one's fingerprint.
    """

    produces: tuple[str, ...] | None = None
    """The products that will do; ``None``: any stage that declares how it is tuned."""

    def fits(self, config: type[StageConfig]) -> bool:
        """True if a stage with settings of this class can be the template."""
        return config.tunable is not None if self.produces is None else config.produces in self.produces

    @property
    def wanted(self) -> str:
        """What the stage must be, for an error message."""
        if self.produces is None:
            return "a stage that can be tuned"
        return _producer(self.produces)


Mode = Literal["max", "min"]


@dataclass(frozen=True)
class Tunable:
    """How trials of a kind are run, and what they report: what a search has to know of the kind."""

    metrics: Mapping[str, Mode]
    """Each metric, and whether more or less of it is better."""
    trials: str
    """``module:function`` that makes the trials; it is called with the search's settings and context, and returns
    a :class:`rayddl.stages.tune.trial.Trials`."""
    length: str | None = None
    """The setting that says how long a trial is, where it reports on its way; else it reports once."""
    fixed: tuple[str, ...] = ()
    """Settings that a space cannot change: with them, trials could not be compared."""


class StageConfig(Config):
    """The keys that every stage has."""

    produces: ClassVar[str] = ""
    """What other stages read of it: ``experts``, ``set``, ``teacher``, ``judgement`` or ``page``."""
    tunable: ClassVar[Tunable | None] = None
    """How stages of this kind are tuned; ``None`` where they cannot be."""
    soft: ClassVar[bool] = False
    """True if a set of this kind is made for students that learn from soft labels."""

    kind: str
    """What the stage does; the kinds are listed below."""
    resources: Resources = Resources()
    """CPUs, GPUs and memory of one worker, and how many workers run at the same time."""

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

    def network(self, stages: Mapping[str, StageConfig]) -> NetConfig | None:
        """The network that this stage trains, or makes its set with; ``None`` where the settings name none.

        ``stages`` are the settings of all stages, by name.
        """
        del stages
        return None

    @property
    def last_epoch(self) -> int | None:
        """The last expert epoch that this stage reads, if it reads experts."""
        return None


Precision = Literal["fp32", "bf16", "tf32"]


class NetStageConfig(Augmented, StageConfig):
    """The keys of stages that train networks."""

    precision: Precision = "fp32"
    """The number format of convolutions; parameters, sums and updates are float32 in all three."""
    compile: bool | None = None
    """Compile the training steps with ``torch.compile``. Default: if the work is long enough to repay
    compilation."""


def without_resources(config: StageConfig) -> dict[str, Any]:
    """The settings that decide the result, as JSON values: what a fingerprint hashes.

    Defaults are left out, so that a new setting whose default changes nothing moves no folder. Whoever
    changes what a default means raises the kind's version.
    """
    apart = {"resources", "decoders", "experts_per_task"}
    return config.model_dump(mode="json", exclude=apart, exclude_defaults=True)
