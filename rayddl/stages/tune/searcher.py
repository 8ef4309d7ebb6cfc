"""Ray Tune's search algorithm: proposes the unfinished trials of earlier attempts first, then new ones."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from typing import Any

from ray.tune.search import Searcher

from rayddl.stages.tune.actor import NUMBER
from rayddl.stages.tune.plan import Search
from rayddl.stages.tune.space import Settings
from rayddl.stages.tune.store import Row, TrialStore
from rayddl.stages.tune.suggest import suggester


class NumberedSearcher(Searcher):
    """Numbers trials, and stores the settings of each before it begins.

    Trial 0 has the template's own settings, as the baseline of the search.
    """

    def __init__(
        self, search: Search, store: TrialStore, most: Callable[[], int] = lambda: sys.maxsize
    ) -> None:
        super().__init__(metric="value", mode=search.mode)
        self._most, self._running = most, set[str]()
        self._search, self._book = search, store
        self.numbers: dict[str, int] = {}
        """The number of each trial by Tune's id."""
        ended, begun = store.ended(), self.begun()
        self._unfinished = deque(sorted(begun.items()))
        self._next = max([*ended, *begun], default=-1) + 1
        self._suggest = suggester(search, self._next)
        for row in ended.values():
            self.learn(row)
        self.missing = len(begun) + max(0, search.samples - self._next)
        """The number of trials that are still to be run."""

    def begun(self) -> dict[int, Settings]:
        """The search's trials that have begun and not ended, in any attempt, with their settings."""
        # Larger numbers belong to runs after the search.
        return {n: settings for n, settings in self._book.begun().items() if n < self._search.samples}

    def suggest(self, trial_id: str) -> Any:
        """The next trial's number and settings, as Tune's configuration; ``None`` while ``most`` trials run."""
        if len(self._running) >= self._most():
            return None
        if self._unfinished:
            number, settings = self._unfinished.popleft()
        elif self._next < self._search.samples:
            number, self._next = self._next, self._next + 1
            settings = self._search.own if number == 0 else self._suggest.ask(number)
            self._book.begin(number, settings)
        else:
            return Searcher.FINISHED
        self.numbers[trial_id] = number
        self._running.add(trial_id)
        return {NUMBER: number, **settings}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Make room for another trial. Results are taken from trials' rows, see :meth:`learn`."""
        del result, error
        self._running.discard(trial_id)

    def learn(self, row: Row) -> None:
        """Pass a trial's result to the suggester. A trial without a finite metric counts as the worst."""
        self._suggest.tell(row.number, row.settings, row.value)

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: a search resumes from its :class:`TrialStore`."""
        del checkpoint_path

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: see :meth:`save`."""
        del checkpoint_path
