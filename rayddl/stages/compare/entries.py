"""The evaluated sets of a comparison, with their labels and colours on the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rayddl.report.sections import Link, slug
from rayddl.report.values import Columns, Pictures, Stage, number
from rayddl.stages.evaluate.figures import Row, rows_of

TINTS = 8
"""Number of distinct colours; further methods reuse them with another dash pattern."""


@dataclass(frozen=True)
class Judged:
    """A set that an evaluate stage evaluated, as a comparison shows it."""

    run: str
    """The name of its definition."""
    key: str
    """The key of its definition on the page."""
    stage: Stage
    """The evaluate stage."""
    pictures: Pictures
    confusion: Columns | None = None
    """One row per student and entry of its confusion matrix, zeros left out."""


@dataclass(frozen=True)
class Comparison:
    """The contents of a comparison's page."""

    name: str
    judged: tuple[Judged, ...]
    definitions: Mapping[str, Mapping[str, Any]]
    """The definitions of the sets, by their keys."""
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Entry:
    """One evaluated set with its label on the page."""

    judged: Judged
    label: str
    """Unique on the page: method and images per class, with run or stage added where these are equal."""
    method: str
    tint: str
    rows: tuple[Row, ...]
    """Results of the students trained on the set, by network."""
    random: tuple[Row, ...]
    """Results of the students trained on as many random images, by network."""

    @property
    def ipc(self) -> int:
        """Images per class."""
        return int(self.judged.stage.summary.get("ipc") or 0)

    @property
    def images(self) -> int:
        """The number of images."""
        return self.rows[0].images if self.rows else 0

    @property
    def seconds(self) -> float:
        """Seconds of all stages that made the set; NaN if unknown."""
        spent = self.judged.stage.summary.get("spent") or {}
        return sum(number(v) for v in spent.values()) if spent else math.nan

    @property
    def link(self) -> Link:
        """The link to the set's definition."""
        return Link(self.judged.stage.name, f"{self.judged.key}-{slug('stage', self.judged.stage.name)}")

    def of(self, net: str) -> Row | None:
        """The results of one network; ``None`` if the set has none."""
        return next((row for row in self.rows if row.net == net), None)


def entries(comparison: Comparison) -> tuple[Entry, ...]:
    """The evaluated sets, ordered by first appearance of the method, then by images per class."""
    methods = list(dict.fromkeys(_method(j) for j in comparison.judged))
    plain = [f"{_method(j)}, IPC {int(j.stage.summary.get('ipc') or 0)}" for j in comparison.judged]
    found = []
    for judged, label in zip(comparison.judged, plain, strict=True):
        students = rows_of(judged.stage)
        found.append(
            Entry(
                judged,
                label
                if plain.count(label) == 1
                else f"{label} ({_from(judged, comparison.judged, plain, label)})",
                _method(judged),
                f"m{methods.index(_method(judged)) % TINTS}",
                tuple(row for row in students if row.data == "distilled"),
                tuple(row for row in students if row.data == "random"),
            )
        )
    return tuple(sorted(found, key=lambda e: (methods.index(e.method), e.ipc)))


def _method(judged: Judged) -> str:
    return str(judged.stage.summary.get("method") or judged.stage.summary.get("set") or judged.stage.name)


def _from(judged: Judged, others: Sequence[Judged], labels: Sequence[str], label: str) -> str:
    """The text that distinguishes sets of the same method and size: their run, their stage, or both."""
    alike = [other for other, own in zip(others, labels, strict=True) if own == label]
    if len({other.run for other in alike}) == len(alike):
        return judged.run
    if len({other.stage.name for other in alike}) == len(alike):
        return judged.stage.name
    return f"{judged.run}, {judged.stage.name}"


def nets_of(found: Sequence[Entry]) -> list[str]:
    """Every network, in order of first appearance."""
    return list(dict.fromkeys(row.net for entry in found for row in entry.rows))
