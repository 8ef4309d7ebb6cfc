"""One trial at work: real stage code, advanced from stop to stop, with everything on disk to go on from.

Knows nothing of Ray Tune. What a trial says is what Tune is told, by :mod:`rayddl.stages.tune.actor`.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from rayddl.errors import DivergedError, RayddlError
from rayddl.stages.tune.plan import Search
from rayddl.stages.tune.space import Settings
from rayddl.stages.tune.store import REPORTS, STATE, Book, Ended, Report, Row
from rayddl.storage import Folder

HELD_OUT = "held out"
"""Names what judges the outcome of a search: no trial has anything with its seeds."""


@dataclass(frozen=True)
class Ticket:
    """What a trial is made from."""

    number: int
    settings: Settings
    folder: Folder
    """Its own, for whatever it writes."""
    threads: int


class Trial(Protocol):
    """A stage's work with settings of its own, in pieces."""

    def reach(self, until: int) -> Mapping[str, float]:
        """Go on to iteration ``until`` and give the metrics there; at once where it stands there already.

        Raises :class:`DivergedError` when its numbers left the finite range.
        """

    def save(self) -> bytes:
        """Where it stands: what :meth:`load` goes on from with the same result, bit for bit."""

    def load(self, data: bytes) -> None:
        """Stand where the trial stood when :meth:`save` was called on it."""

    def leave(self) -> None:
        """Write what it has made into ``made`` in its folder."""


class Trials(Protocol):
    """Makes trials of a kind, and judges what one made."""

    def __call__(self, ticket: Ticket) -> Trial:
        """A trial, which does nothing before it is asked to."""

    def held_out(self, ticket: Ticket, seed: int) -> float:
        """How good what the trial made, or its settings, are with a seed that no search has seen, 0..1."""

    def pinned(self, settings: Settings, iteration: int) -> Mapping[str, Any]:
        """Settings that a trial decided by its full length, if it ended at ``iteration``, before that."""


@dataclass(frozen=True)
class Work:
    """What every worker of a search is sent."""

    search: Search
    make: Trials
    out: Folder
    """The stage's folder."""
    threads: int


class Running:
    """A trial with its reports: those that are on disk are said again, then new ones follow."""

    def __init__(self, work: Work, number: int, settings: Settings) -> None:
        self._work, self.number = work, number
        self._folder = Book(work.out).at_work(number)
        log = self._folder.read_json(REPORTS) if self._folder.has(REPORTS) else {}
        self.settings = settings
        self._reports = [Report(**report) for report in log.get("reports", [])]
        self._ended: tuple[Ended, str] | None = tuple(log["ended"]) if log.get("ended") else None
        self._at: int = log.get("at", 0)
        self._said = 0
        self._trial: Trial | None = None

    @property
    def over(self) -> bool:
        """Whether it has come to its end, and all of it has been said."""
        return self._ended is not None and self._said >= len(self._reports)

    @property
    def ended(self) -> tuple[Ended, str] | None:
        """How it ended by itself, and why; ``None`` while it can go on."""
        return self._ended

    @property
    def said(self) -> int:
        """Reports said so far."""
        return self._said

    def step(self) -> Report:
        """The next report. Raises nothing: a trial that fails says the worst figure and is :attr:`over`."""
        if self._said == len(self._reports):
            self._go_on()
        self._said += 1
        return self._reports[self._said - 1]

    def _go_on(self) -> None:
        search, began = self._work.search, time.perf_counter()
        stop = next((s for s in search.stops if s > self._at), search.stops[-1])
        try:
            metrics = dict(self._opened().reach(stop))
            value = _finite(search.metric, metrics, stop)
            self._folder.write(STATE, self._opened().save())
        except DivergedError as error:
            self._fail("diverged", str(error), stop, began)
            return
        except Exception as error:  # a trial's failure is a row of the table, not the search's end
            told = str(error) if isinstance(error, RayddlError) else f"{type(error).__name__}: {error}"
            self._fail("failed", told, stop, began)
            return
        finite = {name: float(v) for name, v in metrics.items() if math.isfinite(v)}
        self._reports.append(Report(stop, value, finite, time.perf_counter() - began))
        self._at = stop
        self._ended = ("whole", "") if stop == search.stops[-1] else None
        self._write()

    def _fail(self, how: Ended, reason: str, stop: int, began: float) -> None:
        self._reports.append(Report(stop, self._work.search.worst, {}, time.perf_counter() - began))
        self._ended = (how, reason)
        self._write()

    def _opened(self) -> Trial:
        if self._trial is None:
            ticket = Ticket(self.number, self.settings, self._folder, self._work.threads)
            self._trial = self._work.make(ticket)
            if self._folder.has(STATE):
                self._trial.load(self._folder.read(STATE))
        return self._trial

    def _write(self) -> None:
        value = {
            "settings": self.settings,
            "reports": [asdict(report) for report in self._reports],
            "ended": self._ended,
            "at": self._at,
        }
        self._folder.write(REPORTS, json.dumps(value, allow_nan=False).encode())

    def finish(self) -> Row:
        """Run to the end, if it has not, and leave what it made."""
        while not self.over:
            self.step()
        if self._ended is not None and self._ended[0] == "whole":
            self._opened().leave()
        return self.row("whole")

    def leave(self) -> None:
        """Write what it has made, as it stands."""
        self._opened().leave()

    def row(self, ended: Ended) -> Row:
        """The trial's row, as it stands; it ended as ``ended`` says unless it ended by itself."""
        how, reason = self._ended or (ended, "")
        last = self._reports[-1] if self._reports else None
        return Row(
            self.number,
            self.settings,
            how,
            last.value if last else self._work.search.worst,
            last.iteration if last else 0,
            sum(report.seconds for report in self._reports),
            tuple(self._reports),
            reason,
        )


def _finite(metric: str, metrics: Mapping[str, float], stop: int) -> float:
    value = float(metrics[metric])
    if not math.isfinite(value):
        raise DivergedError(f"{metric} is {value} at iteration {stop}", code="metric-not-finite")
    return value
