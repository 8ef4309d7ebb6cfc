"""The base of every setting a user can write down."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict


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


def places(config: Config) -> Iterator[tuple[str, str]]:
    """The fields of ``config`` that are marked :class:`OnDisk`, with the path or URI in each."""
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        for mark in field.metadata:
            if isinstance(mark, OnDisk) and isinstance(value, str) and value not in mark.beside:
                yield name, value
