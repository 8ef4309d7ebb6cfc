"""Warnings about results that will disappoint: rules shared by the kinds.

A kind's module ``cautions`` has ``after(summary)``, what its result shows, and often ``before(config, stages,
outlook)``, what its settings and the source let expect; it may have ``beside(summary, others)``, what its result shows
beside those of the run's other stages of the kind. All yield sentences that say what to change. Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rayddl.stages.estimates import Outlook
from rayddl.stages.settings import FEWEST_STEPS, StageConfig, fitting_batch

SHARE_ABOVE_CHANCE = 0.1
TIMES_CHANCE = 1.5
SURE = 1.96
"""Standard errors of a 95 % interval."""


def few_steps(batch: int, outlook: Outlook) -> Iterator[str]:
    """A warning if an epoch has only a few steps."""
    images = outlook.source_summary.train
    steps = -(-images // batch)
    if steps < FEWEST_STEPS:
        better = fitting_batch(images)
        change = f"set batch to {better}, and epochs" if better < batch else "add images, or set epochs"
        yield (
            f"an epoch of {images:,} images in batches of {batch} is {steps} step{'s' * (steps > 1)}, too few to learn "
            f"from; {change} to several hundred steps"
        )


def idle(config: StageConfig, names: Iterable[str], why: str) -> Iterator[str]:
    """A warning of those settings among ``names`` that differ from their defaults and that nothing reads, ``why`` being
    the reason.
    """
    # A page has the settings of a manifest, which are all given.
    fields = type(config).model_fields
    given = [name for name in names if getattr(config, name) != fields[name].default]
    if given:
        yield f"{', '.join(given)}: no effect {why}"


def near_chance(accuracy: float, classes: int, what: str, change: str) -> Iterator[str]:
    """A warning if ``accuracy``, a share, is hardly above guessing among ``classes``."""
    chance = 1 / classes
    if accuracy < min(TIMES_CHANCE * chance, chance + SHARE_ABOVE_CHANCE):
        yield (
            f"{what} {100 * accuracy:.1f} % of the held-out images, and guessing reaches {100 * chance:.1f} %: "
            f"sets made with this teach little; {change}"
        )


def in_noise(accuracy: float, other: float, tested: float | None) -> bool:
    """True if two accuracies on ``tested`` images differ by less than the noise; false if ``tested`` is unknown."""
    return (
        tested is not None
        and tested > 0
        and abs(accuracy - other) < SURE * math.sqrt(accuracy * (1 - accuracy) / tested)
    )


def number(summary: Mapping[str, Any], *keys: str) -> float | None:
    """The number at nested ``keys`` of a summary; ``None`` if there is none."""
    value: Any = summary
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
