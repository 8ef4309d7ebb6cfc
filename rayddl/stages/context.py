"""The arguments that a stage's run function receives besides its settings, and its result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from rayddl.data.config import SourceConfig
from rayddl.seeds import derive
from rayddl.stages.runtime.workers import Backend, OnRay
from rayddl.stages.settings import StageConfig
from rayddl.storage import Folder


class Progress(Protocol):
    """The progress display of one stage."""

    def update(self, done: float, total: float, metric: str = "") -> None:
        """Show that ``done`` of ``total`` units are finished; ``metric`` is the latest result, as text."""

    def note(self, text: str) -> None:
        """Print a line that stays on the screen: a retry, a skipped image, a missing compiler."""


class Silent:
    """A :class:`Progress` that shows nothing, for use from Python and in tests."""

    def update(self, done: float, total: float, metric: str = "") -> None:
        del done, total, metric

    def note(self, text: str) -> None:
        del text


@dataclass(frozen=True)
class Input:
    """A finished stage that another stage reads."""

    stage: str
    """The stage's name in the definition."""
    kind: str
    folder: Folder
    config: Mapping[str, Any]
    """The stage's settings as JSON values."""
    summary: Mapping[str, Any]
    """:attr:`Result.summary` of the stage."""
    spent: Mapping[str, float] = field(default_factory=dict)
    """Seconds of the stage and of every stage that it depends on, by name."""


@dataclass(frozen=True)
class Context:
    """Inputs, output folder and workers of a stage's run.

    ``inputs`` maps names of finished stages to their outputs. ``out`` may hold files of an earlier, killed
    attempt with the same fingerprint: a stage resumes from them.
    """

    stage: str
    """This stage's name in the definition."""
    source: SourceConfig
    seed: int
    """The run's seed; pass it to :mod:`rayddl.seeds` with the stage's name."""
    out: Folder
    inputs: Mapping[str, Input]
    definition: Mapping[str, Any]
    """The whole definition as JSON values, for provenance and the report."""
    progress: Progress = field(default_factory=Silent)
    templates: Mapping[str, StageConfig] = field(default_factory=dict)
    """The settings of the stages that this stage runs itself, by their names."""
    reusable: tuple[Input, ...] = ()
    """Finished stages whose settings differ from this one's in :attr:`StageConfig.unit_count` alone."""
    backend: Backend = field(default_factory=OnRay)
    """Runs the stage's units of work."""

    def seed_of(self) -> int:
        """The seed of this stage's random choices."""
        return derive(self.seed, self.stage)


@dataclass(frozen=True)
class Result:
    """The result of a finished stage.

    ``summary`` is stored in the manifest: plain JSON values, including all that the report shows. ``table`` is
    printed at the end of the run, if not empty: a list of rows with the same keys. ``more`` are further tables, by
    their headings.
    """

    summary: Mapping[str, Any]
    table: tuple[Mapping[str, str], ...] = ()
    more: Mapping[str, tuple[Mapping[str, str], ...]] = field(default_factory=dict)
    earlier: float = 0.0
    """Seconds that other stages spent on units of work that this one uses."""
    leftovers: tuple[str, ...] = ()
    """Files, and folders with all in them, from which the stage would go on if it were interrupted now. They are
    deleted when it is finished, and not before."""
