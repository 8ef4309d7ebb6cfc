"""Records a stage's progress from time to time, so that ``rayddl status`` can read it on another machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeAlias

from rayddl.pipeline.display.pace import Clock, Pace
from rayddl.stages.context import Progress

BETWEEN = 10.0
"""Seconds between two records of one stage; few enough writes for object storage."""

Beat: TypeAlias = Callable[[dict[str, Any]], None]
"""Receives ``{"done", "total", "rate", "left", "metric"}``: units, units, units/s, s, text; ``None`` if unknown."""


class Heartbeat:
    """A :class:`Progress` that forwards reports to ``inner`` and, at most every 10 s, calls ``beat``."""

    def __init__(self, inner: Progress, beat: Beat, clock: Clock = time.monotonic) -> None:
        self._inner, self._beat, self._clock = inner, beat, clock
        self._pace = Pace(clock)
        self._last: float | None = None

    def update(self, done: float, total: float, metric: str = "") -> None:
        """Report ``done`` of ``total`` units."""
        self._inner.update(done, total, metric)
        self._pace.update(done, total)
        now = self._clock()
        if self._last is None or now - self._last >= BETWEEN:
            self._last = now
            self._beat(
                {
                    "done": done,
                    "total": total,
                    "rate": self._pace.rate,
                    "left": self._pace.left,
                    "metric": metric,
                }
            )

    def note(self, text: str) -> None:
        """Forward a line."""
        self._inner.note(text)
