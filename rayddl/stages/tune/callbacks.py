"""Callbacks of Ray Tune during a search: trials' rows, the progress line, budgets."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ray.tune import Callback, Stopper

from rayddl.stages.context import Progress
from rayddl.stages.tune.outcome import best_of, shown
from rayddl.stages.tune.plan import Search
from rayddl.stages.tune.searcher import Numbered
from rayddl.stages.tune.store import Book, Ended, Row
from rayddl.stages.tune.trial import Running, Work

SHOW_SECONDS = 0.5
"""Seconds between two updates of the progress line."""
CLOCK_SECONDS = 10.0
"""Seconds between two records of the search's duration: a killed driver loses at most this much of it."""
Clock = Callable[[], float]


class Budget(Stopper):
    """Ends the search when its time budget or cost budget is used up, summed over all attempts."""

    def __init__(self, search: Search, book: Book, clock: Clock = time.monotonic) -> None:
        self._search, self._book, self._clock = search, book, clock
        self._began = clock() - book.seconds()
        self._noted = clock()
        self.cost = sum(row.seconds for row in book.ended().values())
        """Seconds of trials' work so far."""

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
        """Add the report's seconds of work; always false, since single trials are not ended."""
        del trial_id
        self.cost += float(result.get("work_seconds", 0.0))
        return False

    def stop_all(self) -> bool:
        """True if a budget is used up."""
        if self._clock() - self._noted > CLOCK_SECONDS:
            self._noted = self._clock()
            self._book.note_seconds(self.seconds)
        over_cost = self._search.cost_budget is not None and self.cost >= self._search.cost_budget
        return self.left == 0.0 or over_cost


class TrialRows(Callback):
    """Writes a row for each trial that ends, and updates the progress line."""

    def __init__(
        self,
        work: Work,
        searcher: Numbered,
        budget: Budget,
        progress: Progress,
        clock: Clock = time.monotonic,
    ) -> None:
        self._work, self._searcher, self._budget, self._progress = work, searcher, budget, progress
        self._book = Book(work.out)
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
        """Write the row of a trial whose worker was lost too often."""
        self._end(trial, "failed")

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Update the progress line: called once per iteration of Tune's loop."""
        if self._clock() - self._shown >= SHOW_SECONDS:
            self._shown = self._clock()
            self.show(sum(trial.status == "RUNNING" for trial in trials))

    def close(self) -> None:
        """Write the rows of trials that were running when the budget was used up."""
        for number in [n for n in self._searcher.numbers.values() if n not in self.rows]:
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


def row_of(work: Work, number: int, how: Ended) -> Row:
    """A trial's row, built from the files in its folder."""
    return Running(work, number, Book(work.out).settings(number)).row(how)
