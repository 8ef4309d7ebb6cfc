"""Settings of ``kind: tune``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import BaseModel, BeforeValidator, Field, ValidationError, field_validator

from rayddl.config import Config
from rayddl.nets.config import NetConfig
from rayddl.plugins import suggestion
from rayddl.stages.settings import Mode, Reads, StageConfig, Template, Tunable
from rayddl.stages.tune import loggers
from rayddl.stages.tune import space as spaces
from rayddl.stages.tune.space import Entry, Settings

SAMPLES = 20


class Students(Config):
    """Short evaluations of a search whose template has none of its own."""

    net: NetConfig | None = None
    """Network of the students. Default: the one with which the set was made."""
    epochs: int = Field(default=30, ge=1)
    """Epochs of a student."""
    seeds: int = Field(default=1, ge=1)
    """Students per trial."""


class TuneConfig(StageConfig):
    """A search for the best settings of another stage, with Ray Tune."""

    produces: ClassVar[str] = "set"
    # Ray Tune finds trainables by names that are global to a process.
    one_at_a_time: ClassVar[str] = "Ray Tune"

    kind: Literal["tune"]
    of: Annotated[str, Template()]
    """The template: the stage whose settings are searched. It runs by itself only if another stage reads
    it."""
    also: Annotated[tuple[str, ...], Template(("experts",))] = ()
    """Stages read by the template whose settings vary too, as ``<stage>.<key>``."""
    space: dict[str, Entry] = Field(min_length=1)
    """What varies: keys of the template, nested ones with dots, and ``<stage>.<key>`` for ``also``."""
    metric: str = "accuracy"
    """What is optimised: a figure that trials of the template's kind report. Accuracies are of the source's held-out
    images, as in published work, and so a little high for the settings that are chosen by them."""
    mode: Mode | None = None
    """Maximise or minimise the metric. Default: whichever is better for it."""
    samples: int | None = Field(default=None, ge=1)
    """Trials; the first has the template's own settings. Default: 20, or every combination of a grid."""
    max_iterations: int | None = Field(default=None, ge=1)
    """Length of a trial in the template's iterations. Default: the template's own."""
    report_every: int | None = Field(default=None, ge=1)
    """Iterations between two reports. Default: the template's ``evaluate_every``, or an eighth of the
    length."""
    time_budget: float | None = Field(default=None, gt=0)
    """Seconds after which the search ends with the trials finished so far. Default: no limit."""
    cost_budget: float | None = Field(default=None, gt=0)
    """Seconds of work, summed over all trials, after which the search ends. Default: no limit."""
    searcher: Literal["random", "grid", "optuna"] = "optuna"
    """How settings are proposed: ``random``, ``grid``, or ``optuna``'s tree-structured Parzen estimator."""
    scheduler: Literal["none", "asha"] = "none"
    """``asha`` stops weak trials early; ``none`` lets each run to its end."""
    grace: int | None = Field(default=None, ge=1)
    """``asha``: iterations before a trial may be stopped. Default: one report."""
    reduction: int = Field(default=3, ge=2)
    """``asha``: at each rung one trial in this many continues."""
    seed: int = Field(default=0, ge=0)
    """Seed of the search's proposals; trials are seeded as the template is."""
    students: Students = Students()
    """Short evaluations of a trial's set; ``match`` has its own (``evaluate_epochs``, ``evaluate_seeds``)."""
    held_out: int = Field(default=5, ge=1)
    """Fresh seeds on which the best settings are compared with the template's own after the search."""
    tensorboard: bool = False
    """The same as ``callbacks: [tensorboard]``."""
    callbacks: Annotated[dict[str, dict[str, Any]], BeforeValidator(loggers.by_name)] = Field(
        default={}, json_schema_extra=loggers.or_names
    )
    """Ray's logger callbacks, which see every report while the search runs: a list of names among ``csv``, ``json``,
    ``tensorboard``, ``mlflow`` and ``wandb``, or a mapping of names to options, the arguments of Ray's class
    (``{mlflow: {tracking_uri: http://…}}``). Files are written below ``ray_tune`` in the stage's folder. Changes no
    result and no fingerprint."""

    @field_validator("space")
    @classmethod
    def _no_circle(cls, value: dict[str, Entry]) -> dict[str, Entry]:
        spaces.in_order(value)
        return value

    @property
    def most_units(self) -> int | None:
        """The trials, if their number is given."""
        return self.samples if self.searcher == "grid" else self.samples or SAMPLES

    @property
    def all_callbacks(self) -> loggers.Options:
        """All logger callbacks, with their options."""
        return {**({"tensorboard": {}} if self.tensorboard else {}), **self.callbacks}

    def unready(self) -> Iterator[str]:
        """Yield which callbacks cannot be made here."""
        return loggers.unready(self.all_callbacks)

    def better(self, template: StageConfig) -> Mode:
        """The direction in which the metric of ``template`` improves: ``max`` or ``min``."""
        return self.mode or tunable_of(template).metrics.get(self.metric, "max")

    def as_readers(self, templates: Mapping[str, StageConfig]) -> Sequence[StageConfig]:
        """The template's settings at the ends of the space, all of which its inputs must satisfy."""
        return [found[self.of] for found in self._tried(templates)]

    def varied(self, templates: Mapping[str, StageConfig]) -> Iterable[StageConfig]:
        """The templates, and what the space makes of them."""
        yield from templates.values()
        for found in self._tried(templates):
            yield from found.values()

    def _tried(self, templates: Mapping[str, StageConfig]) -> Iterator[Mapping[str, StageConfig]]:
        """The templates with the settings at the ends of the space, with each value where there are some."""
        if self.of not in templates or any(self._wrong_keys(templates)):
            return
        for settings in self._corners(templates):
            with suppress(ValidationError):  # ``check`` reports it
                yield configured(self, templates, settings)

    def check(self, reads: Mapping[str, StageConfig]) -> list[str]:
        """Problems of the search: unknown keys, invalid values, and contradictory settings."""
        templates = named(self, reads)
        if self.of not in templates:
            return []
        problems = [*self._wrong_keys(templates), *self._wrong_search(templates[self.of])]
        return problems or list(self._wrong_values(templates, reads))

    def _corners(self, templates: Mapping[str, StageConfig]) -> Iterator[Settings]:
        return spaces.corners(self.space, base_of(self, templates))

    def _wrong_keys(self, templates: Mapping[str, StageConfig]) -> Iterator[str]:
        for key, entry in self.space.items():
            for name in (key, *(entry.when or {})):
                problem = _unknown(self, templates, name, tuned=name == key)
                if problem:
                    yield f"space.{key}: {problem}" if name == key else f"space.{key}.when: {problem}"

    def _wrong_search(self, template: StageConfig) -> Iterator[str]:
        reported = tunable_of(template)
        if self.metric not in reported.metrics:
            yield (
                f"metric: {template.kind} does not report {self.metric!r}; "
                + suggestion(self.metric, reported.metrics, "it reports")
            )
        if reported.length is None:
            if self.scheduler != "none":
                yield f"scheduler: {self.scheduler} needs reports on the way, and {template.kind} reports at its end"
            for key in ("max_iterations", "report_every", "grace"):
                if getattr(self, key) is not None:
                    yield f"{key}: a trial of kind {template.kind} has no iterations; leave it out"
        ranges = [key for key, entry in self.space.items() if entry.values is None]
        if self.searcher == "grid" and ranges:
            yield f"searcher: a grid needs choice or grid entries, and {', '.join(ranges)} is a range"

    def _wrong_values(
        self, templates: Mapping[str, StageConfig], reads: Mapping[str, StageConfig]
    ) -> Iterator[str]:
        others = {key.removeprefix("of."): value for key, value in reads.items() if key.startswith("of.")}
        reported: set[str] = set()
        for settings in self._corners(templates):
            try:
                found = configured(self, templates, settings)
            except ValidationError as error:
                for key, text in _refused(error, settings):
                    if key not in reported:
                        yield f"space.{key}: {text}"
                    reported.add(key)
                continue
            beside = others | {
                field: found[name] for field, name in links_of(found[self.of]) if name in found
            }
            for text in found[self.of].check(beside):
                yield f"space allows {_shown(settings)}, with which {self.of!r} cannot run: {text}"
                return


