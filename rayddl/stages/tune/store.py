"""What is kept of a search while it goes on: a folder per trial at work, a file per trial that has ended.

::

    work/0007/trial.json     the settings it began with
    work/0007/reports.json   what it reported so far, with its settings
    work/0007/state          where it stood at its last report
    work/0007/made/          what it made
    trials/0007.json         its row, once it has ended; written whole, never again

The files in ``trials`` are the truth: whoever starts the search again runs what has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, TypeAlias

from rayddl.stages.tune.space import Settings
from rayddl.storage import Folder

TRIALS, WORK = "trials", "work"
REPORTS, STATE, MADE = "reports.json", "state", "made"
CLOCK = "clock.json"
SETTING = "setting."
"""What the column of a searched setting begins with, in the table of trials."""

Ended: TypeAlias = Literal["whole", "stopped", "diverged", "failed", "budget"]
"""``whole``: at its full length. ``stopped``: early, by the scheduler. ``budget``: when time was up."""


@dataclass(frozen=True)
class Report:
    """What a trial said at one of its stops."""

    iteration: int
    value: float
    """The metric that is searched by."""
    metrics: Mapping[str, float]
    seconds: float
    """Seconds of work since the report before."""


@dataclass(frozen=True)
class Row:
    """A trial that has ended."""

    number: int
    settings: Settings
    ended: Ended
    value: float
    """At its last report; the worst there is where it has no finite one."""
    iteration: int
    seconds: float
    """Seconds of work."""
    reports: tuple[Report, ...] = ()
    reason: str = ""
    """Why it failed or diverged."""

    @property
    def sound(self) -> bool:
        """Whether it came to a figure that counts."""
        return self.ended in ("whole", "stopped", "budget") and bool(self.reports)


@dataclass(frozen=True)
class Book:
    """The records of one search, in its stage's folder."""

    out: Folder

    def at_work(self, number: int) -> Folder:
        """The folder of a trial that is under way."""
        return self.out.child(f"{WORK}/{number:04d}")

    def begin(self, number: int, settings: Settings) -> None:
        """Write down that a trial begins."""
        self.at_work(number).write_json("trial.json", {"number": number, "settings": settings})

    def begun(self) -> dict[int, Settings]:
        """The trials that have begun and not ended, with their settings."""
        work, over = self.out.child(WORK), set(self.ended())
        numbers = [int(name) for name in work.folders() if name.isdigit()]
        return {n: self.settings(n) for n in numbers if n not in over and self.at_work(n).has("trial.json")}

    def settings(self, number: int) -> Settings:
        """The settings of a trial that has begun."""
        folder = self.at_work(number)
        name = REPORTS if folder.has(REPORTS) else "trial.json"
        settings: Settings = folder.read_json(name)["settings"]
        return settings

    def end(self, row: Row) -> None:
        """Write down that a trial has ended."""
        self.out.child(TRIALS).write_json(f"{row.number:04d}.json", asdict(row))

    def ended(self) -> dict[int, Row]:
        """The trials that have ended, by number."""
        folder = self.out.child(TRIALS)
        rows = [_row(folder.read_json(name)) for name in folder.names() if name.endswith(".json")]
        return {row.number: row for row in rows}

    def forget(self, number: int) -> None:
        """Remove what a trial left at work."""
        self.out.clear(f"{WORK}/{number:04d}")

    def seconds(self) -> float:
        """How long the search took in earlier attempts."""
        folder = self.out.child(WORK)
        return float(folder.read_json(CLOCK)["seconds"]) if folder.has(CLOCK) else 0.0

    def note_seconds(self, seconds: float) -> None:
        """Write down how long the search has taken."""
        self.out.child(WORK).write_json(CLOCK, {"seconds": seconds})


def _row(found: Mapping[str, Any]) -> Row:
    reports = tuple(Report(**report) for report in found["reports"])
    # Rows of earlier versions have keys that no row has any more.
    known = {field.name: found[field.name] for field in fields(Row) if field.name in found}
    return Row(**{**known, "reports": reports})
