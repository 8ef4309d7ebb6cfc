"""Callbacks of Ray Tune during a search: trials' rows, the progress line, budgets, and Ray's logger callbacks."""

from __future__ import annotations

import contextlib
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray.tune import Callback, Stopper

from rayddl.errors import StageError
from rayddl.stages.context import Progress
from rayddl.stages.tune import result_grid
from rayddl.stages.tune.actor import METRIC, NUMBER
from rayddl.stages.tune.outcome import best_of, shown
from rayddl.stages.tune.plan import Search
from rayddl.stages.tune.result_grid import NumberedTrial
from rayddl.stages.tune.searcher import NumberedSearcher
from rayddl.stages.tune.store import Ended, Report, Row, TrialStore
from rayddl.stages.tune.trial import MachineError, Running, Work
from rayddl.storage import Folder

SHOW_SECONDS = 0.5
"""Seconds between two updates of the progress line."""
CLOCK_SECONDS = 10.0
"""Seconds between two records of the search's duration: a killed driver loses at most this much of it."""
Clock = Callable[[], float]


class Budget(Stopper):
    """Ends the search when its time budget or cost budget is used up, summed over all attempts."""

    def __init__(self, search: Search, store: TrialStore, clock: Clock = time.monotonic) -> None:
        self._search, self._book, self._clock = search, store, clock
        self._began = clock() - store.seconds()
        self._noted = clock()
        self.cost = sum(row.seconds for row in store.ended().values())
        """Seconds of trials' work so far."""
        self._counted: dict[str, int] = {}
        """By trial, the number of reports that are part of it."""
        self.cut_off: StageError | None = None
        """Why the search cannot go on. Ray Tune would wrap what a callback raises."""

    @property
    def seconds(self) -> float:
        """Seconds of the search so far, in all attempts."""
        return self._clock() - self._began

    @property
    def left(self) -> float | None:
        """Remaining seconds of the time budget; ``None`` without one."""
        budget = self._search.time_budget
        return None if budget is None else max(0.0, budget - self.seconds)

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Add the seconds of work of a report that is new; always false, since single trials are not ended."""
        # A trial that begins again repeats its reports.
        if result["report"] > self._counted.get(trial_id, 0):
            self._counted[trial_id] = result["report"]
            self.cost += float(result.get("work_seconds", 0.0))
        return False

    def stop_all(self) -> bool:
        """True if a budget is used up, or the search cannot go on."""
        if self._clock() - self._noted > CLOCK_SECONDS:
            self._noted = self._clock()
            self._book.note_seconds(self.seconds)
        over_cost = self._search.cost_budget is not None and self.cost >= self._search.cost_budget
        return self.left == 0.0 or over_cost or self.cut_off is not None


class TrialRows(Callback):
    """Writes a row for each trial that ends, and updates the progress line."""

    def __init__(
        self,
        work: Work,
        searcher: NumberedSearcher,
        budget: Budget,
        progress: Progress,
        clock: Clock = time.monotonic,
    ) -> None:
        self._work, self._searcher, self._budget, self._progress = work, searcher, budget, progress
        self._book = TrialStore(work.out)
        self._clock, self._shown = clock, 0.0
        self.rows = self._book.ended()
        """The trials that have ended, by number."""
        best = best_of(work.search, self.rows.values())
        self._kept = best.number if best else 0

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its callbacks for its own restart, which is not used. A display with an open file, such as that
        # of `--json`, cannot be pickled.
        return {}

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Write the row of a trial that has ended by itself or was stopped by the scheduler."""
        self._end(trial, "stopped")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Write the row of a trial whose worker was lost too often; or end the search, which can go on later, if the
        machine was to blame.
        """
        reason = _of_machine(trial)
        if reason is not None:
            number = self._searcher.numbers[trial.trial_id]
            self._budget.cut_off = StageError(
                f"trial {number} of the search could not go on: {reason}. What was finished is kept; mend the cause, "
                "and run the same command to continue.",
                code="trial-cut-off",
            )
        else:
            self._end(trial, "failed")

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Update the progress line: called once per iteration of Tune's loop."""
        if self._clock() - self._shown >= SHOW_SECONDS:
            self._shown = self._clock()
            self.show(sum(trial.status == "RUNNING" for trial in trials))

    def close(self) -> None:
        """Write the rows of trials that had begun, in any attempt, and not ended when the budget was used up."""
        for number in self._searcher.begun():
            self._write(row_of(self._work, number, "budget"))
        self._book.note_seconds(self._budget.seconds)
        self.show()

    def _end(self, trial: Any, how: Ended) -> None:
        number = self._searcher.numbers[trial.trial_id]
        row = row_of(self._work, number, how)
        if row.ended == "failed" and not row.reason:
            row = replace(row, reason="its worker was lost too often: killed, or out of memory")
        self._write(row)

    def _write(self, row: Row) -> None:
        self._book.end(row)
        self.rows[row.number] = row
        self._searcher.learn(row)
        best = best_of(self._work.search, self.rows.values())
        # The files of the template's own trial and of the best one so far are needed after the search.
        needed = {0, best.number if best else 0}
        for number in {row.number, self._kept} - needed:
            self._book.forget(number)
        self._kept = best.number if best else 0

    def show(self, running: int = 0) -> None:
        """Update the progress line; ``running`` is the number of running trials."""
        said = [f"{running} running"] if running else []
        counts = {"stopped": "stopped early", "diverged": "diverged", "failed": "failed"}
        said += [
            f"{n} {text}"
            for how, text in counts.items()
            if (n := sum(r.ended == how for r in self.rows.values()))
        ]
        best = best_of(self._work.search, self.rows.values())
        if best is not None:
            said.append(f"best {shown(self._work.search, best.value)} (trial {best.number})")
        left = self._budget.left
        if left is not None:
            said.append(f"{left / 60:.0f} min left" if left > 90 else f"{left:.0f} s left")
        metric = ", ".join(said) or "starting workers"
        self._progress.update(len(self.rows), self._work.search.samples, metric)


