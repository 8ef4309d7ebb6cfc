"""Ray Tune's schedulers for a search, which stop weak trials early."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler

from rayddl.stages.tune.plan import Search
from rayddl.stages.tune.store import Row

VALUE, TIME = "value", "report"
"""Keys that schedulers read: the metric, and the number of a trial's reports."""


def scheduler_of(search: Search, ended: Iterable[Row] = ()) -> Any:
    """The scheduler of ``search``, with the reports of trials that ended in earlier attempts."""
    if search.scheduler != "asha":
        return FIFOScheduler()
    asha: Any = AsyncHyperBandScheduler(
        time_attr=TIME,
        metric=VALUE,
        mode=search.mode,
        max_t=len(search.stops),
        grace_period=search.grace,
        reduction_factor=search.reduction,
    )
    for row in ended:
        _replay(asha, row)
    return asha


def _replay(asha: Any, row: Row) -> None:
    """Pass the reports of a trial of an earlier attempt to ``asha``."""
    trial: Any = SimpleNamespace(trial_id=f"earlier-{row.number}")
    asha.on_trial_add(None, trial)
    result: dict[str, Any] = {}
    for count, report in enumerate(row.reports, start=1):
        result = {VALUE: report.value, TIME: count}
        asha.on_trial_result(None, trial, result)
    asha.on_trial_complete(None, trial, result)
