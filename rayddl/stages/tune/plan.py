"""A search as plain values: settings and length of its trials, and the metric."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from rayddl.seeds import derive
from rayddl.stages.settings import Mode, StageConfig
from rayddl.stages.tune import space as spaces
from rayddl.stages.tune.settings import SAMPLES, TuneConfig, base_of, tunable_of
from rayddl.stages.tune.space import Base, Settings, Space

WORST: Mapping[str, float] = {"max": 0.0, "min": 1e6}
"""The metric of a trial without a finite value: no real one is worse."""
REPORTS = 8
"""Default number of reports of a trial."""


@dataclass(frozen=True)
class Search:
    """The space, the trials and the methods of a search."""

    space: Space
    base: Base
    """Returns the template's own value of a key."""
    metric: str
    mode: Mode
    samples: int
    stops: tuple[int, ...]
    """The iterations at which a trial reports, ascending; the last is its length."""
    searcher: str
    scheduler: str
    grace: int
    """Reports before a trial may be stopped."""
    reduction: int
    seed: int
    time_budget: float | None = None
    cost_budget: float | None = None

    @property
    def worst(self) -> float:
        """The metric of a trial without a finite value."""
        return WORST[self.mode]

    def better(self, one: float, other: float) -> bool:
        """True if ``one`` is better than ``other``."""
        return one > other if self.mode == "max" else one < other

    def drawn(self, number: int) -> Settings:
        """The settings of trial ``number``, for searchers that ignore other trials' results."""
        if self.searcher == "grid":
            return spaces.every(self.space, self.base)[number]
        return spaces.draw(self.space, self.base, number, derive(self.seed, "trial", number))

    @property
    def own(self) -> Settings:
        """The template's own values of the searched settings."""
        return spaces.assemble(self.space, self.base, lambda key, _: self.base(key))


def make(config: TuneConfig, templates: Mapping[str, StageConfig]) -> Search:
    """The search of a definition's tune stage."""
    base = base_of(config, templates)
    stops = _stops(config, templates[config.of])
    grace = sum(1 for stop in stops if stop < (config.grace or 0)) + 1
    return Search(
        config.space,
        base,
        config.metric,
        config.better(templates[config.of]),
        trials_of(config, templates),
        stops,
        config.searcher,
        config.scheduler,
        min(grace, len(stops)),
        config.reduction,
        config.seed,
        config.time_budget,
        config.cost_budget,
    )


def trials_of(config: TuneConfig, templates: Mapping[str, StageConfig]) -> int:
    """The number of trials that the search of a definition's tune stage makes, if no budget ends it."""
    if config.searcher != "grid":
        return config.samples or SAMPLES
    # The template's own settings are one trial more than the combinations.
    most = len(spaces.every(config.space, base_of(config, templates))) + 1
    return min(config.samples or most, most)


def _stops(config: TuneConfig, template: StageConfig) -> tuple[int, ...]:
    length = tunable_of(template).length
    if length is None:
        return (1,)
    whole = int(config.max_iterations or getattr(template, length))
    every = config.report_every or getattr(template, "evaluate_every", None) or math.ceil(whole / REPORTS)
    return (*range(every, whole, every), whole)
