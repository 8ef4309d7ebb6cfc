"""What a stage is handed, and what it hands back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from rayddl.data.config import SourceConfig
from rayddl.seeds import derive
from rayddl.stages.runtime.backend import Backend, OnRay
from rayddl.stages.settings import StageConfig
from rayddl.storage import Folder


class Progress(Protocol):
    """One stage's live line."""

    def update(self, done: float, total: float, metric: str = "") -> None:
        """``done`` of ``total`` units are finished; ``metric`` is the last figure worth showing."""

    def note(self, text: str) -> None:
        """A line worth keeping on the screen: a retry, a skipped image, a missing compiler."""


class Silent:
    """A :class:`Progress` that shows nothing, for use from Python and in tests."""

    def update(self, done: float, total: float, metric: str = "") -> None:
        del done, total, metric

    def note(self, text: str) -> None:
        del text


@dataclass(frozen=True)
class Input:
    """A finished stage that another one reads."""

    stage: str
    """The stage's name in the definition."""
    kind: str
    folder: Folder
    config: Mapping[str, Any]
    """The stage's settings as JSON values."""
    summary: Mapping[str, Any]
    """What the stage handed back when it finished."""
    spent: Mapping[str, float] = field(default_factory=dict)
    """Seconds of it and of every stage that it hangs on, by name."""


@dataclass(frozen=True)
class Context:
    """Everything around a stage's own settings.

    ``inputs`` maps a stage's name to what it left. ``out`` may hold files of an earlier, killed
    attempt with the same fingerprint: a stage goes on from them.
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
    """The settings of the stages that this one runs itself, by their names."""
    backend: Backend = field(default_factory=OnRay)
    """Does the stage's work."""

    def seed_of(self) -> int:
        """The seed of this stage's random choices."""
        return derive(self.seed, self.stage)


@dataclass(frozen=True)
class Result:
    """What a finished stage hands back.

    ``summary`` is stored in the manifest: plain JSON values, among them whatever the result table
    and the report show. ``table`` is what a person sees at the end of the run, if anything: a list
    of rows with the same keys.
    """

    summary: Mapping[str, Any]
    table: tuple[Mapping[str, str], ...] = ()
