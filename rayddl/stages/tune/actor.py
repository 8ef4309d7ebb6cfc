"""A worker of Ray Tune: runs one trial after another in the same process.

A class, not a function with a session: a worker goes from one trial to the next without starting anew. Tune's
checkpoints hold nothing: a trial's own files are enough to resume it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

# Settings hold paths relative to where the command was typed. Read by Tune when a trial is set up.
os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"

from ray import tune

from rayddl.stages.runtime import cluster
from rayddl.stages.tune.plan import Search
from rayddl.stages.tune.trial import Running, Work

NUMBER = "number"
"""The key of a trial's number beside its settings; no setting has that name."""


class TrialWorker(tune.Trainable):
    """The worker. Its class carries what all trials share: see :func:`worker_of`."""

    packed: bytes

    def setup(self, config: dict[str, Any]) -> None:
        """Start with the first trial."""
        self._shared: Work = cluster.unpacked(self.packed)
        self._open(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Go to another trial."""
        self._open(new_config)
        return True

    def _open(self, config: dict[str, Any]) -> None:
        settings = {key: value for key, value in config.items() if key != NUMBER}
        self._running = Running(self._shared, config[NUMBER], settings)

    def step(self) -> dict[str, Any]:
        """The next report, for Tune."""
        return result_of(self._shared.search, self._running)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Tune asks for a checkpoint of every trial that the scheduler stops; it holds the trial's number alone."""
        (Path(checkpoint_dir) / NUMBER).write_text(str(self._running.number), encoding="utf-8")

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing: the trial's own files are its state."""
        del checkpoint


def result_of(search: Search, running: Running) -> dict[str, Any]:
    """One step of a trial, as Tune is told of it."""
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
        **{f"metric_{name}": value for name, value in report.metrics.items()},
    }


def worker_of(work: Work) -> type[TrialWorker]:
    """The worker's class for one search: sent to every node once, whatever number of trials it runs."""
    return type("TrialWorker", (TrialWorker,), {"packed": cluster.packed(work)})
