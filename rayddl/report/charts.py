"""What a line chart shows, before it is drawn."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

Floats = Sequence[float]


@dataclass(frozen=True)
class Line:
    """A line. ``style`` is its CSS class: ``mean`` bold, ``faint`` for one of many, ``raw`` thin."""

    x: Floats
    y: Floats
    style: str = "mean"
    label: bool = False
    """Write the last value beside the line's end."""
    tint: str = ""
    """Its colour, where it is not the chart's."""
    name: str = ""
    """Stands above the last value."""


@dataclass(frozen=True)
class Band:
    """The area between two lines."""

    x: Floats
    low: Floats
    high: Floats
    tint: str = ""


@dataclass(frozen=True)
class Dots:
    """Single values."""

    x: Floats
    y: Floats
    tint: str = ""


@dataclass(frozen=True)
class Spots:
    """Single values in a colour of their own."""

    x: Floats
    y: Floats
    tint: str


@dataclass(frozen=True)
class Whiskers:
    """Upright error bars."""

    x: Floats
    low: Floats
    high: Floats
    tint: str


@dataclass(frozen=True)
class Rule:
    """A dashed level to compare with, and what it means."""

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
    """What the pointer shows around ``x``."""

    x: float
    text: str


@dataclass(frozen=True)
class Chart:
    """A chart before it is drawn. ``note`` is small print; ``summary`` is for who cannot see it."""

    key: str
    """Unique on the page; may hold anything."""
    title: str
    summary: str
    x_label: str
    marks: tuple[Mark, ...]
    note: str = ""
    tint: str = "set"
    shares: bool = False
    """Values are shares of one, shown as percentages from 0 to at most 100."""
    x_range: tuple[float, float] | None = None
    x_log: bool = False
    """Whether the x axis is logarithmic."""
    x_names: tuple[str, ...] = ()
    """What stands under x = 0, 1, 2 … where these are no numbers."""
    hints: tuple[Hint, ...] = ()
    strip: Strip | None = None
    legend: tuple[tuple[str, str], ...] = ()
    """Colours, and what has them."""

    @property
    def empty(self) -> bool:
        """Whether there is nothing finite to draw."""
        return not any(math.isfinite(v) for v in values(self.marks))


def values(marks: Iterable[Mark]) -> Iterable[float]:
    """Every height that the marks reach, finite or not."""
    for mark in marks:
        if isinstance(mark, (Band, Whiskers)):
            yield from mark.low
            yield from mark.high
        elif isinstance(mark, Rule):
            yield mark.y
        else:
            yield from mark.y
