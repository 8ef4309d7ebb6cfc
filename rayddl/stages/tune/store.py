"""The files of a search: a folder per running trial, a file per trial that has ended.

::

    work/0007/trial.json     the settings it began with
    work/0007/reports.json   what it reported so far, with its settings
    work/0007/state          where it stood at its last report
    work/0007/made/          what it made
    trials/0007.json         its row, once it has ended; written whole, never again

The files in ``trials`` decide: a resumed search runs every trial that has none.
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
DEVIATION = "accuracy_std"
"""The metric and the column of the standard deviation over the students of a trial."""
SETTING = "setting."
"""Prefix of the columns of searched settings in the table of trials."""

Ended: TypeAlias = Literal["whole", "stopped", "diverged", "failed", "budget"]
"""``whole``: at its full length. ``stopped``: early, by the scheduler. ``budget``: when a budget was used up."""


@dataclass(frozen=True)
class Report:
    """A trial's report at one of its stops."""

    iteration: int
    value: float
    """The metric that the search optimises."""
    metrics: Mapping[str, float]
    seconds: float
    """Seconds of work since the previous report."""


@dataclass(frozen=True)
class Row:
    """A trial that has ended."""

    number: int
    settings: Settings
    ended: Ended
    value: float
    """The metric at the last report; the worst value if that is not finite."""
    iteration: int
    seconds: float
    """Seconds of work."""
    reports: tuple[Report, ...] = ()
    reason: str = ""
    """The reason why it failed or diverged."""

    @property
    def sound(self) -> bool:
        """True if the trial neither failed nor diverged, and has a report."""
        return self.ended in ("whole", "stopped", "budget") and bool(self.reports)


@dataclass(frozen=True)
class TrialStore:
    """The records of one search, in its stage's folder."""

    out: Folder

    def at_work(self, number: int) -> Folder:
        """The folder of a running trial."""
        return self.out.child(f"{WORK}/{number:04d}")

    def begin(self, number: int, settings: Settings) -> None:
        """Record the start of a trial."""
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
        """Record the end of a trial."""
        self.out.child(TRIALS).write_json(f"{row.number:04d}.json", asdict(row))

    def ended(self) -> dict[int, Row]:
        """The trials that have ended, by number."""
        folder = self.out.child(TRIALS)
        rows = [_row(folder.read_json(name)) for name in folder.names() if name.endswith(".json")]
        return {row.number: row for row in rows}

    def forget(self, number: int) -> None:
        """Delete a trial's working folder."""
        self.out.clear(f"{WORK}/{number:04d}")

    def seconds(self) -> float:
        """Seconds of the search in earlier attempts."""
        folder = self.out.child(WORK)
        return float(folder.read_json(CLOCK)["seconds"]) if folder.has(CLOCK) else 0.0

    def note_seconds(self, seconds: float) -> None:
        """Record the seconds of the search so far."""
        self.out.child(WORK).write_json(CLOCK, {"seconds": seconds})


def _row(found: Mapping[str, Any]) -> Row:
    reports = tuple(Report(**report) for report in found["reports"])
    # Rows of earlier versions have keys that were removed.
    known = {field.name: found[field.name] for field in fields(Row) if field.name in found}
    return Row(**{**known, "reports": reports})
