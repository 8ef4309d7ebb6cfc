"""Generates the reference of all keys of a definition from the types and docstrings of the settings.

``python -m rayddl.pipeline.definition.reference > docs/reference.md`` updates the documentation.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from rayddl.config import OnDisk, Registered, marks
from rayddl.pipeline.definition.load import Top
from rayddl.pipeline.definition.schema import of_field
from rayddl.stages.kinds import KINDS, Kind
from rayddl.stages.settings import Reads, StageConfig, Template

_HEAD = """\
# rayddl: every key of a definition

Generated from the settings by `python -m rayddl.pipeline.definition.reference`; [the guide](guide.md) explains how a
definition is put together. A dash in the column *default* means that nothing is set; where the default depends on
other settings, the meaning says how.
"""


def page(kinds: Mapping[str, Kind] = KINDS) -> str:
    """Return the reference as Markdown: the top level, every kind, and the groups of settings below their keys."""
    groups = groups_of([Top, StageConfig, *(kind.config for kind in kinds.values())])
    return "\n".join(
        [
            _HEAD,
            _section("The top level", Top, groups),
            _section("Every stage", StageConfig, groups),
            *(_kind(kind, groups) for kind in kinds.values()),
            *(_section(f"`{name}`", model, groups) for model, name in groups.items()),
        ]
    )


class Row(NamedTuple):
    """A key of a definition: the cells of its row, as Markdown."""

    key: str
    type: str
    default: str
    """``required``, or a dash if nothing is set."""
    meaning: str


def groups_of(models: Iterable[type[BaseModel]]) -> dict[type[BaseModel], str]:
    """Return every settings class below ``models``, with the first key that has it."""
    groups: dict[type[BaseModel], str] = {}
    for model in models:
        _gather(model, groups)
    return groups


def row(name: str, field: FieldInfo, groups: Mapping[type[BaseModel], str]) -> Row:
    """Return the description of a key."""
    return Row(name, _type(field, groups), _default(field), _markdown(field.description or ""))


def without_links(text: str) -> str:
    """Return Markdown with the texts of its links in their place."""
    return re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)


def _gather(model: type[BaseModel], groups: dict[type[BaseModel], str]) -> None:
    """Add every settings class below ``model`` to ``groups``, with the first key that has it."""
    for name, field in model.model_fields.items():
        for found in models_of(field.annotation):
            if found not in groups:
                groups[found] = name
                _gather(found, groups)


def models_of(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the settings classes in a type."""
    if isinstance(annotation, type) and get_origin(annotation) is None and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from models_of(argument)


def _kind(kind: Kind, groups: Mapping[type[BaseModel], str]) -> str:
    tunable = kind.config.tunable
    facts = f" Produces: `{kind.config.produces}`."
    facts += f" Trials of a search report {' and '.join(tunable.metrics)}." if tunable else ""
    return _section(f"`kind: {kind.name}`", kind.config, groups, facts, tuple(StageConfig.model_fields))


def _section(
    title: str,
    model: type[BaseModel],
    groups: Mapping[type[BaseModel], str],
    facts: str = "",
    without: Sequence[str] = (),
) -> str:
    rows = [_row(name, field, groups) for name, field in model.model_fields.items() if name not in without]
    table = ["| key | type | default | meaning |", "| --- | --- | --- | --- |", *rows]
    return "\n".join([f"## {title}", "", _markdown(inspect.getdoc(model) or "") + facts, "", *table, ""])


def _row(name: str, field: FieldInfo, groups: Mapping[type[BaseModel], str]) -> str:
    found = row(name, field, groups)
    cells = (f"`{name}`", *found[1:])
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _type(field: FieldInfo, groups: Mapping[type[BaseModel], str]) -> str:
    shapes = of_field(field).alternatives()
    stages: list[Reads | Template] = [*marks(field, Reads), *marks(field, Template)]
    if stages:
        one, several = (any((s.annotation is str) == single for s in shapes) for single in (True, False))
        names = "list of names of stages, each" if several else "name of"
        return f"{'name or ' if one and several else ''}{names} {stages[0].wanted}"
    below = list(dict.fromkeys(groups[model] for model in models_of(field.annotation)))
    if below:
        within = "" if any(shape.model for shape in shapes) else _container(shapes[0].annotation)
        return within + " or ".join(f"[`{name}`](#{name})" for name in below)
    path = "path or URI" if marks(field, OnDisk) else "text"
    named = bool(marks(field, Registered))
    words = (path if shape.annotation is str and not named else shape.words() for shape in shapes)
    return ", or ".join(dict.fromkeys(words))


def _container(annotation: Any) -> str:
    return "mapping of keys to " if get_origin(annotation) is dict else "list of "


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default is None:
        return "–"
    if isinstance(field.default, BaseModel):
        return "its defaults"
    return f"`{json.dumps(field.default) if not isinstance(field.default, str) else field.default}`"


def _markdown(docstring: str) -> str:
    """Return a docstring as one line of Markdown."""
    paragraphs = inspect.cleandoc(docstring).replace("``", "`").split("\n\n")
    return " ".join(" ".join(paragraph.split()) for paragraph in paragraphs)


if __name__ == "__main__":
    sys.stdout.write(page())
