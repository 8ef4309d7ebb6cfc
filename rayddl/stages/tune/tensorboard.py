"""TensorBoard files of a search: one folder per trial."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import Any

from ray.tune import Callback

from rayddl.stages.tune.searcher import Numbered
from rayddl.storage import Folder

FOLDER = "tensorboard"


class TensorBoardFiles(Callback):
    """Writes the reports of every trial. On a remote filesystem the files appear at the search's end."""

    def __init__(self, out: Folder, searcher: Numbered) -> None:
        self._out, self._searcher = out, searcher
        self._stack = contextlib.ExitStack()
        local = out.local
        if local is None:
            local = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        self._local = local / FOLDER
        self._writers: dict[int, Any] = {}

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Write a report: every metric over the trial's iterations."""
        number = self._searcher.numbers[trial.trial_id]
        if number not in self._writers:
            # Installed with Ray Tune.
            from tensorboardX import SummaryWriter

            self._writers[number] = SummaryWriter(str(self._local / f"trial-{number:04d}"))
        for name, value in result.items():
            if name.startswith("metric_"):
                self._writers[number].add_scalar(name.removeprefix("metric_"), value, result["iteration"])

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Write a trial's settings with its final metric."""
        number = self._searcher.numbers[trial.trial_id]
        writer = self._writers.pop(number, None)
        if writer is not None:
            settings = {k: v for k, v in trial.config.items() if isinstance(v, int | float | str)}
            writer.add_hparams(settings, {"value": float(trial.last_result["value"])}, name="settings")
            writer.close()

    def close(self) -> None:
        """Write the remaining data."""
        for writer in self._writers.values():
            writer.close()
        if self._out.local is None:
            for file in self._local.rglob("*"):
                if file.is_file():
                    name = file.relative_to(self._local.parent).as_posix()
                    self._out.write(name, file.read_bytes())
        self._stack.close()
