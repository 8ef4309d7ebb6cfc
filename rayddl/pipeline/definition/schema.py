"""Describes the values that settings classes accept, and turns validation errors into faults."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from rayddl import plugins
from rayddl.config import UNKNOWN, Registered
from rayddl.pipeline.definition.problems import Fault, Key, quoted
from rayddl.pipeline.definition.vocabulary import key_hint
from rayddl.plugins import suggestion

_SIMPLE = {int: "an integer", float: "a number", bool: "true or false", str: "text", Any: "any value"}
_BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
_NOT = {
    "int": " is not a whole number",
    "float": " is not a number",
    "bool": " is not true or false",
    "string": " is not text",
    "tuple": " is not a list",
    "list": " is not a list",
    "dict": " is not a mapping",
    "mapping": " is not a mapping",
    "model": " is not a mapping",
    "literal": " is not known",
    "greater": " is out of range",
    "less": " is out of range",
    "finite": " is not finite",
    "too": " has the wrong length",
}


@dataclass(frozen=True)
class Shape:
    """The type that a value must have, with its bounds."""

    annotation: Any
    metadata: tuple[Any, ...] = ()

    def alternatives(self) -> list[Shape]:
        """Return the members of a union without ``None``; for another type, the shape itself."""
        origin = get_origin(self.annotation)
        if origin is Annotated:
            inner, *extra = get_args(self.annotation)
            return Shape(inner, (*self.metadata, *_unfolded(extra))).alternatives()
        if origin in (Union, types.UnionType):
            members = [member for member in get_args(self.annotation) if member is not type(None)]
            return [shape for member in members for shape in Shape(member, self.metadata).alternatives()]
        return [self]

    def below(self, part: str | int) -> Shape | None:
        """Return the shape of the key or item ``part`` of this one; ``None`` if it is not known."""
        for shape in self.alternatives():
            arguments = get_args(shape.annotation)
            if isinstance(part, int) and get_origin(shape.annotation) in (tuple, list) and arguments:
                return Shape(arguments[0])
            model = shape.model
            if model and part in model.model_fields:
                return of_field(model.model_fields[str(part)])
        return None

    @property
    def model(self) -> type[BaseModel] | None:
        """The settings class of this shape; ``None`` for other types."""
        plain = isinstance(self.annotation, type) and get_origin(self.annotation) is None
        return self.annotation if plain and issubclass(self.annotation, BaseModel) else None

    def words(self, *, all_names: bool = True) -> str:
        """Return a description: ``an integer >= 1``, ``one of convex, all``, ``a list; each item text``. Without
        ``all_names``, for messages, of many names it has :func:`rayddl.plugins.few`.
        """
        named = ", ".join if all_names else plugins.few
        return " or ".join(dict.fromkeys(shape._words(named) for shape in self.alternatives()))

    def _words(self, named: Callable[[Iterable[str]], str]) -> str:
        origin, arguments = get_origin(self.annotation), get_args(self.annotation)
        if origin is Literal:
            names = named(str(name) for name in arguments)
            return names if len(arguments) == 1 else f"one of {names}"
        if origin in (tuple, list):
            items = (
                dict.fromkeys(s._words(named) for s in Shape(arguments[0]).alternatives())
                if arguments
                else ()
            )
            return f"a list; each item {' or '.join(items)}" if arguments else "a list"
        if self.model:
            return f"a mapping with keys among {named(self.model.model_fields)}"
        if origin in (dict, Mapping) or self.annotation is dict:
            return "a mapping"
        if groups := [mark.group for mark in self.metadata if isinstance(mark, Registered)]:
            return f"one of {named(plugins.names(groups[0]))}"
        bounds = [f"{_BOUNDS[n]} {getattr(m, n)}" for m in self.metadata for n in _BOUNDS if hasattr(m, n)]
        return " ".join([_SIMPLE.get(self.annotation, "another value"), " and ".join(bounds)]).strip()


def of_field(field: FieldInfo) -> Shape:
    """Return the shape of a field of a settings class."""
    return Shape(field.annotation, tuple(field.metadata))


def shape_at(model: type[BaseModel], key: Sequence[str | int]) -> Shape | None:
    """Return the shape of the value at ``key`` inside ``model``; ``None`` if it is not known."""
    shape: Shape | None = Shape(model)
    for part in key:
        shape = shape.below(part) if shape else None
    return shape


def explain(error: ValidationError, model: type[BaseModel]) -> Iterator[Fault]:
    """Yield a fault for each error of pydantic, with its key inside ``model``."""
    for details in error.errors(include_url=False):
        # pydantic counts only valid items; the others have faults of their own.
        least = details.get("ctx", {}).get("min_length", 0)
        if (
            details["type"] == "too_short"
            and isinstance(details["input"], list)
            and len(details["input"]) >= least
        ):
            continue
        yield Fault(_key(details["loc"], model), *_sentence(details, model))


def booleans_for_numbers(value: Any, shape: Shape | None, key: Key = ()) -> Iterator[Fault]:
    """Yield a fault for each boolean given for a number, which pydantic would accept as 1 or 0."""
    if shape is None:
        return
    if isinstance(value, bool):
        if all(a.annotation in (int, float) for a in shape.alternatives()):
            yield Fault(
                key,
                f"{quoted(value)} is not a number; expected {shape.words(all_names=False)}",
                "value-of-another-type",
            )
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from booleans_for_numbers(item, shape.below(name), (*key, name))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from booleans_for_numbers(item, shape.below(index), (*key, index))


def _sentence(details: ErrorDetails, model: type[BaseModel]) -> tuple[str, str]:
    """Return the text and the code of a fault."""
    kind, value, key = details["type"], details["input"], _key(details["loc"], model)
    if kind == "extra_forbidden":
        parent = shape_at(model, key[:-1])
        models = [shape.model for shape in parent.alternatives() if shape.model] if parent else []
        known = [name for found in models for name in found.model_fields]
        # Replaced by what it names before a definition is compared with the model.
        known += ["extends"] * ("stages" in known)
        return f"unknown key; {key_hint(key[-1], known, 'known keys', _topic(model, key))}", "unknown-key"
    shape = shape_at(model, key)
    expected = f"; expected {shape.words(all_names=False)}" if shape and key else ""
    if kind == "missing":
        return f"missing{expected}", "missing-key"
    if kind == "value_error":
        reason = str(details.get("ctx", {}).get("error", details["msg"]))
        text = f"{quoted(value)}: {reason}" if key and not isinstance(value, dict) else reason
        return text, "refused-value"
    if kind == UNKNOWN:
        text = details["msg"]
    elif kind == "literal_error" and shape:
        known = [str(a) for s in shape.alternatives() for a in get_args(s.annotation)]
        kind, text = UNKNOWN, f"is not known; {suggestion(value, known, 'expected one of')}"
    if kind == UNKNOWN:
        return f"{quoted(value)} {text}", "unknown-value"
    if kind.startswith("greater") or kind.startswith("less"):
        return f"{quoted(value)} is out of range{expected}", "value-out-of-range"
    wrong = _NOT.get(kind.split("_")[0], f": {details['msg']}")
    return f"{quoted(value)}{wrong}{expected}", "value-of-another-type"


def _topic(model: type[BaseModel], key: Key) -> str:
    """Return the name by which ``rayddl explain`` lists the keys next to ``key``."""
    kind = get_args(model.model_fields["kind"].annotation) if "kind" in model.model_fields else ()
    within = [str(part) for part in key[:-1] if part in model.model_fields][:1]
    return ".".join([str(kind[0]), *within]) if kind else (within or ["definition"])[0]


def _key(location: Sequence[str | int], model: type[BaseModel]) -> Key:
    """Return ``location`` without the union tags that pydantic adds to the keys."""
    key: list[str | int] = []
    for position, part in enumerate(location):
        last = position == len(location) - 1
        if isinstance(part, int) or shape_at(model, [*key, part]) or (last and _open(model, key)):
            key.append(part)
    return tuple(key)


def _open(model: type[BaseModel], key: Sequence[str | int]) -> bool:
    """True if an unknown name below ``key`` is a key of the user, not a union tag."""
    parent = shape_at(model, key)
    if parent is None:
        return False
    return any(s.model or get_origin(s.annotation) in (dict, Mapping) for s in parent.alternatives())


def _unfolded(extra: Sequence[Any]) -> Iterator[Any]:
    for item in extra:
        if isinstance(item, FieldInfo):
            yield from item.metadata
        else:
            yield item
