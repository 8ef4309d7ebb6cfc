"""The protocol of an evaluation as its summary records it, and whether two are the same. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rayddl.report import numbers
from rayddl.report.sections import net_name
from rayddl.report.values import number

PROTOCOL = {
    "name": "protocol",
    "recipe": "recipe",
    "loss": "loss",
    "label_smoothing": "label smoothing",
    "optimizer": "optimiser",
    "schedule": "schedule",
    "ema": "decay of averaged weights",
    "labels": "labels",
    "label_top": "largest logits kept",
    "epochs": "epochs each",
    "lr": "learning rate",
    "batch": "batch",
    "augment": "augmentation",
    "crop_min": "smallest crop",
    "crop_within_patch": "crops within patches",
    "statistics": "batch norm statistics a step",
    "zoom": "test images zoomed",
    "precision": "precision",
}
"""The protocol settings that are shown, with their titles. Those of soft labels are recorded unless as published."""
OF_PROTOCOL = (*(key for key in PROTOCOL if key != "lr"), "observer")
"""The entries of a recorded protocol that accuracies depend on, but for the rate, which each set has of its own."""


def same_protocol(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """True if the protocols in two stages' summaries are recorded and equal, but for the learning rate."""
    mine, its = one.get("protocol"), other.get("protocol")
    if not (isinstance(mine, Mapping) and isinstance(its, Mapping) and mine):
        return False
    return all(_of(mine, key) == _of(its, key) for key in OF_PROTOCOL)


def _of(protocol: Mapping[str, Any], key: str) -> Any:
    return observers_text(protocol.get(key)) if key == "observer" else protocol.get(key)


def observers_text(given: Any) -> str:
    """The networks that computed the soft labels, with their own accuracies; empty without one."""
    each = [_observer(one) for one in (given if isinstance(given, list) else [given])]
    return "; ".join(each) if all(each) else ""


def _observer(observer: Any) -> str:
    if not (isinstance(observer, dict) and observer.get("net")):
        return ""
    right = number(observer.get("accuracy"))
    known = f", {numbers.percent(right)} right" if math.isfinite(right) else ""
    return f"{net_name(str(observer['net']))}{known}"
