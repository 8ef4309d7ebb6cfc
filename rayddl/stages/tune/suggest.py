"""What to try next. Knows nothing of Ray: asked for settings by number, told figures as they come."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, Protocol

from rayddl.seeds import derive
from rayddl.stages.tune import space as spaces
from rayddl.stages.tune.plan import Search
from rayddl.stages.tune.space import Entry, Settings


class Suggest(Protocol):
    """A way to choose settings."""

    def ask(self, number: int) -> Settings:
        """The settings of trial ``number``."""

    def tell(self, number: int, settings: Settings, value: float) -> None:
        """Trial ``number`` with ``settings`` ended at ``value``, whoever chose them."""


class Drawn:
    """At random, or a grid's combinations in turn: each trial's settings hang on its number alone."""

    def __init__(self, search: Search) -> None:
        self._search = search

    def ask(self, number: int) -> Settings:
        """Trial 0 has the template's own settings; a grid counts from trial 1."""
        return self._search.drawn(number - 1 if self._search.searcher == "grid" else number)

    def tell(self, number: int, settings: Settings, value: float) -> None:
        """Nothing is learned from it."""
        del number, settings, value


class Parzen:
    """Optuna's tree-structured Parzen estimator, with trials told in whatever order they end."""

    def __init__(self, search: Search) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._search = search
        with warnings.catch_warnings():
            # Optuna 4 calls constant_liar experimental; 5 has it on by itself.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(
                seed=derive(search.seed, "optuna") % 2**32,
                multivariate=False,
                # Several trials run at once: what is asked for and not yet told counts as bad near by.
                constant_liar=True,
                n_startup_trials=min(10, max(4, search.samples // 4)),
            )
        self._study = optuna.create_study(
            direction="maximize" if search.mode == "max" else "minimize", sampler=sampler
        )
        self._asked: dict[int, Any] = {}

    def ask(self, number: int) -> Settings:
        """Chosen by what was told so far."""
        trial = self._asked[number] = self._study.ask()
        return spaces.assemble(
            self._search.space, self._search.base, lambda key, entry: _suggested(trial, key, entry)
        )

    def tell(self, number: int, settings: Settings, value: float) -> None:
        """Trials that were asked for elsewhere, by an earlier attempt, are told all the same."""
        import optuna

        asked = self._asked.pop(number, None)
        if asked is not None:
            self._study.tell(asked, value)
            return
        found = as_parameters(self._search.space, settings)
        if found is not None:
            frozen = optuna.trial.create_trial(params=found[0], distributions=found[1], value=value)
            self._study.add_trial(frozen)


def suggester(search: Search) -> Suggest:
    """The way that ``search`` asks for."""
    return Parzen(search) if search.searcher == "optuna" else Drawn(search)


def _suggested(trial: Any, key: str, entry: Entry) -> Any:
    if entry.values is not None:
        return entry.values[trial.suggest_categorical(key, range(len(entry.values)))]
    if entry.randint is not None:
        return int(trial.suggest_int(key, *entry.randint))
    d = distribution_of(entry)
    found = trial.suggest_float(key, d.low, d.high, step=d.step, log=d.log)
    # Rounded as every drawn number is.
    place = entry.place(found)
    return found if place is None else entry.at(place)


def distribution_of(entry: Entry) -> Any:
    """An entry as one of optuna's distributions; of a list, over the places in it."""
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
    """Settings as optuna stores them; ``None`` where some lie outside the space."""
    values, distributions = {}, {}
    for key, value in settings.items():
        entry = space[key]
        place = entry.place(value)
        if place is None:
            return None
        distributions[key] = distribution_of(entry)
        values[key] = int(place * len(entry.values)) if entry.values is not None else value
    return values, distributions
