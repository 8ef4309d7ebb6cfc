"""The shared base of the settings of all stage kinds; a kind's own settings are in its folder.

Imports neither torch nor Ray.

A field that names another stage is annotated with :class:`Reads`; these annotations define the stage graph.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BeforeValidator, Field, model_validator
from typing_extensions import Self

from rayddl.config import Config
from rayddl.data.config import Augmented, SourceConfig
from rayddl.nets.config import NetConfig
from rayddl.stages import revisions
from rayddl.stages.runtime import sizes
from rayddl.stages.runtime.capacity import Capacity
from rayddl.stages.runtime.sizes import Ask, Resources
from rayddl.storage import Folder, split


def _producer(products: Sequence[str]) -> str:
    """The products as text: ``a stage that produces experts or a teacher``."""
    named = [product if product.endswith("s") else f"a {product}" for product in products]
    return f"a stage that produces {' or '.join(named)}"


@dataclass(frozen=True)
class Reads:
    """Marks a field as the name of a stage whose output is read, with the accepted products.

    The field is a name, ``None`` (nothing is read), or a tuple of names. ``"*"`` in a tuple means every
    other stage that does not itself read this one.
    """

    produces: tuple[str, ...]
    """Values of :attr:`StageConfig.produces`."""
    added: bool = False
    """True for a field that its kind did not always have: unset, it is no part of fingerprints."""

    def fits(self, config: type[StageConfig]) -> bool:
        """True if a stage with settings of this class can be read."""
        return config.produces in self.produces

    @property
    def wanted(self) -> str:
        """The condition on the stage, for an error message."""
        return _producer(self.produces)


@dataclass(frozen=True)
class Template:
    """Marks a field as the name of a stage that this one runs itself, with varied settings.

    This stage also reads the inputs of the named stage, except other templates of this stage. A stage that is
    only a template does not run by itself; its settings are part of this stage's fingerprint.
    """

    produces: tuple[str, ...] | None = None
    """The accepted products; ``None``: any stage that declares :class:`Tunable`."""

    def fits(self, config: type[StageConfig]) -> bool:
        """True if a stage with settings of this class can be the template."""
        return config.tunable is not None if self.produces is None else config.produces in self.produces

    @property
    def wanted(self) -> str:
        """The condition on the stage, for an error message."""
        if self.produces is None:
            return "a stage that can be tuned"
        return _producer(self.produces)


Mode = Literal["max", "min"]


@dataclass(frozen=True)
class Tunable:
    """Declares for a search how trials of a kind are run, and which metrics they report."""

    metrics: Mapping[str, Mode]
    """Each metric with the direction in which it improves."""
    trials: str
    """``module:function`` of the trials' factory, which takes the search's settings and context, and returns a
    :class:`rayddl.stages.tune.trial.Trials`."""
    length: str | None = None
    """The setting for a trial's length, if trials report several times; ``None``: they report once, at the end."""
    fixed: tuple[str, ...] = ()
    """Settings that a space cannot vary, because trials would not be comparable."""


def _one_or_several(names: Any) -> Any:
    """A list of one name as that name: it changes no fingerprint."""
    return names[0] if isinstance(names, list | tuple) and len(names) == 1 else names


Observers = Annotated[
    str | Annotated[tuple[str, ...], Field(min_length=1)],
    Reads(("teacher",)),
    BeforeValidator(_one_or_several),
]
"""The type of ``observer``: the name of a teacher stage, or a list of several."""


