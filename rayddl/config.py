"""The base classes of all settings that a definition file can hold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from rayddl import plugins


class Config(BaseModel):
    """An immutable group of settings. Raises pydantic's ``ValidationError`` for unknown keys.

    Field names are the keys of a definition file. Importing a config imports neither torch nor Ray, which keeps
    ``rayddl plan`` fast.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


@dataclass(frozen=True)
class OnDisk:
    """Marks a field as the path or URI of an existing file or folder; ``keywords`` are accepted as well."""

    keywords: tuple[str, ...] = ()
    each: bool = False
    """True if the field is a tuple of such paths."""


UNKNOWN = "unknown_name"
"""Pydantic's error type for a value that is not a registered name."""


@dataclass(frozen=True)
class Registered:
    """Marks a string as a name of a group in :data:`rayddl.plugins.NOUNS`, registered by rayddl or by a plugin."""

    group: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._known, handler(source))

    def _known(self, name: str | None) -> str | None:
        if name is not None and name not in plugins.names(self.group):
            raise PydanticCustomError(UNKNOWN, "{text}", {"text": plugins.unknown(self.group, name)})
        return name


def marks(field: FieldInfo, wanted: type[Any]) -> list[Any]:
    """Return the ``Annotated`` marks of type ``wanted`` at any depth in a field's annotation."""
    found = [mark for mark in field.metadata if isinstance(mark, wanted)]
    stack = [field.annotation]
    while stack:
        annotation = stack.pop()
        found += [mark for mark in getattr(annotation, "__metadata__", ()) if isinstance(mark, wanted)]
        stack += [argument for argument in get_args(annotation) if not isinstance(argument, str)]
    return found


def registered(value: Any) -> Iterator[tuple[str, str]]:
    """Yield the group and name of every :class:`Registered` field in ``value``, at any depth."""
    if isinstance(value, Config):
        for name, field in type(value).model_fields.items():
            inner = getattr(value, name)
            if isinstance(inner, str):
                yield from ((mark.group, inner) for mark in field.metadata if isinstance(mark, Registered))
            else:
                yield from registered(inner)
    elif isinstance(value, tuple | list):
        for inner in value:
            yield from registered(inner)
    elif isinstance(value, dict):
        for inner in value.values():
            yield from registered(inner)


def places(config: Config) -> Iterator[tuple[str, str]]:
    """Yield the name of each field of ``config`` marked :class:`OnDisk`, and its path or URI, or each of them."""
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        for mark in field.metadata:
            if isinstance(mark, OnDisk):
                each = value if mark.each else (value,)
                yield from ((name, at) for at in each if isinstance(at, str) and at not in mark.keywords)
