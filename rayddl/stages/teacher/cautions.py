"""Warnings about an observer that is too weak to score and label."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rayddl.methods.training.settings import TeacherSettings
from rayddl.stages import cautions
from rayddl.stages.estimates import Outlook, Stages
from rayddl.stages.teacher.settings import TeacherConfig


def before(config: TeacherConfig, stages: Stages, outlook: Outlook) -> Iterator[str]:
    """Settings without effect, and too few steps in an epoch."""
    del stages
    if config.weights is None:
        yield from cautions.few_steps(config.batch, outlook)
    else:
        trained = (name for name in TeacherSettings.model_fields if name != "zoom")
        yield from cautions.idle(config, trained, "on weights that are trained already")


def after(summary: Mapping[str, Any]) -> Iterator[str]:
    """A teacher that hardly exceeds guessing."""
    accuracy = cautions.number(summary, "accuracy")
    if accuracy is not None and summary.get("classes"):
        change = "train it longer (epochs), with a smaller batch, or take weights"
        yield from cautions.near_chance(accuracy, len(summary["classes"]), "the teacher classifies", change)
