"""``rayddl explain``: the reference of keys, for a terminal, from the same descriptions as ``docs/reference.md``."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Mapping

from pydantic import BaseModel

from rayddl.data.config import SourceConfig
from rayddl.errors import UserError
from rayddl.pipeline.definition import reference
from rayddl.pipeline.definition.load import Top
from rayddl.pipeline.definition.vocabulary import key_hint, kind_hint
from rayddl.plugins import few
from rayddl.stages.kinds import Kind, known
from rayddl.stages.settings import StageConfig

_WIDTH = 100


def names(kinds: Mapping[str, Kind] | None = None) -> list[str]:
    """What can be explained: kinds, ``source``, ``definition``, and groups of settings such as ``net``."""
    return list(_topics(known() if kinds is None else kinds))


def explain(what: str = "", kinds: Mapping[str, Kind] | None = None, width: int = _WIDTH) -> str:
    """The explanation of a kind (``match``), one of its keys (``match.ipc``, ``match.resources.num_gpus``), the
    ``source`` or a group of settings; without a name, the list of all of them. Lines have at most ``width`` characters.

    Raises :class:`UserError` with the nearest name.
    """
    topics = _topics(known() if kinds is None else kinds)
    if not what:
        return "\n".join(
            [
                *_columns({name: _first(model) for name, model in topics.items()}, width),
                "",
                "rayddl explain NAME lists the keys of one of them, rayddl explain NAME.KEY explains one key",
            ]
        )
    first, *path = what.split(".")
    if first not in topics:
        key = path[0] if path else first
        having = [name for name, model in topics.items() if key in model.model_fields]
        hints = [kind_hint(first, topics, "known names")] if path or not having else []
        if having:
            hints.append(f"{key} is a key of {few(having)}: rayddl explain {having[0]}.{key}")
        raise UserError(f"{first!r}: {'; '.join(hints)}", code="nothing-to-explain")
    model, groups = topics[first], reference.groups_of(topics.values())
    for position, key in enumerate(path):
        field = model.model_fields.get(key)
        if field is None:
            place = ".".join([first, *path[:position]])
            raise UserError(
                f"{place} has no key {key!r}; {key_hint(key, model.model_fields, 'its keys', place)}",
                code="nothing-to-explain",
            )
        below = list(reference.models_of(field.annotation))
        if position == len(path) - 1:
            keys = [text for found in below for text in ("", *_keys(found, groups, width))]
            return "\n".join([*_key(what, reference.row(key, field, groups), width), *keys])
        if not below:
            raise UserError(
                f"{'.'.join([first, *path[: position + 1]])} has no keys", code="nothing-to-explain"
            )
        model = below[0]
    return "\n".join([*_wrapped(inspect.getdoc(model) or "", width), "", *_keys(model, groups, width)])


def _topics(kinds: Mapping[str, Kind]) -> dict[str, type[BaseModel]]:
    models: dict[str, type[BaseModel]] = {"definition": Top, "source": SourceConfig}
    models |= {name: kind.config for name, kind in kinds.items()}
    below = reference.groups_of([StageConfig, *models.values()])
    return models | {name: model for model, name in below.items() if name not in models}


def _keys(model: type[BaseModel], groups: Mapping[type[BaseModel], str], width: int) -> list[str]:
    rows = [reference.row(name, field, groups) for name, field in model.model_fields.items()]
    return [line for row in rows for line in _key(row.key, row, width)]


def _key(name: str, row: reference.Row, width: int) -> list[str]:
    default = (
        "required" if row.default == "required" else f"default {row.default}" if row.default != "–" else ""
    )
    head = f"{name}: {', '.join(filter(None, (row.type, default)))}"
    return [
        *_lines(_bare(head), width, "  ", "      "),
        *_lines(_bare(row.meaning), width, "      ", "      "),
    ]


def _columns(texts: Mapping[str, str], width: int) -> list[str]:
    widest = max(map(len, texts))
    return [
        line
        for name, text in texts.items()
        for line in _lines(text, width, f"  {name:<{widest}}  ", " " * (widest + 4))
    ]


def _wrapped(docstring: str, width: int) -> list[str]:
    paragraphs = inspect.cleandoc(docstring).replace("``", "").split("\n\n")
    return _lines(_bare(" ".join(" ".join(paragraph.split()) for paragraph in paragraphs)), width, "", "")


def _lines(text: str, width: int, first: str, rest: str) -> list[str]:
    return textwrap.wrap(text, width, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False)


def _first(model: type[BaseModel]) -> str:
    return _bare(" ".join((inspect.getdoc(model) or "").split("\n\n")[0].split()))


def _bare(text: str) -> str:
    """``text`` without Markdown's and docstrings' marks."""
    return reference.without_links(text).replace("`", "")
