"""Loads a definition and checks the source, the stages and the links between them.

All problems are collected first. One :class:`DefinitionError` lists each with file, line, key, value, what was
expected and the nearest known name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from pydantic import BaseModel, Field, ValidationError, field_validator

from rayddl.config import Config
from rayddl.data.config import SourceConfig
from rayddl.pipeline.definition import graph, reading
from rayddl.pipeline.definition import overrides as overriding
from rayddl.pipeline.definition.document import Document, in_unicode
from rayddl.pipeline.definition.overrides import Overrides
from rayddl.pipeline.definition.problems import Fault, Key, Problems, quoted
from rayddl.pipeline.definition.schema import Shape, booleans_for_numbers, explain
from rayddl.pipeline.definition.vocabulary import kind_hint
from rayddl.plugins import Plugin, active, few, loaded
from rayddl.stages.kinds import Kind, known
from rayddl.stages.settings import StageConfig

_Model = TypeVar("_Model", bound=BaseModel)
_RUN_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
_STAGE_NAME = re.compile(r"[a-z][a-z0-9_-]*")
_LONGEST_NAME = 200
"""Letters of the name of a run or stage: file systems take 255 bytes, and a folder's name ends in a fingerprint."""
_KINDS = "rayddl explain lists all"
_RESERVED = ("name", "seed", "source", "stages", "description", "extends")


class Top(Config):
    """The keys of a definition. Besides them, ``extends: FILE`` takes another definition as the base of this
    one.
    """

    name: str
    """Names the run and its record: small letters, digits, ``.``, ``_`` and ``-``, a letter or digit
    first."""
    seed: int = Field(default=0, ge=0)
    """Seed of everything random; stages derive their own from it."""
    source: SourceConfig
    """The real images."""
    stages: dict[str, Any] = Field(min_length=1)
    """The stages: a name of your choice for each, with its settings. A stage that names another one reads
    it."""
    description: str | None = None
    """Free text about the run."""

    @field_validator("name")
    @classmethod
    def _usable_in_a_path(cls, value: str) -> str:
        if not _RUN_NAME.fullmatch(value):
            raise ValueError("expected small letters, digits, '.', '_' and '-', with a letter or digit first")
        if len(value) > _LONGEST_NAME:
            raise ValueError(
                f"it has {len(value):,} letters; a run names its record, expected at most {_LONGEST_NAME}"
            )
        return value


@dataclass(frozen=True)
class Stage:
    """A checked stage of a definition."""

    name: str
    kind: Kind
    config: StageConfig
    """Its settings, with the defaults that depend on the stages that read it."""
    given: StageConfig
    """The same without these defaults."""
    links: graph.Links
    """For each field that names stages, the stages, with ``"*"`` replaced by the stages that it stands for."""

    @property
    def reads(self) -> tuple[str, ...]:
        """The stages whose output this one reads."""
        return graph.reads(self.links)

    @property
    def templates(self) -> tuple[str, ...]:
        """The stages that this one runs itself, with varied settings."""
        return tuple(graph.templates(self.config).values())


@dataclass(frozen=True)
class Definition:
    """A checked definition: the source of the images and the stages."""

    name: str
    seed: int
    source: SourceConfig
    stages: tuple[Stage, ...]
    """In the order written; :func:`rayddl.pipeline.plan.make` puts them in the order they run."""
    description: str | None = None
    file: str | None = None
    overrides: tuple[str, ...] = ()
    plugins: tuple[Plugin, ...] = ()
    """The plugins that were active when it was loaded."""

    def to_json(self) -> dict[str, Any]:
        """Return the definition as it would be written in one file: ``extends``, overrides and variables are
        resolved, and settings that were not given are omitted.
        """
        head: dict[str, Any] = {"name": self.name}
        if self.description is not None:
            head["description"] = self.description
        stages = {stage.name: _written(stage.config) for stage in self.stages}
        return {**head, "seed": self.seed, "source": _written(self.source), "stages": stages}


def load(
    what: str | os.PathLike[str] | Mapping[str, Any],
    overrides: Overrides = (),
    kinds: Mapping[str, Kind] | None = None,
) -> Definition:
    """Load a definition from a file, by a name in ``pipelines/``, or from a mapping. ``kinds`` are the stage kinds that
    it may use; default: all known ones.

    Raises :class:`DefinitionError` with every problem found.
    """
    problems = Problems()
    kinds = known() if kinds is None else kinds
    if isinstance(what, Mapping):
        file, document = None, reading.from_mapping(what, problems)
    else:
        path = reading.find(what)
        file, document = str(path), reading.read(path, problems)
    subject = file or "the definition"
    if not document.value:
        problems.raise_any(subject)
    document = in_unicode(overriding.apply(document, overrides, kinds, problems), problems)
    problems.settle(document.places)
    top = _top(document, problems)
    stages = _stages(document, kinds, problems)
    problems.raise_any(subject)
    if top is None:
        raise AssertionError("a definition without problems has been read")
    texts = overriding.as_text(overrides)
    return Definition(top.name, top.seed, top.source, stages, top.description, file, texts, active())


def _top(document: Document, problems: Problems) -> Top | None:
    return _checked(Top, document.value, (), document, problems)


def _stages(document: Document, kinds: Mapping[str, Kind], problems: Problems) -> tuple[Stage, ...]:
    written = document.value.get("stages")
    if not isinstance(written, dict):
        return ()
    found: dict[str, Kind | None] = {}
    configs: dict[str, StageConfig] = {}
    for name, value in written.items():
        _check_name(name, document, problems)
        found[name] = kind = _kind(name, value, kinds, document, problems)
        config = _checked(kind.config, value, ("stages", name), document, problems) if kind else None
        if config is not None:
            configs[name] = config
    return _linked(found, configs, kinds, document, problems)


