"""Progress of a run as metrics of Ray, for its dashboard and for Prometheus."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextvars import ContextVar
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
    lock: threading.Lock = field(default_factory=threading.Lock)


_gauges = _Gauges()
_tags: ContextVar[Mapping[str, str]] = ContextVar("tags", default=dict.fromkeys(TAGS, ""))  # noqa: B039  # not changed
"""The run and the stage of this thread."""


def progress(run: str, stage: str, counts: Mapping[str, Any]) -> None:
    """Set the gauges of a stage's progress from ``counts``: ``done``, ``total`` and ``rate`` (units per second)."""
    _tags.set({"run": run, "stage": stage})
    _set("rayddl_units_done", counts["done"])
    _set("rayddl_units_total", counts["total"])
    _set("rayddl_units_per_second", counts["rate"] or 0.0)


def depth(in_flight: int, queued: int) -> None:
    """Set the gauges of this thread's stage: units submitted to workers, and queued units."""
    _set("rayddl_units_in_flight", in_flight)
    _set("rayddl_units_queued", queued)


def _set(name: str, value: float) -> None:
    from ray.util.metrics import Gauge

    with _gauges.lock:
        if name not in _gauges.made:
            _gauges.made[name] = Gauge(name, description=DESCRIPTIONS[name], tag_keys=TAGS)
    _gauges.made[name].set(float(value), tags=dict(_tags.get()))
