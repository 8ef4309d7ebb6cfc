"""Shows a run in a pipe or a log: plain lines, a few per minute, without control codes."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TextIO

from rayddl.credentials import scrub
from rayddl.escapes import visible
from rayddl.pipeline.display import pace
from rayddl.pipeline.display.base import Closing, Display, Ending, unsaid
from rayddl.pipeline.display.pace import Clock, Pace
from rayddl.pipeline.plan import Plan
from rayddl.pipeline.tables import as_text, places_table, rows_table
from rayddl.stages.context import Progress, Silent

BETWEEN = 10.0
"""Minimum seconds between two lines about the same stage."""


class Plain(Display):
    """Prints plain lines; with ``quiet``, only the result."""

    def __init__(
        self, stream: TextIO | None = None, *, quiet: bool = False, clock: Clock = time.monotonic
    ) -> None:
        self._stream = stream
        self._quiet = quiet
        self._clock = clock
        self._lines: dict[str, _Line] = {}
        """The running stages, by name."""
        self._last: list[str] = []
        """The notes since the last stage that ended."""

    def say(self, text: str, *, always: bool = False) -> None:
        """Print a line without credentials, and flush."""
        if always or not self._quiet:
            # sys.stdout is read on each call because tools that capture output replace it. One call writes the whole
            # line: print() would write its end separately, and stages run in several threads.
            stream = self._stream or sys.stdout
            stream.write(f"{visible(scrub(text))}\n")
            stream.flush()

    def plan(self, plan: Plan) -> None:
        self.say(as_text(plan) + "\n")

    def status(self, text: str) -> AbstractContextManager[None]:
        self.say(text)
        return nullcontext()

    def note(self, text: str) -> None:
        self.say(text)
        if not self._quiet:
            self._last.append(text)

    def begin(self, stage: str) -> Progress:
        if self._quiet:
            return Silent()
        self.say(f"{stage}: started")
        self._lines[stage] = _Line(self, stage, Pace(self._clock), self._clock)
        return self._lines[stage]

    def end(self, stage: str, ending: Ending, seconds: float, details: Mapping[str, Any]) -> None:
        del details
        line = self._lines.pop(stage, None)
        self._last = []
        last = line.last() if line else []
        parts = ["cached"] if ending == "cached" else [f"{ending} after {pace.duration(seconds)}", *last]
        self.say(f"{stage}: {', '.join(parts)}")

    def missing(self, stage: str, needs: Sequence[str]) -> None:
        self.say(f"{stage}: not run, needs {', '.join(needs)}")

    def result(self, closing: Closing) -> None:
        for stage, rows in closing.tables.items():
            self.say(f"\n{as_text(rows_table(rows, stage))}", always=True)
        for line in unsaid(closing, self._last):
            self.say(f"warning: {line}", always=True)
        if closing.places:
            self.say(f"\n{as_text(places_table(closing.places))}", always=True)


class _Line:
    """Prints the progress of one stage as occasional lines."""

    def __init__(self, out: Plain, stage: str, pace_: Pace, clock: Clock) -> None:
        self._out, self._stage, self._pace, self._clock = out, stage, pace_, clock
        self._printed_at = clock()
        self._metric = ""

    def update(self, done: float, total: float, metric: str = "") -> None:
        """Report ``done`` of ``total`` units."""
        self._pace.update(done, total)
        self._metric = metric or self._metric
        now = self._clock()
        if now - self._printed_at < BETWEEN:
            return
        self._printed_at = now
        self._out.say(f"{self._stage}: {', '.join(figures(self._pace, self._metric))}")

    def last(self) -> list[str]:
        """Return the last reported figures, if any."""
        if not self._pace.total:
            return []
        counted = pace.count(self._pace.done, self._pace.total)
        return [counted, self._metric] if self._metric else [counted]

    def note(self, text: str) -> None:
        """Print a line about the stage."""
        self._out.say(f"{self._stage}: {text}")


def figures(pace_: Pace, metric: str) -> list[str]:
    """Return the texts of count, rate, remaining time and last metric, as far as they are known."""
    parts = [pace.count(pace_.done, pace_.total)]
    if pace_.rate:
        parts.append(pace.speed(pace_.rate))
    if pace_.left is not None and pace_.done < pace_.total:
        parts.append(f"{pace.duration(pace_.left)} left")
    return [*parts, metric] if metric else parts
