"""A stage's progress set down now and then, for whoever looks at the run from elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeAlias

from rayddl.pipeline.display.pace import Clock, Pace
from rayddl.stages.context import Progress

BETWEEN = 10.0
"""Seconds between two beats of one stage: few enough writes for object storage."""

Beat: TypeAlias = Callable[[dict[str, Any]], None]
"""Takes ``{"done", "total", "rate", "left", "metric"}``; rates are units and seconds, ``None`` while unknown."""


class Heartbeat:
    """A :class:`Progress` that passes everything on, and says now and then how far the stage is."""

    def __init__(self, inner: Progress, beat: Beat, clock: Clock = time.monotonic) -> None:
        self._inner, self._beat, self._clock = inner, beat, clock
        self._pace = Pace(clock)
        self._last: float | None = None

    def update(self, done: float, total: float, metric: str = "") -> None:
        """Take in how far the stage is."""
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
        """Pass on a line worth keeping."""
        self._inner.note(text)
