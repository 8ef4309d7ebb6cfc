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
OF_PROTOCOL = (*(key for key in PROTOCOL if key != "lr"), "lr_grid")
"""The entries of a recorded protocol that accuracies depend on, but for the rate, which sets of hard labels have of
their own, and for the observers.
"""


def same_protocol(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """True if two stages' summaries record equal protocols, by which random images are trained on alike.

    The learning rate counts for soft labels, as it is none of the set's own; so do the patches on a side of an image,
    which random images are cropped by unless ``crop_min`` says how.
    """
    mine, its = one.get("protocol"), other.get("protocol")
    if not (isinstance(mine, Mapping) and isinstance(its, Mapping) and mine):
        return False
    keys = (*OF_PROTOCOL, "lr") if mine.get("name") == "soft" else OF_PROTOCOL
    cropped = mine.get("crop_min") is not None or one.get("factor", 1) == other.get("factor", 1)
    watched = _observers(mine.get("observer")) == _observers(its.get("observer"))
    return cropped and watched and all(mine.get(key) == its.get(key) for key in keys)


def _observers(given: Any) -> list[Any]:
    each = given if isinstance(given, list) else [given]
    return [
        [one.get(key) for key in ("stage", "net", "accuracy")] if isinstance(one, dict) else one
        for one in each
    ]


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
