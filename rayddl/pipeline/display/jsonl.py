"""Shows a run to programs: one JSON object per line, and nothing else on standard output."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TextIO

from rayddl.credentials import scrub
from rayddl.errors import DefinitionError, RayddlError
from rayddl.pipeline.display.base import Closing, Display, Ending
from rayddl.pipeline.display.pace import Clock, Pace
from rayddl.pipeline.plan import Plan
from rayddl.stages.context import Progress

_BETWEEN = 1.0


class JsonLines(Display):
    """Writes the events ``plan``, ``note``, ``progress`` (at most one per second and stage, and the last),
    ``stage_done``, ``stage_missing``, ``result`` and ``error``.
    """

    def __init__(self, stream: TextIO, clock: Clock = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._run = ""
        self._lock = threading.Lock()

    def emit(self, event: str, **fields: Any) -> None:
        """Write one event."""
        run = {"run": self._run} if self._run else {}
        text = json.dumps(scrub({"event": event, **run, **fields}), allow_nan=False)
        with self._lock:
            self._stream.write(text + "\n")
            self._stream.flush()

    def plan(self, plan: Plan) -> None:
        """Write the plan; all later events have the name of the run."""
        self._run = plan.definition.name
        self.emit("plan", **plan.to_json())

    def status(self, text: str) -> AbstractContextManager[None]:
        self.note(text)
        return nullcontext()

    def note(self, text: str) -> None:
        self.emit("note", text=text)

    def begin(self, stage: str) -> Progress:
        return _Line(self, stage, Pace(self._clock), self._clock)

    def end(self, stage: str, ending: Ending, seconds: float, details: Mapping[str, Any]) -> None:
        self.emit("stage_done", stage=stage, state=ending, seconds=round(seconds, 3), **details)

    def missing(self, stage: str, needs: Sequence[str]) -> None:
        self.emit("stage_missing", stage=stage, needs=list(needs))

    def result(self, closing: Closing) -> None:
        tables = {stage: [dict(row) for row in rows] for stage, rows in closing.tables.items()}
        self.emit(
            "result",
            tables=tables,
            places=dict(closing.places),
            warnings=list(closing.warnings),
            **closing.details,
        )

    def error(self, error: BaseException, message: str, exit_code: int) -> bool:
        known = {"code": error.code} if isinstance(error, RayddlError) else {}
        problems = {"problems": error.problems} if isinstance(error, DefinitionError) else {}
        name = type(error).__name__
        self.emit("error", error=name, **known, message=message, exit_code=exit_code, **problems)
        return True

    def close(self) -> None:
        self._stream.flush()


class _Line:
    """Writes the progress of one stage as events."""

    def __init__(self, out: JsonLines, stage: str, pace: Pace, clock: Clock) -> None:
        self._out, self._stage, self._pace, self._clock = out, stage, pace, clock
        self._emitted_at = -_BETWEEN

    def update(self, done: float, total: float, metric: str = "") -> None:
        """Report ``done`` of ``total`` units."""
        self._pace.update(done, total)
        now = self._clock()
        if now - self._emitted_at < _BETWEEN and done < total:
            return
        self._emitted_at = now
        self._out.emit(
            "progress",
            stage=self._stage,
            done=done,
            total=total,
            rate=_rounded(self._pace.rate),
            left_s=_rounded(self._pace.left),
            metric=metric,
        )

    def note(self, text: str) -> None:
        """Write a note."""
        self._out.emit("note", stage=self._stage, text=text)


def private_stdout() -> TextIO:
    """Return standard output for this writer only; other output is redirected to standard error.

    Libraries and worker processes print at any time, and a program that parses the events would fail on their
    lines.
    """
    try:
        if sys.stdout.fileno() != 1:
            return sys.stdout
    except (OSError, AttributeError, ValueError):
        return sys.stdout
    sys.stdout.flush()
    own = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return own


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