def _of_machine(trial: Any) -> str | None:
    """The last failure of a trial, from Ray Tune's text of its errors, if that is a :class:`MachineError`."""
    if trial.error_file is None:
        return None
    with contextlib.suppress(OSError):  # on a full disk it may not be there
        last = (
            Path(trial.error_file).read_text(encoding="utf-8", errors="replace").rpartition("Failure # ")[2]
        )
        found = re.findall(rf"\b{MachineError.__name__}: (.+)", last)
        return found[-1].strip() if found else None
    return None


class Loggers(Callback):
    """Passes the trials' reports to Ray's logger callbacks, which see each trial under its number.

    A trial that continues, in another process or another attempt of the search, reports again from its beginning; so
    its files begin anew in each attempt, and a report is passed on once. On a remote filesystem a trial's files appear
    when it ends.
    """

    def __init__(self, work: Work, searcher: NumberedSearcher, loggers: Mapping[str, Any]) -> None:
        self._metric, self._out, self._searcher, self._loggers = (
            work.search.metric, work.out, searcher, loggers,
        )  # fmt: skip
        self._stack = contextlib.ExitStack()
        local = work.out.local
        if local is None:
            local = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        self._local = local / result_grid.FOLDER
        self._open: dict[int, tuple[NumberedTrial, list[Report]]] = {}

    def __getstate__(self) -> dict[str, Any]:
        # As for TrialRows. The loggers' open files and connections cannot be pickled.
        return {}

    def setup(self, *args: Any, **kwargs: Any) -> None:
        """Set up the loggers."""
        self._each("setup", *args, **kwargs)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Log a report, unless this attempt has logged it."""
        seen, reports = self._opened(trial)
        if result["report"] <= len(reports):
            return
        metrics = {
            name.removeprefix(METRIC): float(value)
            for name, value in result.items()
            if name.startswith(METRIC)
        }
        reports.append(Report(result["iteration"], result["value"], metrics, result["work_seconds"]))
        said = result_grid.result_of(self._metric, seen.trial_id, seen.config, reports)
        seen.update_last_result(dict(said))  # type: ignore[no-untyped-call]
        self._each("log_trial_result", iteration, seen, said)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """End the log of a trial."""
        self._end(self._searcher.numbers[trial.trial_id], failed=bool(trial.last_result.get("reason")))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """End the log of a trial whose worker was lost too often."""
        self._end(self._searcher.numbers[trial.trial_id], failed=True)

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """End the logs of trials that were running when the budget was used up, and the loggers."""
        for number in list(self._open):
            self._end(number, failed=False)
        self._each("on_experiment_end", trials, **info)

    def close(self) -> None:
        """Remove temporary files."""
        self._stack.close()

    def _opened(self, trial: Any) -> tuple[NumberedTrial, list[Report]]:
        number = self._searcher.numbers[trial.trial_id]
        if number not in self._open:
            settings = {key: value for key, value in trial.config.items() if key != NUMBER}
            self._out.clear(f"{result_grid.FOLDER}/{result_grid.folder_of(number)}")
            seen = NumberedTrial(self._out, number, settings, self._local / result_grid.folder_of(number))
            seen.init_local_path()
            self._open[number] = seen, []
            self._each("log_trial_start", seen)
        return self._open[number]

    def _end(self, number: int, *, failed: bool) -> None:
        if number not in self._open:
            return
        seen, _ = self._open.pop(number)
        self._each("log_trial_end", seen, failed=failed)
        if self._out.local is None:
            _upload(self._local / result_grid.folder_of(number), self._out.child(result_grid.FOLDER))

    def _each(self, call: str, *args: Any, **kwargs: Any) -> None:
        """Call the method ``call`` of each logger. Raises :class:`StageError` that names the one that fails."""
        for name, logger in self._loggers.items():
            with _named(name):
                getattr(logger, call)(*args, **kwargs)


@contextlib.contextmanager
def _named(logger: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise StageError(
            f"the logger callback {logger} failed: {type(error).__name__}: {error}; ended trials are kept. "
            f"Check callbacks.{logger} and its server, or leave it out, and run the same command again.",
            code="logger-failed",
        ) from error


def _upload(local: Path, to: Folder) -> None:
    for file in local.rglob("*"):
        if file.is_file():
            to.write(file.relative_to(local.parent).as_posix(), file.read_bytes())


def row_of(work: Work, number: int, how: Ended) -> Row:
    """A trial's row, built from the files in its folder."""
    return Running(work, number, TrialStore(work.out).settings(number)).row(how)