def _linked(
    kinds: Mapping[str, Kind | None],
    configs: Mapping[str, StageConfig],
    known: Mapping[str, Kind],
    document: Document,
    problems: Problems,
) -> tuple[Stage, ...]:
    before = len(problems.found)
    for stage, config in configs.items():
        for fault in graph.wrong_names(stage, config, kinds, known):
            _note(document, problems, fault, ("stages", stage))
    if len(problems.found) > before:
        return ()
    links = graph.links(configs)
    _, circle = graph.order({stage: graph.reads(links[stage]) for stage in configs})
    if circle:
        text = f"stages read each other in a circle: {' → '.join(circle)}"
        _note(document, problems, Fault(("stages", circle[0]), text, "stages-in-a-circle"))
        return ()
    # Defaults depend on all readers, so they are resolved only if every stage is valid.
    whole = _resolved(configs, links) if len(configs) == len(kinds) else configs
    for stage, config in whole.items():
        needed = (*graph.reads(links[stage]), *graph.templates(config).values())
        if all(name in whole for name in needed):
            for text in config.check(graph.by_field(config, links[stage], whole)):
                _note(document, problems, Fault(("stages", stage), text, "stages-do-not-fit"))
    return tuple(
        Stage(name, kind, whole[name], configs[name], links[name])
        for name, kind in kinds.items()
        if kind and name in whole
    )


def fitted(stages: Sequence[Stage], images: int) -> tuple[Stage, ...]:
    """Return ``stages``, where settings that are not given follow the number of training ``images``."""
    given = {stage.name: stage.given for stage in stages}
    fitting = {name: config.fitted(images, given) for name, config in given.items()}
    whole = _resolved(fitting, {stage.name: stage.links for stage in stages})
    return tuple(replace(stage, config=whole[stage.name], given=fitting[stage.name]) for stage in stages)


def fits(stages: Sequence[Stage]) -> bool:
    """True if no setting of ``stages`` follows the number of training images."""
    given = {stage.name: stage.given for stage in stages}
    return all(config.fitted(1, given) is config for config in given.values())


def _resolved(configs: Mapping[str, StageConfig], links: Mapping[str, graph.Links]) -> dict[str, StageConfig]:
    """Return each stage's settings with the defaults that depend on its readers, the last reader first."""
    done: dict[str, StageConfig] = {}
    order, _ = graph.order({stage: graph.reads(links[stage]) for stage in configs})
    varied = {stage: tuple(graph.templates(config).values()) for stage, config in configs.items()}
    reading: dict[str, list[str]] = {stage: [] for stage in configs}
    for other in configs:
        for stage in dict.fromkeys((*graph.reads(links[other]), *varied[other])):
            if stage in reading:
                reading[stage].append(other)
    for stage in reversed(order):
        # A template reads with the settings of the stages that run it.
        readers = [
            reader
            for other in reading[stage]
            for reader in done.get(other, configs[other]).as_readers({n: configs[n] for n in varied[other]})
        ]
        done[stage] = configs[stage].resolved(readers)
    return {stage: done[stage] for stage in configs}


def _check_name(name: str, document: Document, problems: Problems) -> None:
    key = ("stages", name)
    if name in _RESERVED:
        text = f"{name!r} is a key of the definition itself; give the stage another name"
        _note(document, problems, Fault(key, text, "stage-name-reserved"))
    elif len(name) > _LONGEST_NAME:
        text = f"{quoted(name)} has {len(name):,} letters; a stage names its folder, expected at most {_LONGEST_NAME}"
        _note(document, problems, Fault(key, text, "stage-name-too-long"))
    elif not _STAGE_NAME.fullmatch(name):
        text = (
            f"{quoted(name)} is not a stage name; expected small letters, digits, '_' and '-', letter first"
        )
        _note(document, problems, Fault(key, text, "stage-name-malformed"))


def _kind(
    name: str, value: Any, kinds: Mapping[str, Kind], document: Document, problems: Problems
) -> Kind | None:
    key: Key = ("stages", name)
    if not isinstance(value, dict):
        text = f"{quoted(value)} is not a mapping; expected at least the key kind: {few(kinds, see=_KINDS)}"
        _note(document, problems, Fault(key, text, "stage-not-a-mapping"))
    elif "kind" not in value:
        text = f"missing; expected one of {few(kinds, see=_KINDS)}"
        _note(document, problems, Fault((*key, "kind"), text, "missing-key"))
    elif str(value["kind"]) not in kinds:
        hint = kind_hint(value["kind"], kinds, "known kinds")
        text = f"{quoted(value['kind'])} is not a stage kind; {hint}; {loaded()}"
        _note(document, problems, Fault((*key, "kind"), text, "unknown-kind"))
    else:
        return kinds[str(value["kind"])]
    return None


def _checked(
    model: type[_Model], value: Any, key: Key, document: Document, problems: Problems
) -> _Model | None:
    """Return ``value`` as a ``model``; if it is not valid, add its faults to ``problems`` and return ``None``."""
    for fault in booleans_for_numbers(value, Shape(model)):
        _note(document, problems, fault, key)
    try:
        return model.model_validate(value)
    except ValidationError as error:
        for fault in explain(error, model):
            _note(document, problems, fault, key)
    return None


def _note(document: Document, problems: Problems, fault: Fault, below: Key = ()) -> None:
    key = (*below, *fault.key)
    problems.add(document.place(key), key, fault.text, code=fault.code)


def _written(config: BaseModel) -> dict[str, Any]:
    return config.model_dump(mode="json", exclude_unset=True)
