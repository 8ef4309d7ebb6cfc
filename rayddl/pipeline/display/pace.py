"""The rate and the remaining time of a stage, and the formats of such figures."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

Clock = Callable[[], float]

_RECENT_S = 60.0
_FEWEST = 8
"""Units that a rate is counted over, if they take longer than the last minute."""
_BETWEEN_SAMPLES = 1.0
_SHORTEST_SPAN = 0.2
_SPAN_OF_ESTIMATES, _PART_OF_FIRST = 2.0, 0.05
"""Seconds behind a rate from which the remaining time is estimated, and their share of the time of the first units.
Units that several workers finish almost at once are a high rate at first."""


class Pace:
    """The finished units, total and rate of one stage.

    The rate is that of about the last minute, or of the last units if these take longer, counted from the first
    report: units finished before a resumed stage started say nothing about its rate. Neither do the first units after
    it, which include work done once, such as compiling: the rate is counted from their end. It falls while units take
    longer than those before them.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._samples: deque[tuple[float, float]] = deque()
        """Times and units done at them, from the end of the first units; an earlier report is the only sample."""
        self.started = self._updated_at = clock()
        self._risen = False
        self._span, self._least_span, self._largest = 0.0, _SPAN_OF_ESTIMATES, 0.0
        self.done: float = 0
        self.total: float = 0
        self.rate: float | None = None
        """Units per second; ``None`` until units are done after the first ones."""

    def update(self, done: float, total: float) -> None:
        """Report ``done`` of ``total`` units."""
        now = self._clock()
        if done < self.done:
            self._samples.clear()
            self._risen, self.rate, self._span, self._largest = False, None, 0.0, 0.0
        more = done - self.done
        self.done, self.total = done, total
        if not self._samples:
            self._samples.append((now, done))
            self._updated_at = now
        elif more > 0:
            self._updated_at = now
            self._rise(now, more)
        elif self.rate is not None:
            then, before = self._samples[0]
            self.rate = min(self.rate, (done - before + self._largest) / (now - then))

    def _rise(self, now: float, more: float) -> None:
        if not self._risen:
            self._risen = True
            self._least_span = max(_SPAN_OF_ESTIMATES, _PART_OF_FIRST * (now - self._samples[0][0]))
            self._samples.clear()
            self._samples.append((now, self.done))
            return
        self._largest = max(self._largest, more)
        while len(self._samples) > 1:
            after, units = self._samples[1]
            if now - after < _RECENT_S or self.done - units < _FEWEST:
                break
            self._samples.popleft()
        then, before = self._samples[0]
        if now - then >= _SHORTEST_SPAN:
            self._span = now - then
            self.rate = (self.done - before) / self._span
        if now - self._samples[-1][0] >= _BETWEEN_SAMPLES:
            self._samples.append((now, self.done))

    @property
    def elapsed(self) -> float:
        """Seconds since the start of the stage."""
        return self._clock() - self.started

    @property
    def left(self) -> float | None:
        """Remaining seconds at this rate, counted down between units; ``None`` if unknown, as at the start."""
        if not self.rate or self.total <= 0 or self._span < self._least_span:
            return None
        since = self._clock() - self._updated_at
        return max(0.0, (self.total - self.done) / self.rate - since)


def duration(seconds: float) -> str:
    """Return seconds as ``0.4 s``, ``41 s``, ``3 min 20 s`` or ``2 h 05 min``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def speed(rate: float) -> str:
    """Return a rate per second as ``120/s`` or ``3.2/s``, or below 1 as ``12 s each``."""
    if rate >= 1:
        return f"{rate:,.0f}/s" if rate >= 9.95 else f"{rate:.1f}/s"
    return f"{duration(1 / rate)} each"


def count(done: float, total: float) -> str:
    """Return ``12/20``, with a decimal only for fractions of units."""
    return f"{_number(done)}/{_number(total)}"


def size(number: float) -> str:
    """Return bytes as ``512 B``, ``1.4 MB`` or ``2.0 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 999.5:
            return f"{number:.0f} {unit}" if unit == "B" or number >= 99.5 else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:,.1f} TB"


def _number(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.1f}"
