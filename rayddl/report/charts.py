"""The data of a line chart; :mod:`rayddl.report.drawing` draws it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

Floats = Sequence[float]


@dataclass(frozen=True)
class Line:
    """A line. ``style`` is its CSS class: ``mean`` is bold, ``faint`` is for one of many, ``raw`` is thin."""

    x: Floats
    y: Floats
    style: str = "mean"
    label: bool = False
    """True to write the last value next to the line's end."""
    tint: str = ""
    """Colour of the line; empty for the chart's colour."""
    name: str = ""
    """Text above the last value."""


@dataclass(frozen=True)
class Band:
    """The area between two lines."""

    x: Floats
    low: Floats
    high: Floats
    tint: str = ""


@dataclass(frozen=True)
class Dots:
    """Single values as dots."""

    x: Floats
    y: Floats
    tint: str = ""


@dataclass(frozen=True)
class Spots:
    """Single values as larger dots in their own colour."""

    x: Floats
    y: Floats
    tint: str


@dataclass(frozen=True)
class Whiskers:
    """Vertical error bars."""

    x: Floats
    low: Floats
    high: Floats
    tint: str


@dataclass(frozen=True)
class Rule:
    """A dotted reference level with a text."""

    y: float
    text: str


Mark: TypeAlias = Line | Band | Dots | Spots | Whiskers | Rule


@dataclass(frozen=True)
class Strip:
    """A histogram under the x axis: one bar per pair of neighbouring edges."""

    edges: Floats
    counts: Sequence[int]


@dataclass(frozen=True)
class Hint:
    """The tooltip around ``x``."""

    x: float
    text: str


@dataclass(frozen=True)
class Chart:
    """A chart. ``note`` is printed below it; ``summary`` is its description for screen readers."""

    key: str
    """Unique on the page; any text."""
    title: str
    summary: str
    x_label: str
    marks: tuple[Mark, ...]
    note: str = ""
    tint: str = "set"
    shares: bool = False
    """True if values are fractions, shown as percentages from 0 to at most 100."""
    x_range: tuple[float, float] | None = None
    x_log: bool = False
    """True for a logarithmic x axis."""
    x_names: tuple[str, ...] = ()
    """Texts under x = 0, 1, 2 … if the axis has no numbers."""
    hints: tuple[Hint, ...] = ()
    strip: Strip | None = None
    legend: tuple[tuple[str, str], ...] = ()
    """Colours and the name of each."""

    @property
    def empty(self) -> bool:
        """True if no value is finite."""
        return not any(math.isfinite(v) for v in values(self.marks))


def values(marks: Iterable[Mark]) -> Iterable[float]:
    """Yield all y values of the marks, finite or not."""
    for mark in marks:
        if isinstance(mark, (Band, Whiskers)):
            yield from mark.low
            yield from mark.high
        elif isinstance(mark, Rule):
            yield mark.y
        else:
            yield from mark.y