def listed(names: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """The names in the value of a field such as ``observer``."""
    return (names,) if isinstance(names, str) else names or ()


@dataclass(frozen=True)
class FileRead:
    """A file that a stage reads and no stage of its definition has made."""

    folder: Folder
    name: str
    bytes: int


TENSORS = (".pt", ".pth", ".safetensors")
"""Endings of the files that count in a folder that a setting names."""


class StageConfig(Config):
    """The keys that every stage has."""

    produces: ClassVar[str] = ""
    """The product that other stages read: ``experts``, ``set``, ``teacher``, ``judgement`` or ``page``."""
    tunable: ClassVar[Tunable | None] = None
    """How stages of this kind are tuned; ``None`` if they cannot be tuned."""
    once_required: ClassVar[frozenset[str]] = frozenset()
    """Settings that enter the fingerprint with their default, too, because they had none at first."""
    one_at_a_time: ClassVar[str] = ""
    """Stages with the same text here run one after the other: the name of what their processes cannot share."""
    unit_count: ClassVar[str] = ""
    """The setting that is a number of units of work, where each of these is the same whatever the number is. A stage
    uses those of finished ones that differ in it alone (:attr:`Context.reusable`). Empty: there is none."""
    soft: ClassVar[bool] = False
    """True if sets of this kind are made for students of soft labels."""

    kind: str
    """What the stage does; the kinds are listed below."""
    resources: Resources = Resources()
    """CPUs, GPUs and memory of one worker, and how many workers run at the same time."""

    def check(self, reads: Mapping[str, StageConfig]) -> list[str]:
        """Problems between this stage and the stages ``reads``, given by the fields that name them."""
        del reads
        return []

    def unready(self) -> Iterable[str]:
        """Why the stage cannot run in this environment, such as a library that is not installed, and what to do.

        Asked once, before a run that has to run the stage starts anything.
        """
        return ()

    def revisions(self, source: SourceConfig) -> Sequence[str]:
        """Changes of results, since a setting's introduction, that concern this stage and not its whole kind."""
        del source
        return revisions.of_networks(self)

    def resolved(self, readers: Sequence[StageConfig]) -> StageConfig:
        """The settings with defaults filled in that depend on the stages that read this one."""
        del readers
        return self

    @property
    def reads_source(self) -> bool:
        """True if workers read files of the source themselves. Of large splits those of every kind do."""
        return False

    @property
    def read_by_workers(self) -> Mapping[str, str]:
        """Paths and URIs that workers read, by the setting that gives each, apart from the source."""
        return {}

    @property
    def images_needed(self) -> int:
        """The least number of real training images of each class without which the stage fails."""
        return 0

    def files_at(self, where: str) -> Iterator[FileRead]:
        """The files that the stage reads at ``where``, a path among its settings: that file, or those of tensors in
        that folder. Empty if there are none; raises any exception for what cannot be read, or is no such place.
        """
        whole = Folder(where)
        if whole.exists():
            found = [(whole, name) for name in sorted(whole.names()) if name.endswith(TENSORS)]
        else:
            found = [split(where)]
        yield from (FileRead(at, name, at.size(name)) for at, name in found if at.has(name))

    def varied(self, templates: Mapping[str, StageConfig]) -> Iterable[StageConfig]:
        """The settings of the stages that it runs itself, with every value that it tries."""
        return templates.values()

    def as_readers(self, templates: Mapping[str, StageConfig]) -> Sequence[StageConfig]:
        """The settings that determine what is read: this stage's own, or those of the stages that it runs."""
        del templates
        return (self,)

    def asks(self, have: Capacity) -> Sequence[Ask]:
        """The workers that must fit on the cluster ``have`` for this stage to run; they are also what the stage is
        given when several stages run at the same time.
        """
        limits = [count for count in (self.most_units, self.resources.at_once) if count is not None]
        units = min(limits, default=None)
        return (Ask("resources", sizes.spread(self.resources, have, units=units or sizes.MANY), units=units),)

    @property
    def most_units(self) -> int | None:
        """The largest number of units of work that can run at the same time; ``None`` if it is not known in advance."""
        return None

    def fitted(self, images: int, stages: Mapping[str, StageConfig]) -> Self:
        """These settings, where those that are not set follow the number of training images.

        ``stages`` are the settings of all stages, by name, as they were given.
        """
        del images, stages
        return self

    def network(self, stages: Mapping[str, StageConfig]) -> NetConfig | None:
        """The network that this stage trains, or makes its set with; ``None`` if the settings name none.

        ``stages`` are the settings of all stages, by name.
        """
        del stages
        return None

    @property
    def last_epoch(self) -> int | None:
        """The last expert epoch that this stage reads, if it reads experts."""
        return None


FEWEST_STEPS = 5
"""Steps in an epoch below which a batch counts as too large."""
SUGGESTED_STEPS = 10

_Trained = TypeVar("_Trained", bound=StageConfig)


def fitting_batch(images: int) -> int:
    """Return the largest power of two that leaves ``SUGGESTED_STEPS`` steps in an epoch of ``images``; at least 2."""
    return max(2, 1 << (max(images // SUGGESTED_STEPS, 2).bit_length() - 1))


def with_fitting_batch(config: _Trained, images: int) -> _Trained:
    """Return ``config``, whose ``batch``, if it is not set, leaves a network steps to learn in."""
    usual: int = type(config).model_fields["batch"].default
    if "batch" in config.model_fields_set or -(-images // usual) >= FEWEST_STEPS:
        return config
    return config.model_copy(update={"batch": min(usual, fitting_batch(images))})


Precision = Literal["fp32", "bf16", "tf32"]


class NetStageConfig(Augmented, StageConfig):
    """The keys of stages that train networks."""

    precision: Precision = "fp32"
    """The number format of convolutions; parameters, sums and updates are float32 in all three."""
    compile: bool | None = None
    """Compile the training steps with ``torch.compile``. Default: if the work is long enough to repay
    compilation."""


class TeamStageConfig(NetStageConfig):
    """The keys of stages that train networks which may outgrow one GPU."""

    workers: int = Field(default=1, ge=1)
    """Workers that train a network together, each with a GPU of its own, or with CPUs, on its part of every batch. The
    batches are those of one worker, and so is the result, but for rounding and dropout. ``evaluate``: students of soft
    labels, one after another."""
    min_workers: int | None = Field(default=None, ge=1)
    """The least of ``workers`` with which the team trains where no more have room: it begins with as many as fit,
    continues with fewer after the loss of a node, and grows again with the cluster. Default: all ``workers``."""

    @model_validator(mode="after")
    def _least_of_all(self) -> TeamStageConfig:
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(f"min_workers ({self.min_workers}) is above workers ({self.workers})")
        return self

    def team(self, have: Capacity) -> Ask:
        """The workers of a team on the cluster ``have``, which must run at the same time."""
        return Ask(
            "workers",
            sizes.team(self.resources, have, workers=self.workers, least=self.min_workers),
            together=True,
        )


WITHOUT_EFFECT = frozenset({"resources", "decoders", "experts_per_task", "callbacks", "min_workers"})
"""Settings that do not affect a result."""


def without_resources(config: StageConfig) -> dict[str, Any]:
    """The settings that determine the result, as JSON values: the input of the fingerprint.

    Defaults are omitted, so that a new setting with a neutral default changes no fingerprint. A change of a
    default's meaning requires a new version of the kind.
    """
    settings = config.model_dump(mode="json", exclude=set(WITHOUT_EFFECT), exclude_defaults=True)
    return settings | config.model_dump(mode="json", include=set(config.once_required))
