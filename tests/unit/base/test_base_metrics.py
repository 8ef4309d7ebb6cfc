"""What Ray's metrics are told of a run."""

from __future__ import annotations

from typing import Any

import pytest

from rayddl.stages.runtime import cluster, metrics


def test_progress_and_queue_are_told_by_run_and_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Done, total, pace, work in flight and work kept: gauges that are made once, tagged with run and stage."""
    made: list[str] = []
    told: dict[tuple[str, str, str], float] = {}

    class Gauge:
        def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
            assert description
            assert tag_keys == ("run", "stage")
            self.name = name
            made.append(name)

        def set(self, value: float, tags: dict[str, str]) -> None:
            told[tags["run"], tags["stage"], self.name] = value

    monkeypatch.setattr("ray.util.metrics.Gauge", Gauge)
    monkeypatch.setattr(metrics, "_gauges", metrics._Gauges())
    progress: dict[str, Any] = {"done": 3, "total": 8, "rate": None}
    cluster.observe("digits", "experts", progress)
    metrics.depth(2, 3)
    cluster.observe("digits", "evaluate", {**progress, "rate": 1.5})
    assert sorted(made) == sorted(metrics.DESCRIPTIONS)
    assert told["digits", "experts", "rayddl_units_done"] == 3
    assert told["digits", "experts", "rayddl_units_per_second"] == 0
    assert told["digits", "experts", "rayddl_units_in_flight"] == 2
    assert told["digits", "experts", "rayddl_units_queued"] == 3
    assert told["digits", "evaluate", "rayddl_units_per_second"] == 1.5