def tunable_of(template: StageConfig) -> Tunable:
    """The declaration of how the template is tuned; the check of the definition refuses kinds without one."""
    assert template.tunable is not None
    return template.tunable


def named(config: TuneConfig, reads: Mapping[str, StageConfig]) -> dict[str, StageConfig]:
    """The varied stages' settings by stage name; ``reads`` has them by the fields that name them."""
    found = {config.of: reads["of"]} if "of" in reads else {}
    for i, name in enumerate(config.also):
        if f"also.{i}" in reads:
            found[name] = reads[f"also.{i}"]
    return found


def links_of(config: StageConfig) -> Iterator[tuple[str, str]]:
    """Each field of ``config`` that names one stage to read, and the stage."""
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, str) and any(isinstance(mark, Reads) for mark in field.metadata):
            yield name, value


def placed(config: TuneConfig, key: str) -> tuple[str, str]:
    """The stage of a key of the space, and the key within the stage's settings."""
    first, _, rest = key.partition(".")
    return (first, rest) if rest and first in (config.of, *config.also) else (config.of, key)


def configured(
    config: TuneConfig, templates: Mapping[str, StageConfig], settings: Settings
) -> dict[str, StageConfig]:
    """The varied stages' settings in a trial, by stage. Raises pydantic's ``ValidationError``."""
    values = {
        name: template.model_dump(mode="json", exclude_unset=True) for name, template in templates.items()
    }
    length = tunable_of(templates[config.of]).length
    if length is not None and config.max_iterations is not None:
        values[config.of][length] = config.max_iterations
    for key, value in settings.items():
        stage, path = placed(config, key)
        *parents, last = path.split(".")
        at = values[stage]
        for part in parents:
            at[part] = dict(at.get(part) or {})
            at = at[part]
        at[last] = value
    return {name: type(templates[name]).model_validate(value) for name, value in values.items()}


