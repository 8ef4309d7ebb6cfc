"""The graph of stages, from the ``Reads`` and ``Template`` marks in the settings classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import TypeAlias

from rayddl.config import marks
from rayddl.pipeline.definition.problems import Fault
from rayddl.plugins import suggestion
from rayddl.stages.kinds import Kind
from rayddl.stages.settings import Reads, StageConfig, Template

EVERY = "*"
Links: TypeAlias = dict[str, tuple[str, ...]]
"""For each field of a stage that names stages, their names. A stage that a template reads is listed under both
fields: ``of.experts``."""


def fields(
    config: StageConfig, mark: type[Reads] | type[Template] = Reads
) -> Iterator[tuple[str, tuple[str, ...], Reads | Template]]:
    """Yield each field of ``config`` that names stages, with the names and the mark."""
    for name, wanted in _marked(type(config), mark):  # type: ignore[arg-type]  # classes are hashable
        value = getattr(config, name)
        if value is None and isinstance(wanted, Reads) and wanted.added:
            continue
        names = () if value is None else (value,) if isinstance(value, str) else tuple(value)
        yield name, names, wanted


@cache
def _marked(
    model: type[StageConfig], mark: type[Reads] | type[Template]
) -> tuple[tuple[str, Reads | Template], ...]:
    """The fields of a kind of stage that have the mark, found once: a definition may have thousands of stages."""
    return tuple((name, each) for name, field in model.model_fields.items() for each in marks(field, mark))


def templates(config: StageConfig) -> dict[str, str]:
    """Return the stages that ``config`` runs as templates, by the field that names each: ``of``, ``also.0`` …"""
    found: dict[str, str] = {}
    for field, names, _ in fields(config, Template):
        single = isinstance(getattr(config, field), str)
        found |= {field if single else f"{field}.{i}": name for i, name in enumerate(names)}
    return found


def wrong_names(
    stage: str, config: StageConfig, kinds: Mapping[str, Kind | None], known: Mapping[str, Kind]
) -> Iterator[Fault]:
    """Yield a fault for each wrong name of a stage in the settings of ``stage``.

    ``kinds`` holds the kind of every stage, ``None`` for a kind that is not in ``known``.
    """
    for field, names, mark in (*fields(config), *fields(config, Template)):
        fitting = [name for name, kind in kinds.items() if kind and mark.fits(kind.config) and name != stage]
        able = [kind.name for kind in known.values() if mark.fits(kind.config)]
        wanted = f"{mark.wanted} (kind {' or '.join(able)})"
        for name in names:
            if name == EVERY:
                continue
            if name == stage:
                yield Fault((field,), f"{name!r} is this stage itself; expected {wanted}", "reads-itself")
            elif name not in kinds:
                hint = suggestion(name, fitting, "stages that would do")
                yield Fault(
                    (field,), f"there is no stage {name!r}; expected {wanted}; {hint}", "unknown-stage"
                )
            elif (kind := kinds[name]) and not mark.fits(kind.config):
                hint = suggestion(name, fitting, "stages that would do")
                yield Fault(
                    (field,),
                    f"{name!r} is of kind {kind.name}; expected {wanted}; {hint}",
                    "stage-of-another-kind",
                )


def links(configs: Mapping[str, StageConfig]) -> dict[str, Links]:
    """Return the links of every stage, with ``"*"`` replaced by stages.

    ``"*"`` stands for every other stage that runs, has a fitting product and does not depend on this stage.
    """
    named = _named(configs)
    starred = {stage for stage, config in configs.items() if any(EVERY in n for _, n, _ in fields(config))}
    not_run = idle(configs)
    result: dict[str, Links] = {}
    for stage, config in configs.items():
        excluded = {stage, *_readers(stage, named), *starred, *not_run}
        result[stage] = dict(named[stage])
        for field, names, mark in fields(config):
            every = [n for n, c in configs.items() if mark.fits(type(c)) and n not in excluded]
            chosen = [x for name in names for x in (every if name == EVERY else [name])]
            result[stage][field] = tuple(dict.fromkeys(chosen))
    return result


def idle(configs: Mapping[str, StageConfig]) -> set[str]:
    """Return the stages that are only templates: no stage that runs reads them by name."""
    named = _named(configs)
    found = {name for config in configs.values() for name in templates(config).values()}
    while True:
        wanted = {name for stage in configs if stage not in found for name in reads(named[stage])}
        if not found & wanted:
            return found
        found -= wanted


def _named(configs: Mapping[str, StageConfig]) -> dict[str, Links]:
    """Return the links of every stage that are given by name, without ``"*"``."""
    own = {
        stage: {field: tuple(n for n in names if n != EVERY) for field, names, _ in fields(config)}
        for stage, config in configs.items()
    }
    found: dict[str, Links] = {}
    for stage, config in configs.items():
        varied = templates(config)
        found[stage] = dict(own[stage])
        for place, template in varied.items():
            for field, names in own.get(template, {}).items():
                single = isinstance(getattr(configs[template], field), str)
                for i, name in enumerate(names):
                    if name not in (stage, *varied.values()):
                        found[stage][f"{place}.{field}" if single else f"{place}.{field}.{i}"] = (name,)
    return found


def reads(links_of_stage: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Return the stages that a stage reads, each once."""
    return tuple(dict.fromkeys(name for names in links_of_stage.values() for name in names))


def by_field(
    config: StageConfig, links_of_stage: Links, configs: Mapping[str, StageConfig]
) -> dict[str, StageConfig]:
    """Return the settings of the stages read and of the templates, by the field that names each: ``experts``,
    or ``of.0``, ``of.1`` … for a list of names.
    """
    found = {place: configs[name] for place, name in templates(config).items()}
    for field, names in links_of_stage.items():
        single = "." in field or isinstance(getattr(config, field), str)
        found |= {field if single else f"{field}.{i}": configs[name] for i, name in enumerate(names)}
    return found


def order(graph: Mapping[str, Sequence[str]]) -> tuple[list[str], list[str]]:
    """Return the stages in an order in which each follows all that it reads; otherwise in their written order.

    The second list is a cycle, ``[a, b, a]``, or empty.
    """
    done: list[str] = []
    waiting = list(graph)
    while waiting:
        ready = next((s for s in waiting if all(r in done or r not in graph for r in graph[s])), None)
        if ready is None:
            return done, _circle(graph, waiting)
        done.append(ready)
        waiting.remove(ready)
    return done, []


def _circle(graph: Mapping[str, Sequence[str]], waiting: Sequence[str]) -> list[str]:
    path = [waiting[0]]
    while True:
        following = next(name for name in graph[path[-1]] if name in waiting)
        if following in path:
            return [*path[path.index(following) :], following]
        path.append(following)


def _readers(stage: str, named: Mapping[str, Links]) -> set[str]:
    """Return the stages that read ``stage``, directly or through others."""
    found: set[str] = set()
    growing = {stage}
    while growing:
        growing = {s for s, fields_ in named.items() if growing & set(reads(fields_))} - found
        found |= growing
    return found
