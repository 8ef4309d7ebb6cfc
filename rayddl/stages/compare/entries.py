"""The evaluated sets of a comparison, with their labels and colours on the page."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rayddl.report.sections import Link, slug
from rayddl.report.values import Columns, Pictures, Stage, number
from rayddl.stages.evaluate.figures import Row, rows_of
from rayddl.stages.evaluate.recorded import same_protocol
from rayddl.stages.settings import StageConfig

RANDOM = "random"
"""The method of random real images, and their colour."""
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
    origin: Mapping[str, Any] = field(default_factory=dict)
    """The definition that made the set, as the set keeps it."""
    imported: bool = False
    """True for a set from elsewhere: ``origin`` is not the definition that evaluated it."""


@dataclass(frozen=True)
class Comparison:
    """The contents of a comparison's page."""

    name: str
    judged: tuple[Judged, ...]
    definitions: Mapping[str, Mapping[str, Any]]
    """The definitions of the sets, by their keys."""
    versions: Mapping[str, str]
    kinds: Mapping[str, type[StageConfig]] = field(default_factory=dict)
    """The settings classes of the known stage kinds, by name."""


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
    own: tuple[Row, ...] = ()
    """Results of the students trained on the set with its own labels instead of an observer's, by network."""
    random_own: tuple[Row, ...] = ()
    """Results of the students trained on as many random images with their own labels, by network."""
    baseline: bool = False
    """True for the random images with which sets are compared: they take no time to make."""

    @property
    def ipc(self) -> int:
        """Images per class."""
        return int(self.judged.stage.summary.get("ipc") or 0)

    @property
    def tested(self) -> float:
        """The number of held-out images; NaN if unknown."""
        return number(self.judged.stage.summary.get("tested"))

    @property
    def images(self) -> int:
        """The number of images."""
        return self.rows[0].images if self.rows else 0

    @property
    def seconds(self) -> float:
        """Seconds of all stages that made the set; NaN if unknown."""
        spent = {} if self.baseline else self.judged.stage.summary.get("spent") or {}
        return sum(number(v) for v in spent.values()) if spent else math.nan

    @property
    def link(self) -> Link:
        """The link to the set's definition."""
        return Link(self.judged.stage.name, f"{self.judged.key}-{slug('stage', self.judged.stage.name)}")

    @property
    def bytes(self) -> float:
        """Bytes of images and labels; NaN if unknown."""
        return math.nan if self.baseline else number(self.judged.stage.summary.get("bytes"))

    @property
    def label_bytes(self) -> float:
        """Bytes of an observer's stored labels; NaN without them."""
        return math.nan if self.baseline else number(self.judged.stage.summary.get("label_bytes"))

    def of(self, net: str) -> Row | None:
        """The results of one network; ``None`` if the set has none."""
        return next((row for row in self.rows if row.net == net), None)

    def by_own_labels(self, net: str) -> float:
        """Mean accuracy of one network's students of the set's own labels; NaN if there are none."""
        return next((row.mean for row in self.own if row.net == net), math.nan)


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
                tuple(row for row in students if row.data == "distilled-own"),
                tuple(row for row in students if row.data == "random-own"),
            )
        )
    return tuple(sorted(found, key=lambda e: (methods.index(e.method), e.ipc)))


def randoms(found: Sequence[Entry]) -> tuple[Entry, ...]:
    """The random real images with which the sets are compared, as entries ordered by images per class.

    Sets of one size and one protocol share theirs, and have no others than a set of random images of that protocol.
    """
    own = [entry for entry in found if entry.method == RANDOM]
    first: dict[tuple[Any, ...], Entry] = {}
    for entry in sorted(found, key=lambda each: each.ipc):
        if entry.random and not any(alike(entry, other) for other in own):
            first.setdefault((entry.ipc, *((row.net, row.mean) for row in entry.random)), entry)
    many = Counter(entry.ipc for entry in first.values())
    return tuple(
        replace(
            entry,
            label=f"random, IPC {entry.ipc}"
            + (f" (as {entry.label}{_rate(entry)})" if many[entry.ipc] > 1 else ""),
            method=RANDOM,
            tint=RANDOM,
            rows=entry.random,
            own=entry.random_own,
            baseline=True,
        )
        for entry in first.values()
    )


def _rate(entry: Entry) -> str:
    """The students' learning rate, which random images have from the set that they are compared with."""
    lr = (entry.judged.stage.summary.get("protocol") or {}).get("lr")
    return f", learning rate {lr:.3g}" if isinstance(lr, int | float) else ""


def alike(one: Entry, other: Entry) -> bool:
    """True if two sets have as many images, and were judged by the same protocol."""
    return one.ipc == other.ipc and same_protocol(one.judged.stage.summary, other.judged.stage.summary)


def random_of(entry: Entry, row: Row, found: Sequence[Entry]) -> Row | None:
    """The result of as many random images by the same protocol: the set's own, else that of a random set, else that of
    another set of the same run.
    """
    own = next((r for r in entry.random if r.net == row.net), None)
    if own is not None:
        return own
    others = [e for e in found if e is not entry and alike(e, entry)]
    sets = (e.of(row.net) for e in others if e.method == RANDOM)
    beside = (r for e in others if e.judged.key == entry.judged.key for r in e.random if r.net == row.net)
    return next((r for r in (*sets, *beside) if r is not None), None)


def below(entry: Entry, found: Sequence[Entry]) -> bool:
    """True if students of the set are worse than those of random images, for any network."""
    pairs = ((row, random_of(entry, row, found)) for row in entry.rows)
    return entry.method != RANDOM and any(
        random is not None and row.mean < random.mean for row, random in pairs
    )


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
