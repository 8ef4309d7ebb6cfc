"""Ray Tune's trainable: a worker that runs one trial after another in the same process.

It is a class, not a function, so that a process is reused for the next trial. Tune's checkpoints hold only the
trial's number: a trial resumes from its own files.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

# Paths in settings are relative to the command's folder. Tune reads this when a trial is set up.
os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"

from ray import tune

from rayddl.stages.runtime import cluster
from rayddl.stages.tune.plan import Search
from rayddl.stages.tune.trial import Running, Work

NUMBER = "number"
"""The key of a trial's number in Tune's configuration; no setting has this name."""
METRIC = "metric_"
"""Prefix of the metrics of a report in Tune's result."""


class TrialWorker(tune.Trainable):
    """Runs trials for Tune. A class attribute holds the search's :class:`Work`: see :func:`worker_of`."""

    packed: bytes

    def setup(self, config: dict[str, Any]) -> None:
        """Open the first trial."""
        self._shared: Work = cluster.unpacked(self.packed)
        self._open(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Open another trial in this process."""
        self._open(new_config)
        return True

    def _open(self, config: dict[str, Any]) -> None:
        settings = {key: value for key, value in config.items() if key != NUMBER}
        self._running = Running(self._shared, config[NUMBER], settings)

    def step(self) -> dict[str, Any]:
        """Advance the trial to its next report, and return it as Tune's result."""
        return result_of(self._shared.search, self._running)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Write the trial's number: Tune requires a checkpoint of every trial that the scheduler stops."""
        (Path(checkpoint_dir) / NUMBER).write_text(str(self._running.number), encoding="utf-8")

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Do nothing: the trial's own files are its state."""
        del checkpoint


def result_of(search: Search, running: Running) -> dict[str, Any]:
    """Advance the trial to its next report, and return it as Tune's result."""
    report = running.step()
    ended = running.ended if running.over else None
    return {
        "value": report.value,
        "iteration": report.iteration,
        "report": running.said,
        "work_seconds": report.seconds,
        "diverged": ended is not None and ended[0] == "diverged",
        "reason": ended[1] if ended else "",
        "done": running.over,
        **{f"{METRIC}{name}": value for name, value in report.metrics.items()},
    }


def worker_of(work: Work) -> type[TrialWorker]:
    """The trainable class of one search, which Ray sends to every node once for all trials."""
    return type("TrialWorker", (TrialWorker,), {"packed": cluster.packed(work)})
