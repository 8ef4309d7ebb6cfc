"""What a page is made from: finished stages as plain values, arrays and pixels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Columns = Mapping[str, npt.NDArray[Any]]
"""A table as one array per column, all of one length."""


@dataclass(frozen=True)
class Stage:
    """One finished stage: what was asked for and what it handed back."""

    name: str
    kind: str
    folder: str
    """The folder's own name, ``<stage>-<fingerprint>``: no path of the machine that made it."""
    config: Mapping[str, Any]
    summary: Mapping[str, Any]

    @property
    def seconds(self) -> float:
        """How long the stage took; NaN where it does not say."""
        return number(self.summary.get("seconds"))


@dataclass(frozen=True)
class Experts:
    """Expert trajectories. ``metrics`` has one row per expert and epoch, epoch 0 being the start."""

    stage: Stage
    metrics: Columns


@dataclass(frozen=True)
class Pictures:
    """Images to look at: uint8 [N,C,H,W], a class number for each, and the classes' names."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Match:
    """A distillation: one row of ``metrics`` per iteration, of ``accuracy`` per seed and check."""

    stage: Stage
    metrics: Columns
    accuracy: Columns
    pictures: Pictures
    provenance: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Selected:
    """A set picked from the real images."""

    stage: Stage
    pictures: Pictures


@dataclass(frozen=True)
class Tune:
    """A search: one row of ``trials`` per trial, of ``progress`` per report of each.

    ``settings`` has one array for each setting searched: numbers, or texts. ``pictures`` are of the best set,
    where a set was searched for.
    """

    stage: Stage
    trials: Columns
    progress: Columns
    settings: Columns
    pictures: Pictures | None = None


@dataclass(frozen=True)
class Evaluate:
    """A judgement: one row of ``students`` per trained student.

    ``confusion`` has one row per student and entry of its confusion matrix, zeros left out.
    """

    stage: Stage
    students: Columns
    confusion: Columns | None = None
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Judged:
    """A set that an evaluate stage judged, as a comparison shows it."""

    run: str
    """The name of the definition that it belongs to."""
    key: str
    """Names the definition among those on the page."""
    stage: Stage
    """The evaluate stage."""
    pictures: Pictures
    confusion: Columns | None = None
    """One row per student and entry of its confusion matrix, zeros left out."""


@dataclass(frozen=True)
class Comparison:
    """Everything that a page of several sets shows."""

    name: str
    judged: tuple[Judged, ...]
    definitions: Mapping[str, Mapping[str, Any]]
    """The definitions that made them, by their keys."""
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Run:
    """Everything that one page shows. Kinds that the run lacks are empty."""

    definition: Mapping[str, Any]
    source: Mapping[str, Any]
    seed: int
    versions: Mapping[str, str]
    stages: tuple[Stage, ...] = ()
    """Every stage shown, of whatever kind, in the definition's order."""
    experts: tuple[Experts, ...] = ()
    matches: tuple[Match, ...] = ()
    selections: tuple[Selected, ...] = ()
    tunes: tuple[Tune, ...] = ()
    evaluations: tuple[Evaluate, ...] = ()

    @property
    def name(self) -> str:
        """The definition's name."""
        return str(self.definition.get("name") or "rayddl run")


def number(value: Any) -> float:
    """``value`` as a float; NaN for anything that is not a number, as JSON has no NaN of its own."""
    return float(value) if isinstance(value, (int, float)) else math.nan
