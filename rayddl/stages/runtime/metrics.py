"""Progress of a run as metrics of Ray, for its dashboard and for Prometheus."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

TAGS = ("run", "stage")
DESCRIPTIONS = {
    "rayddl_units_done": "Units of work of the stage that are done",
    "rayddl_units_total": "Units of work of the stage",
    "rayddl_units_per_second": "Units of work done in a second, over the last minute",
    "rayddl_units_in_flight": "Units of work handed to Ray and not finished: running, or waiting for resources",
    "rayddl_units_queued": "Units of work that are not handed out yet",
}


@dataclass
class _Gauges:
    made: dict[str, Any] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=lambda: dict.fromkeys(TAGS, ""))


_gauges = _Gauges()


def progress(run: str, stage: str, counts: Mapping[str, Any]) -> None:
    """Set the gauges of a stage's progress from ``counts``: ``done``, ``total`` and ``rate`` (units per second)."""
    _gauges.tags = {"run": run, "stage": stage}
    _set("rayddl_units_done", counts["done"])
    _set("rayddl_units_total", counts["total"])
    _set("rayddl_units_per_second", counts["rate"] or 0.0)


def depth(in_flight: int, queued: int) -> None:
    """Set the gauges of the running stage's units: submitted to workers, and queued."""
    _set("rayddl_units_in_flight", in_flight)
    _set("rayddl_units_queued", queued)


def _set(name: str, value: float) -> None:
    from ray.util.metrics import Gauge

    if name not in _gauges.made:
        _gauges.made[name] = Gauge(name, description=DESCRIPTIONS[name], tag_keys=TAGS)
    _gauges.made[name].set(float(value), tags=_gauges.tags)
