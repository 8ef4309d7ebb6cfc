"""Ray Tune's schedulers for a search: which trials go on, and which take over another's state."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    FIFOScheduler,
    HyperBandScheduler,
    PopulationBasedTraining,
)

from rayddl.seeds import derive
from rayddl.stages.tune.plan import Search
from rayddl.stages.tune.space import Settings, Space
from rayddl.stages.tune.store import Row

VALUE, TIME = "value", "report"
"""What schedulers look at: the metric, and how many reports a trial has made."""
RESAMPLED = 0.25
"""Share of settings that a copy draws anew; the others are nudged."""
NUDGE = 0.1
"""How far a nudge goes, as a share of the setting's range."""
COPIED = 0.25
"""Share of trials that may take over the state of as many others."""


def scheduler_of(search: Search, ended: Iterable[Row] = ()) -> Any:
    """The scheduler that ``search`` asks for, as far along as the trials that ended in earlier attempts."""
    common: dict[str, Any] = {"time_attr": TIME, "metric": VALUE, "mode": search.mode}
    length = len(search.stops)
    if search.scheduler == "asha":
        asha: Any = AsyncHyperBandScheduler(
            **common, max_t=length, grace_period=search.grace, reduction_factor=search.reduction
        )
        for row in ended:
            _tell(asha, row)
        return asha
    if search.scheduler == "hyperband":
        return HyperBandScheduler(**common, max_t=length, reduction_factor=search.reduction)
    if search.scheduler == "pbt":
        return _population(PopulationBasedTraining)(
            search, **common, perturbation_interval=search.grace, custom_explore_fn=Explore(search)
        )
    if search.scheduler == "pb2":
        from ray.tune.schedulers.pb2 import PB2

        bounds = {key: list(entry.ends or ()) for key, entry in search.space.items()}
        return _population(PB2)(
            search, **common, perturbation_interval=search.grace, hyperparam_bounds=bounds,
            custom_explore_fn=lambda config: config | rounded(search.space, config),
        )  # fmt: skip
    return FIFOScheduler()


def _tell(asha: Any, row: Row) -> None:
    """Let ``asha`` see a trial that ended before it was made."""
    trial: Any = SimpleNamespace(trial_id=f"earlier-{row.number}")
    asha.on_trial_add(None, trial)
    said: dict[str, Any] = {}
    for count, report in enumerate(row.reports, start=1):
        said = {VALUE: report.value, TIME: count}
        asha.on_trial_result(None, trial, said)
    asha.on_trial_complete(None, trial, said)


def _population(base: Any) -> Any:
    """``base`` for trials that keep their number when they take over another's state and settings."""

    class Population(base):  # type: ignore[misc]  # one of Ray's classes
        def __init__(self, search: Search, **settings: Any) -> None:
            super().__init__(**settings, quantile_fraction=COPIED, log_config=False)
            self._search = search

        def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
            # Ray refuses searchers here, because they would be told of settings that they never chose. Ours
            # only hands out the first settings; it learns from rows, which have a trial's settings as they are.
            del tune_controller
            super().on_trial_add(SimpleNamespace(search_alg=None), trial)

        def _get_new_config(self, trial: Any, trial_to_clone: Any) -> tuple[Any, Any]:
            with warnings.catch_warnings():
                # How well a Gaussian process fits a handful of points is nothing that a user can mend.
                warnings.simplefilter("ignore")
                config, operations = super()._get_new_config(trial, trial_to_clone)
            kept = {key: value for key, value in trial.config.items() if key not in self._search.space}
            changed = {key: value for key, value in config.items() if key in self._search.space}
            return kept | changed, operations

    return Population


class Explore:
    """How a copy's settings differ from those of the trial it copies: some drawn anew, the others nudged."""

    def __init__(self, search: Search) -> None:
        self._search, self._count = search, 0

    def __call__(self, config: dict[str, Any]) -> dict[str, Any]:
        """``config`` with every searched setting changed."""
        self._count += 1
        draws = random.Random(derive(self._search.seed, "explore", self._count))  # noqa: S311  # no secret
        return config | explored(self._search.space, config, draws)


def explored(space: Space, settings: Settings, draws: random.Random) -> Settings:
    """Settings near ``settings``; a list's neighbour is the value beside it."""
    found: Settings = {}
    for key, entry in space.items():
        anew, up, place = draws.random() < RESAMPLED, draws.random() < 0.5, entry.place(settings[key])
        if anew or place is None:
            found[key] = entry.at(draws.random())
            continue
        far = NUDGE if entry.values is None else 1 / len(entry.values)
        found[key] = entry.at(min(max(place + (far if up else -far), 0.0), 1 - 1e-12))
    return found


def rounded(space: Space, settings: Settings) -> Settings:
    """Numbers that came as they fell, as values of their entries."""
    found: Settings = {}
    for key, entry in space.items():
        place = entry.place(settings[key])
        found[key] = settings[key] if place is None else entry.at(place)
    return found
