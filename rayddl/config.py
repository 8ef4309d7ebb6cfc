"""The base of every setting a user can write down."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from rayddl import plugins


class Config(BaseModel):
    """A frozen group of settings that refuses unknown keys.

    Field names are the keys of a definition file. Importing a config never imports torch or Ray, so
    that ``rayddl plan`` answers at once.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


@dataclass(frozen=True)
class OnDisk:
    """Marks a field as a path or URI of something that exists; ``beside`` are words that it takes too."""

    beside: tuple[str, ...] = ()


UNKNOWN = "unknown_name"
"""Pydantic's word for a value that is no registered name."""


@dataclass(frozen=True)
class Registered:
    """Marks a text as a name of one of :data:`rayddl.plugins.NOUNS`, rayddl's own or a plugin's."""

    group: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._known, handler(source))

    def _known(self, name: str) -> str:
        if name not in plugins.names(self.group):
            raise PydanticCustomError(UNKNOWN, "{text}", {"text": plugins.unknown(self.group, name)})
        return name


def registered(value: Any) -> Iterator[tuple[str, str]]:
    """Each registered name in settings, however deep, with its group."""
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
    """The fields of ``config`` that are marked :class:`OnDisk`, with the path or URI in each."""
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        for mark in field.metadata:
            if isinstance(mark, OnDisk) and isinstance(value, str) and value not in mark.beside:
                yield name, value
