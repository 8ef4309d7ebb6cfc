"""The reference of all keys of a definition, as Markdown, from the types and docstrings of the settings.

``python -m rayddl.pipeline.definition.reference > docs/reference.md`` renews the page of the documentation.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from rayddl.config import OnDisk
from rayddl.data.config import SourceConfig
from rayddl.nets.config import NetConfig
from rayddl.pipeline.definition.load import Top
from rayddl.pipeline.definition.schema import marks, of_field
from rayddl.stages.kinds import KINDS, Kind
from rayddl.stages.runtime.sizes import Resources
from rayddl.stages.settings import Reads, StageConfig, Template
from rayddl.stages.tune.settings import Students
from rayddl.stages.tune.space import Entry

_HEAD = """\
# rayddl: every key of a definition

Generated from the settings by `python -m rayddl.pipeline.definition.reference`; [the guide](guide.md) explains how a
definition is put together. A dash in the column *default* means that nothing is set; where the default depends on
other settings, the meaning says how.
"""
_SHARED: dict[type[BaseModel], str] = {
    SourceConfig: "source",
    NetConfig: "net",
    Resources: "resources",
    Students: "students",
    Entry: "space",
}
"""Settings that several keys take, or that stand below one key, and the key their section is named for."""


def page(kinds: Mapping[str, Kind] = KINDS) -> str:
    """The reference of the top level, the groups of settings and every kind, as Markdown."""
    sections = [
        _section("The top level", Top),
        _section("`source`", SourceConfig),
        _section("Every stage", StageConfig),
        *(_section(f"`kind: {kind.name}`", kind.config, _facts(kind.config)) for kind in kinds.values()),
        *(_section(f"`{name}`", model) for model, name in _SHARED.items() if model is not SourceConfig),
    ]
    return "\n".join([_HEAD, *sections])


def _section(title: str, model: type[BaseModel], facts: str = "") -> str:
    common = StageConfig.model_fields if facts else {}
    rows = [_row(name, field) for name, field in model.model_fields.items() if name not in common]
    table = ["| key | type | default | meaning |", "| --- | --- | --- | --- |", *rows]
    return "\n".join([f"## {title}", "", _markdown(inspect.getdoc(model) or "") + facts, "", *table, ""])


def _facts(config: type[StageConfig]) -> str:
    metrics = f" Trials of a search report {' and '.join(config.tunable.metrics)}." if config.tunable else ""
    return f" Produces: `{config.produces}`.{metrics}"


def _row(name: str, field: FieldInfo) -> str:
    cells = (f"`{name}`", _type(field), _default(field), _markdown(field.description or ""))
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _type(field: FieldInfo) -> str:
    shapes = of_field(field).alternatives()
    stages: list[Reads | Template] = [*marks(field, Reads), *marks(field, Template)]
    if stages:
        several = any(shape.annotation is not str for shape in shapes)
        return f"{'list of names of stages, each' if several else 'name of'} {stages[0].wanted}"
    groups = list(dict.fromkeys(_groups(field.annotation)))
    if groups:
        within = "" if any(shape.model for shape in shapes) else _container(shapes[0].annotation)
        return within + " or ".join(f"[`{name}`](#{name})" for name in groups)
    path = "path or URI" if marks(field, OnDisk) else "text"
    return ", or ".join(dict.fromkeys(path if s.annotation is str else s.words() for s in shapes))


def _container(annotation: Any) -> str:
    return "mapping of keys to " if get_origin(annotation) is dict else "list of "


def _groups(annotation: Any) -> Iterator[str]:
    if annotation in _SHARED:
        yield _SHARED[annotation]
    for argument in get_args(annotation):
        yield from _groups(argument)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default is None:
        return "–"
    if isinstance(field.default, BaseModel):
        return "its defaults"
    return f"`{json.dumps(field.default) if not isinstance(field.default, str) else field.default}`"


def _markdown(docstring: str) -> str:
    """The text of a docstring: its lines joined within a paragraph, code in Markdown's quotes."""
    paragraphs = inspect.cleandoc(docstring).replace("``", "`").split("\n\n")
    return " ".join(" ".join(paragraph.split()) for paragraph in paragraphs)


if __name__ == "__main__":
    sys.stdout.write(page())
