"""Runs one trial: the stage's code, advanced from stop to stop, with its state on disk.

Does not depend on Ray Tune: :mod:`rayddl.stages.tune.actor` passes the reports to it.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from rayddl.errors import DivergedError, RayddlError
from rayddl.stages.runtime import failures
from rayddl.stages.tune.plan import Search
from rayddl.stages.tune.space import Settings
from rayddl.stages.tune.store import DEVIATION, REPORTS, STATE, Ended, Report, Row, TrialStore
from rayddl.storage import Folder

FULL = 2
"""Times that a trial begins again after its GPU had too little memory left; after that, it has failed."""
HELD_OUT = "held out"
"""The name from which fresh seeds are derived: no trial uses these seeds."""


@dataclass(frozen=True)
class TrialTask:
    """The arguments of a trial."""

    number: int
    settings: Settings
    folder: Folder
    """The trial's own folder."""
    threads: int


class Trial(Protocol):
    """A stage's work with the settings of a trial, in resumable parts."""

    def reach(self, until: int) -> Mapping[str, float]:
        """Run to iteration ``until``, unless it is reached already, and return the metrics there.

        Raises :class:`DivergedError` if its numbers are not finite.
        """

    def save(self) -> bytes:
        """The trial's state as bytes, from which :meth:`load` continues with a bit-identical result."""

    def load(self, data: bytes) -> None:
        """Restore a state that :meth:`save` returned."""

    def leave(self) -> None:
        """Write its output into the folder ``made`` of its folder."""


class Trials(Protocol):
    """Makes trials of a kind, and evaluates their outputs."""

    def __call__(self, task: TrialTask) -> Trial:
        """A trial that has not started."""

    def held_out(self, task: TrialTask, seed: int) -> float:
        """The metric, in [0, 1], of the trial's output or settings with a seed that no search uses."""

    def pinned(self, settings: Settings, iteration: int) -> Mapping[str, Any]:
        """Settings that a trial resolved by its full length, for one that ended earlier, at ``iteration``."""


@dataclass(frozen=True)
class Work:
    """The arguments that all workers of a search share."""

    search: Search
    make: Trials
    out: Folder
    """The stage's folder."""
    threads: int


def over_seeds(accuracies: Sequence[float]) -> dict[str, float]:
    """The metrics of a report: the mean over seeds and, of several, the standard deviation."""
    found = {"accuracy": statistics.fmean(accuracies)}
    return found | ({DEVIATION: statistics.pstdev(accuracies)} if len(accuracies) > 1 else {})


class MachineError(RuntimeError):
    """A disk, a storage or a GPU failed, and not the trial."""


class Running:
    """A trial with its reports: first those on disk are repeated, then new ones follow."""

    def __init__(self, work: Work, number: int, settings: Settings) -> None:
        self._work, self.number = work, number
        self._folder = TrialStore(work.out).at_work(number)
        log = self._folder.read_json(REPORTS) if self._folder.has(REPORTS) else {}
        self.settings = settings
        self._reports = [Report(**report) for report in log.get("reports", [])]
        self._ended: tuple[Ended, str] | None = tuple(log["ended"]) if log.get("ended") else None
        self._at: int = log.get("at", 0)
        self._full: int = log.get("full", 0)
        """Times that the GPU had too little memory left."""
        self._said = 0
        self._trial: Trial | None = None

    @property
    def over(self) -> bool:
        """True if the trial has ended, and all its reports were returned."""
        return self._ended is not None and self._said >= len(self._reports)

    @property
    def ended(self) -> tuple[Ended, str] | None:
        """How the trial ended by itself, and the reason; ``None`` while it can continue."""
        return self._ended

    @property
    def said(self) -> int:
        """The number of reports returned so far."""
        return self._said

    def step(self) -> Report:
        """The next report. A trial that fails reports the worst metric and is :attr:`over`.

        Raises ``torch.OutOfMemoryError`` if its GPU has too little memory left, at most :data:`FULL` times, and
        :class:`MachineError`.
        """
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
        except Exception as error:  # a failed trial is a row of the table and does not end the search
            if failures.gpu_out_of_memory(error) and self._full < FULL:
                # The settings may not be to blame: others use the GPU. Ray Tune starts the trial again.
                self._full += 1
                self._write()
                raise
            # A row is final, and with another disk or process the same settings may succeed.
            if failures.of_machine(error):
                raise MachineError(f"{type(error).__name__}: {error}") from error
            if failures.lost(error):
                raise
            reason = str(error) if isinstance(error, RayddlError) else f"{type(error).__name__}: {error}"
            self._fail("failed", reason, stop, began)
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
            task = TrialTask(self.number, self.settings, self._folder, self._work.threads)
            self._trial = self._work.make(task)
            if self._folder.has(STATE):
                self._trial.load(self._folder.read(STATE))
        return self._trial

    def _write(self) -> None:
        value = {
            "settings": self.settings,
            "reports": [asdict(report) for report in self._reports],
            "ended": self._ended,
            "at": self._at,
            "full": self._full,
        }
        self._folder.write(REPORTS, json.dumps(value, allow_nan=False).encode())

    def finish(self) -> Row:
        """Run to the end, write the output, and return the row."""
        while not self.over:
            self.step()
        if self._ended is not None and self._ended[0] == "whole":
            self._opened().leave()
        return self.row("whole")

    def leave(self, iteration: int) -> None:
        """Write its output. Where its folder was deleted, the trial runs again to ``iteration`` first."""
        while self._ended is None and self._at < iteration:
            self.step()
        self._opened().leave()

    def row(self, ended: Ended) -> Row:
        """The trial's current row; ``ended`` applies unless the trial ended by itself."""
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
