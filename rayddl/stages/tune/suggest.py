"""Proposes the settings of trials from the results of others, by an ask-and-tell interface without Ray."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, Protocol

from rayddl.seeds import derive
from rayddl.stages.tune import space as spaces
from rayddl.stages.tune.plan import Search
from rayddl.stages.tune.space import Entry, Settings


class Suggest(Protocol):
    """A method that proposes settings."""

    def ask(self, number: int) -> Settings:
        """The settings of trial ``number``."""

    def tell(self, number: int, settings: Settings, value: float) -> None:
        """Record the metric ``value`` of trial ``number``, which an earlier attempt may have proposed."""


class Drawn:
    """Random draws, or a grid's combinations in turn: a trial's settings depend only on its number."""

    def __init__(self, search: Search) -> None:
        self._search = search

    def ask(self, number: int) -> Settings:
        """Trial 0 has the template's own settings; a grid counts from trial 1."""
        return self._search.drawn(number - 1 if self._search.searcher == "grid" else number)

    def tell(self, number: int, settings: Settings, value: float) -> None:
        """Do nothing."""
        del number, settings, value


class Parzen:
    """Optuna's tree-structured Parzen estimator (TPE); trials may end in any order.

    ``first`` is the number of the first trial that it proposes.
    """

    def __init__(self, search: Search, first: int = 0) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._search = search
        # constant_liar is experimental in optuna 4 and on by default in optuna 5. A context manager would restore the
        # filters of the whole process under other threads.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(
            # With one seed for all attempts, each would begin with the same random settings.
            seed=derive(search.seed, "optuna", *([first] if first else [])) % 2**32,
            multivariate=False,
            # Several trials run at once: running trials count as bad, so that proposals differ from them.
            constant_liar=True,
            n_startup_trials=min(10, max(4, search.samples // 4)),
        )
        self._study = optuna.create_study(
            direction="maximize" if search.mode == "max" else "minimize", sampler=sampler
        )
        self._asked: dict[int, Any] = {}

    def ask(self, number: int) -> Settings:
        """Settings proposed from the results so far."""
        trial = self._asked[number] = self._study.ask()
        return spaces.assemble(
            self._search.space, self._search.base, lambda key, entry: _suggested(trial, key, entry)
        )

    def tell(self, number: int, settings: Settings, value: float) -> None:
        """Record a result, also of a trial that an earlier attempt proposed."""
        import optuna

        asked = self._asked.pop(number, None)
        if asked is not None:
            self._study.tell(asked, value)
            return
        found = as_parameters(self._search.space, settings)
        if found is not None:
            frozen = optuna.trial.create_trial(params=found[0], distributions=found[1], value=value)
            self._study.add_trial(frozen)


def suggester(search: Search, first: int) -> Suggest:
    """The suggester for the trials of ``search`` from number ``first`` on."""
    return Parzen(search, first) if search.searcher == "optuna" else Drawn(search)


def _suggested(trial: Any, key: str, entry: Entry) -> Any:
    if entry.values is not None:
        return entry.values[trial.suggest_categorical(key, range(len(entry.values)))]
    if entry.randint is not None:
        return int(trial.suggest_int(key, *entry.randint))
    d = distribution_of(entry)
    found = trial.suggest_float(key, d.low, d.high, step=d.step, log=d.log)
    # Rounded like every drawn number.
    place = entry.place(found)
    return found if place is None else entry.at(place)


def distribution_of(entry: Entry) -> Any:
    """The entry as a distribution of optuna's; for a list, over the indices of its values."""
    from optuna import distributions as d

    if entry.values is not None:
        return d.CategoricalDistribution(range(len(entry.values)))
    if entry.randint is not None:
        return d.IntDistribution(*entry.randint)
    if entry.quniform is not None:
        low, high, step = entry.quniform
        return d.FloatDistribution(low, low + step * int((high - low) / step + 1e-9), step=step)
    assert entry.ends is not None
    return d.FloatDistribution(*entry.ends, log=entry.loguniform is not None)


def as_parameters(
    space: spaces.Space, settings: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Settings as optuna's parameters and distributions; ``None`` if some are outside the space."""
    values, distributions = {}, {}
    for key, value in settings.items():
        entry = space[key]
        place = entry.place(value)
        if place is None:
            return None
        distributions[key] = distribution_of(entry)
        values[key] = int(place * len(entry.values)) if entry.values is not None else value
    return values, distributions
