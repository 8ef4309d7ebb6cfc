"""Warnings about experts that are too weak to be matched."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rayddl.stages import cautions
from rayddl.stages.estimates import Outlook, Stages
from rayddl.stages.experts.settings import ExpertsConfig


def before(config: ExpertsConfig, stages: Stages, outlook: Outlook) -> Iterator[str]:
    """Settings without effect, and too few steps in an epoch."""
    del stages
    if not config.flat_rho:
        yield from cautions.idle(config, ("flat_alpha",), "without flat_rho")
    if config.replay is None:
        yield from cautions.few_steps(config.batch, outlook)


def after(summary: Mapping[str, Any]) -> Iterator[str]:
    """Experts that hardly exceed guessing."""
    accuracy = cautions.number(summary, "test_accuracy", "mean")
    if accuracy is not None and summary.get("classes"):
        change = "train them longer (epochs), with a smaller batch or another lr"
        yield from cautions.near_chance(accuracy, len(summary["classes"]), "the experts classify", change)