def base_of(config: TuneConfig, templates: Mapping[str, StageConfig]) -> Callable[[str], Any]:
    """A function that returns the templates' own value of a key."""

    def say(key: str) -> Any:
        stage, path = placed(config, key)
        value: Any = templates[stage].model_dump(mode="json")
        for part in path.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value

    return say


def _unknown(
    config: TuneConfig, templates: Mapping[str, StageConfig], key: str, *, tuned: bool
) -> str | None:
    stage, path = placed(config, key)
    template = templates[stage]
    model: type[BaseModel] | None = type(template)
    links = dict(links_of(template))
    first = path.split(".")[0]
    if "." in path and first in links.values():
        return f"{first!r} is another stage; add also: [{first}] to vary it too"
    for part in path.split("."):
        fields = model.model_fields if model else {}
        if part not in fields:
            known = [name for name in fields if name not in (*_not_tuned(template), *links)]
            hint = suggestion(part, known, "known keys", f"rayddl explain {template.kind} lists all")
            return f"unknown key of {stage!r} ({template.kind}); {hint}"
        model = _model(fields[part].annotation)
    if tuned and (first in _not_tuned(template) or first in links):
        return f"{first} of {stage!r} cannot be searched: {_why(template, first)}"
    return None


def _not_tuned(template: StageConfig) -> tuple[str, ...]:
    reported = template.tunable
    own = (*reported.fixed, *((reported.length,) if reported.length else ())) if reported else ()
    return ("kind", "resources", *own)


def _why(template: StageConfig, key: str) -> str:
    reported = template.tunable
    if reported and key == reported.length:
        return "it is the length of a trial; set max_iterations"
    if reported and key in reported.fixed:
        return "trials that are judged differently cannot be compared"
    return "it is no setting of the method"


def _model(annotation: Any) -> type[BaseModel] | None:
    options = [annotation, *get_args(annotation)]
    return next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)


def _refused(error: ValidationError, settings: Settings) -> Iterator[tuple[str, str]]:
    for details in error.errors(include_url=False, include_context=False):
        where = ".".join(str(part) for part in details["loc"])
        key = next((k for k in settings if k == where or k.endswith(f".{where}") or where.startswith(k)), "")
        text = str(details["msg"]).removeprefix("Value error, ")
        yield (
            (key, f"{settings[key]!r} is refused: {text}")
            if key
            else (", ".join(settings), f"{_shown(settings)} is refused: {text}")
        )


def _shown(settings: Settings) -> str:
    return ", ".join(f"{key}: {value}" for key, value in settings.items()) or "the template's own settings"
