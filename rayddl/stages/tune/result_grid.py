"""A finished search as Ray's ``ResultGrid``.

Tune's own state of a search cannot be kept for this: it holds the trials of the last attempt only, and it is pickled,
with the workers' data and the storage's credentials. So Ray's trials are made anew from the rows of all attempts, which
are JSON.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ray.tune import ExperimentAnalysis, ResultGrid
from ray.tune.experiment import Trial

from rayddl.stages.tune.space import Settings
from rayddl.stages.tune.store import Report, Row, TrialStore
from rayddl.storage import Folder

FOLDER = "ray_tune"
"""Files of trials in Ray's form, in a folder ``trial-<number>`` for each."""
RESULTS, PARAMETERS, ERROR = "result.json", "params.json", "error.txt"


class NumberedTrial(Trial):
    """Ray's view of a trial: named by its search and number, and the same in every attempt."""

    def __init__(self, out: Folder, number: int, settings: Settings, local: Path | None = None) -> None:
        """``out`` is the stage's folder; ``local``: where callbacks write the trial's files, with :data:`FOLDER`."""
        filesystem, path = out.on(f"{FOLDER}/{folder_of(number)}")
        # What Ray asks of a trial's storage. Its own class writes into the folder, and needs a running Ray.
        where: Any = SimpleNamespace(
            storage_filesystem=filesystem, trial_fs_path=path, experiment_dir_name=out.name
        )
        name = f"{out.name}_{number:04d}"
        super().__init__(
            name,
            config=dict(settings),
            trial_id=name,
            evaluated_params=dict(settings),
            storage=where,
            stub=True,
        )
        self.custom_trial_name = name
        self._local = local

    @property
    def local_path(self) -> str | None:
        """The folder in which callbacks write the trial's files."""
        return None if self._local is None else str(self._local)

    def init_local_path(self) -> None:
        """Create :attr:`local_path`."""
        assert self._local is not None
        self._local.mkdir(parents=True, exist_ok=True)


def folder_of(number: int) -> str:
    """The name of a trial's folder."""
    return f"trial-{number:04d}"


def result_of(metric: str, trial_id: str, settings: Settings, reports: Iterable[Report]) -> dict[str, Any]:
    """The last of ``reports`` as Tune's result: metrics, counts, times in seconds, and the trial's settings."""
    listed = list(reports)
    last = listed[-1]
    return {
        **last.metrics,
        metric: last.value,
        "trial_id": trial_id,
        "training_iteration": len(listed),
        # The step under which loggers show a result.
        "timesteps_total": last.iteration,
        "time_this_iter_s": last.seconds,
        "time_total_s": sum(report.seconds for report in listed),
        "config": dict(settings),
    }


def write(out: Folder, metric: str, rows: Iterable[Row]) -> None:
    """Write the reports and settings of each trial in Ray's form."""
    for row in rows:
        place = out.child(f"{FOLDER}/{folder_of(row.number)}")
        trial = NumberedTrial(out, row.number, row.settings)
        lines = [json.dumps(result) for result in _results(metric, trial, row)]
        place.write(RESULTS, "".join(f"{line}\n" for line in lines).encode())
        place.write_json(PARAMETERS, row.settings)
        if _failed(row):
            place.write(ERROR, (row.reason or row.ended).encode())


def opened(out: Folder, summary: Mapping[str, Any]) -> ResultGrid:
    """The trials of the finished search in ``out``, all attempts together, in the order of their numbers."""
    rows = sorted(TrialStore(out).ended().values(), key=lambda row: row.number)
    trials = [_finished(out, summary["metric"], row) for row in rows]
    filesystem, path = out.on(f"{FOLDER}/experiment.json")
    analysis = ExperimentAnalysis(
        path,
        storage_filesystem=filesystem,
        trials=trials,
        default_metric=summary["metric"],
        default_mode=summary["mode"],
    )
    return ResultGrid(analysis)


def _finished(out: Folder, metric: str, row: Row) -> Trial:
    trial: Any = NumberedTrial(out, row.number, row.settings)
    for result in _results(metric, trial, row):
        trial.update_last_result(result)
    trial.set_status(Trial.ERROR if _failed(row) else Trial.TERMINATED)
    if _failed(row):
        trial.run_metadata.error_filename = ERROR
    finished: Trial = trial
    return finished


def _failed(row: Row) -> bool:
    return row.ended in ("diverged", "failed")


def _results(metric: str, trial: Trial, row: Row) -> Iterator[dict[str, Any]]:
    for count in range(1, len(row.reports) + 1):
        yield result_of(metric, trial.trial_id, row.settings, row.reports[:count])
