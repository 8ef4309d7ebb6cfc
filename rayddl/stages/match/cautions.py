"""Warnings about windows that are too short, about a matching that diverged, and about a loss that did not fall."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rayddl.stages import cautions
from rayddl.stages.estimates import Outlook, Stages
from rayddl.stages.experts.settings import ExpertsConfig
from rayddl.stages.match.settings import MatchConfig

FEWEST_STEPS = 10
"""Steps of an expert in a window below which its target is hardly farther than noise."""
UNMATCHED = 1.0
"""The normalised loss of a student that does not move at all."""
FALLEN = 0.98
LONG_ENOUGH = 100
"""Iterations after which a loss should have fallen."""


def before(config: MatchConfig, stages: Stages, outlook: Outlook) -> Iterator[str]:
    """Settings without effect, and windows of a few steps."""
    if config.labels != "learned":
        yield from cautions.idle(config, ("lr_label", "momentum_label"), "without labels: learned")
    if config.trajectory != "convex":
        yield from cautions.idle(config, ("continuous",), "without trajectory: convex")
    if config.evaluate_every is None:
        yield from cautions.idle(config, ("evaluate_epochs", "evaluate_seeds"), "without evaluate_every")
    experts = stages.get(config.experts)
    if not isinstance(experts, ExpertsConfig) or experts.replay is not None:
        return
    steps = config.expert_epochs * -(-outlook.source_summary.train // experts.batch)
    if steps < FEWEST_STEPS:
        yield (
            f"a window of {config.expert_epochs:g} expert epochs is {steps:.0f} steps of an expert, too few for a "
            f"target worth matching; set a smaller batch for {config.experts!r}, or larger expert_epochs"
        )


def after(summary: Mapping[str, Any]) -> Iterator[str]:
    """A matching that diverged and continued with lower rates; a loss above 1, or one that did not fall."""
    retries = int(cautions.number(summary, "retries") or 0)
    lr_image, lr_lr = (cautions.number(summary, key) for key in ("lr_image", "lr_lr"))
    if retries > 0:
        share = 0.1**retries
        lower = [
            _lower(name, value, share)
            for name, value in (("lr_image", lr_image), ("lr_lr", lr_lr))
            if value != 0
        ]
        yield (
            f"the matching diverged {retries} time{'s' * (retries > 1)} and continued from the last good state with "
            f"{share:g} of its rates; set {' and '.join(lower)}, so that no iteration is lost"
        )
    first, last = (cautions.number(summary, key) for key in ("loss_first", "loss_last"))
    if first is None or last is None:
        return
    here = "" if lr_image is None else f" ({lr_image:g} here)"
    if last > UNMATCHED:
        yield (
            f"the matching loss ended at {last:.2f}; above 1, students end farther from the experts' target than they "
            f"started; lower lr_student, lower or raise lr_image{here} by a factor of ten, or run more iterations"
        )
    elif last > FALLEN * first and (cautions.number(summary, "iterations") or 0) >= LONG_ENOUGH:
        yield (
            f"the matching loss did not fall ({first:.3f} at the start, {last:.3f} at the end): the images have hardly "
            f"learned; raise lr_image{here} by a factor of ten, or run more iterations"
        )


def _lower(name: str, value: float | None, share: float) -> str:
    """The setting ``name`` at ``share`` of ``value``, which was in force; summaries of earlier versions have none."""
    return (
        f"{name} to {share:g} of its value"
        if value is None
        else f"{name}: {value * share:g} ({value:g} here)"
    )
