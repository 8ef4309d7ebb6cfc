"""Runs a search, or its remaining trials, with Ray Tune."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from rayddl.errors import RayddlError, StageError
from rayddl.stages.context import Progress
from rayddl.stages.runtime import cluster, failures, room
from rayddl.stages.runtime.sizes import Share
from rayddl.stages.tune import loggers
from rayddl.stages.tune.plan import Search
from rayddl.stages.tune.store import WORK, Row, TrialStore
from rayddl.stages.tune.trial import Running, TrialTask, Work
from rayddl.storage import Folder

TUNES_OWN = f"{WORK}/tune"
"""The folder of Tune's own files, deleted when it has ended."""
VALUE, TIME = "value", "report"
"""Keys that schedulers read: the metric, and the number of a trial's reports."""
ENVIRONMENT = {
    # Ctrl-C ends the command: ended trials have their rows, the others resume from their own files.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # Trials' rows replace Tune's own files per trial; loggers are those of the definition.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    # No usage statistics are sent.
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
}


def run(
    work: Work, share: Share, progress: Progress, callbacks: loggers.Options | None = None
) -> Mapping[int, Row]:
    """Run the trials that have not ended, and return the rows of all trials, by number.

    ``callbacks`` are Ray's logger callbacks that see the trials that run. Raises :class:`StageError` if no trial has a
    finite metric, the budget was used up before the first report, or a callback fails, and :class:`UserError` if one
    cannot be made.
    """
    os.environ.update(ENVIRONMENT)
    from rayddl.stages.tune.callbacks import Budget, TrialRows
    from rayddl.stages.tune.searcher import NumberedSearcher

    store = TrialStore(work.out)
    limit = room.limit()
    searcher = NumberedSearcher(work.search, store, lambda: limit() * share.per_slot)
    budget = Budget(work.search, store)
    if searcher.missing and budget.stop_all():
        # An earlier attempt was killed before it wrote the rows of the trials that were running.
        TrialRows(work, searcher, budget, progress).close()
    elif searcher.missing:
        _fit(work, share, progress, searcher, loggers.made(callbacks or {}))
    rows = store.ended()
    if all(row.ended == "budget" and not row.reports for row in rows.values()):
        raise StageError(
            f"the budget was used up before any trial reported ({len(rows)} had begun), so there are no best settings. "
            "Raise time_budget or cost_budget, or have trials report earlier.",
            code="budget-before-any-report",
        )
    if not any(row.sound for row in rows.values()):
        reasons = list(dict.fromkeys(row.reason or row.ended for row in rows.values()))
        raise StageError(
            f"none of {len(rows)} trials produced a result: {'; '.join(reasons[:3])}. "
            "Try the template by itself, or a narrower space.",
            code="no-trial-succeeded",
        )
    return rows


def _fit(work: Work, share: Share, progress: Progress, searcher: Any, callbacks: Mapping[str, Any]) -> None:
    from ray import tune
    from ray.tune.error import TuneError

    from rayddl.stages.tune.actor import worker_of
    from rayddl.stages.tune.callbacks import Budget, Loggers, TrialRows

    search, store = work.search, TrialStore(work.out)
    budget = Budget(search, store)
    rows = TrialRows(work, searcher, budget, progress)
    logs = Loggers(work, searcher, callbacks)
    work.out.clear(TUNES_OWN)
    asked = {"cpu": share.num_cpus, "gpu": share.num_gpus, "memory": share.memory or 0}
    tuner = tune.Tuner(
        tune.with_resources(worker_of(work), {name: value for name, value in asked.items() if value}),
        tune_config=tune.TuneConfig(
            metric=None if search.scheduler != "none" else "value",
            mode=None if search.scheduler != "none" else search.mode,
            num_samples=searcher.missing,
            max_concurrent_trials=share.at_once,
            search_alg=searcher,
            scheduler=scheduler_of(search, store.ended().values()),
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="search",
            storage_path=_absolute(work.out.child(TUNES_OWN)),
            verbose=0,
            stop=budget,
            failure_config=tune.FailureConfig(max_failures=failures.RETRIES),
            # A trial's row says that it has ended, so its log is complete before.
            callbacks=[logs, rows],
        ),
    )
    try:
        with _own_errors(TuneError):
            tuner.fit()
        if budget.cut_off is not None:
            raise budget.cut_off
        rows.close()
    finally:
        logs.close()
    work.out.clear(TUNES_OWN)


@contextmanager
def _own_errors(wrapper: type[Exception]) -> Iterator[None]:
    """Raise rayddl's errors as they were: Ray Tune raises its own, with their text, where a callback raises one."""
    try:
        yield
    except wrapper as error:
        inner: BaseException | None = error
        while inner is not None and not isinstance(inner, RayddlError):
            inner = inner.__cause__ or inner.__context__
        if inner is None:
            raise
        raise inner from inner.__cause__


def _absolute(folder: Folder) -> str:
    return str(folder.local) if folder.local is not None else str(folder)


def finish(packed: bytes, row: Row, to_its_end: bool) -> Row:
    """In a worker: write the output of the trial of ``row`` and return its row; with ``to_its_end`` run it to its end
    first.
    """
    work: Work = cluster.unpacked(packed)
    running = Running(work, row.number, dict(row.settings))
    if to_its_end:
        return running.finish()
    running.leave(row.iteration)
    return running.row("stopped")


def held_out(packed: bytes, number: int, settings: Mapping[str, Any], seed: int) -> float:
    """In a worker: the metric of a trial's output with a seed that the search did not use."""
    work: Work = cluster.unpacked(packed)
    task = TrialTask(number, dict(settings), TrialStore(work.out).at_work(number), work.threads)
    return work.make.held_out(task, seed)


def scheduler_of(search: Search, ended: Iterable[Row] = ()) -> Any:
    """The scheduler of ``search``, with the reports of trials that ended in earlier attempts."""
    from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler

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
