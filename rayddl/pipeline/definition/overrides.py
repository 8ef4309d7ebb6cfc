"""``--set experts.count=20``: changes to a definition, checked like the file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import yaml
from pydantic import ValidationError

from rayddl import localfiles
from rayddl.data.config import SourceConfig
from rayddl.pipeline.definition.document import Document, parse
from rayddl.pipeline.definition.problems import Key, Place, Problems, dotted, quoted
from rayddl.pipeline.definition.schema import Shape, shape_at
from rayddl.plugins import suggestion
from rayddl.stages.kinds import Kind

Overrides: TypeAlias = str | Sequence[str] | Mapping[str, Any]
"""``["experts.count=20"]`` as on the command line, a single one as text, or ``{"experts.count": 20}`` from Python."""

_MOST_PARTS = 32
_LONGEST = 200
_QUOTE = "'"
TOP_KEYS = ("name", "seed", "source", "description")
"""The keys that an override may start with, in addition to the names of stages."""


def as_text(overrides: Overrides) -> tuple[str, ...]:
    r"""Return the overrides as they would be typed, with a byte that is not UTF-8 as ``\xe9``."""
    if isinstance(overrides, str):
        return (_utf8(overrides),)
    if isinstance(overrides, Mapping):
        return tuple(f"{key}={json.dumps(value, default=str)}" for key, value in overrides.items())
    return tuple(map(_utf8, overrides))


def _utf8(text: str) -> str:
    try:
        return localfiles.shown(text)
    except UnicodeEncodeError:  # half of a character, which YAML refuses
        return text


def apply(
    document: Document, overrides: Overrides, kinds: Mapping[str, Kind], problems: Problems
) -> Document:
    """Return ``document`` with the overrides applied in order; adds faults to ``problems``."""
    if isinstance(overrides, Mapping):
        items = [(Place(f"--set {key}"), key, value) for key, value in overrides.items()]
    else:
        items = [item for text in as_text(overrides) if (item := _parsed(text, problems))]
    value, places = document.value, dict(document.places)
    for place, name, new in items:
        key = _key(name, value, place, problems)
        if key is None:
            continue
        value = _set(value, key, 0, new, _Target(value, kinds, place, problems))
        # Places of keys below the replaced value are no longer valid.
        numbered = _numbered(key)
        places = {k: p for k, p in places.items() if k[: len(key)] != numbered}
        places[numbered] = place
    return Document(value, places, document.file)


def _parsed(text: str, problems: Problems) -> tuple[Place, str, Any] | None:
    name, equals, value = text.partition("=")
    place = Place(f"--set {text if len(text) <= _LONGEST else f'{text[:_LONGEST]}…'}")
    if not equals or not name.strip():
        problems.add(
            place, (), "expected KEY=VALUE, for example --set experts.count=20", code="override-malformed"
        )
        return None
    own = Problems()
    document = parse(_with_hashes(value), place.file, own, lines=False)
    problems.extend(own)
    return None if own.found else (place, name.strip(), document.value)


def _with_hashes(value: str) -> str:
    """Return ``value``, in quotes if it is unquoted text with ``#`` where a comment of YAML would begin."""
    try:
        scalars = list(yaml.scan(value, Loader=yaml.SafeLoader))[1:-1]
    except (yaml.YAMLError, RecursionError):
        return value
    plain = not scalars or (len(scalars) == 1 and getattr(scalars[0], "plain", False))
    read_to = scalars[0].end_mark.index if scalars else 0
    # Single quotes, in which variables are replaced and nothing else.
    return f"'{value.strip().replace(_QUOTE, 2 * _QUOTE)}'" if plain and value[read_to:].strip() else value


def _key(name: str, value: Any, place: Place, problems: Problems) -> Key | None:
    parts: list[str] = name.split(".")
    if len(parts) > _MOST_PARTS:
        text = f"a key of {len(parts):,} parts; expected at most {_MOST_PARTS}"
        problems.add(place, (), text, code="override-malformed")
        return None
    if parts[0] == "stages":
        parts = parts[1:]
    stages = value.get("stages")
    names = list(stages) if isinstance(stages, dict) else []
    first = parts[0] if parts else ""
    if not all(parts) or first not in (*names, *TOP_KEYS):
        hint = suggestion(first, [*names, *TOP_KEYS], "an override starts with one of")
        problems.add(place, (), f"there is no stage {first or name!r}; {hint}", code="override-of-nothing")
        return None
    return tuple(parts) if first not in names else ("stages", *parts)


class _Target:
    """The definition that an override changes: the shapes of its keys, and the list of problems."""

    def __init__(self, value: Any, kinds: Mapping[str, Kind], place: Place, problems: Problems) -> None:
        self.value, self.kinds, self.place, self.problems = value, kinds, place, problems

    def shape(self, key: Key) -> Shape | None:
        if key[0] == "source":
            return shape_at(SourceConfig, _numbered(key[1:]))
        if key[0] != "stages" or len(key) < 2:
            return None
        stage = self.value["stages"][key[1]]
        kind = self.kinds.get(str(stage.get("kind"))) if isinstance(stage, dict) else None
        return shape_at(kind.config, _numbered(key[2:])) if kind else None

    def refuse(self, key: Key, text: str, *, code: str) -> None:
        self.problems.add(self.place, key, text, code=code)


def _set(value: Any, key: Key, depth: int, new: Any, target: _Target) -> Any:
    """Return a copy of ``value``, the value at ``key[:depth]``, with ``new`` at ``key``."""
    if depth == len(key):
        return new
    part, here = key[depth], key[:depth]
    if isinstance(value, list):
        if not str(part).isdigit() or int(part) >= len(value):
            text = f"a list of {len(value)}: take an item by its number, from 0 on, or set the whole list"
            target.refuse(here, text, code="not-an-item")
            return value
        index = int(part)
        return [*value[:index], _set(value[index], key, depth + 1, new, target), *value[index + 1 :]]
    if not isinstance(value, dict | None):
        mapping = _spelled_out(value, target.shape(here))
        if mapping is None:
            target.refuse(
                here, f"{quoted(value)} has no keys; set {dotted(here)} as a whole", code="value-without-keys"
            )
            return value
        value = mapping
    inner = value or {}
    return {**inner, str(part): _set(inner.get(str(part)), key, depth + 1, new, target)}


def _spelled_out(value: Any, shape: Shape | None) -> dict[str, Any] | None:
    """Return a shorthand such as ``net: convnet`` as a mapping; ``None`` if it is not a shorthand."""
    for alternative in shape.alternatives() if shape else []:
        if alternative.model:
            try:
                read = alternative.model.model_validate(value)
            except ValidationError:
                continue
            return read.model_dump(mode="json", exclude_unset=True)
    return None


def _numbered(key: Key) -> Key:
    return tuple(int(part) if isinstance(part, str) and part.isdigit() else part for part in key)
