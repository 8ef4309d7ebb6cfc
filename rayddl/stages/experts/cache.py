"""Experts that trials share: trained once for each combination of settings, by the first trial that needs them."""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from rayddl import locks
from rayddl.stages.context import Context, Input
from rayddl.stages.experts import stage as experts
from rayddl.stages.experts.settings import ExpertsConfig
from rayddl.stages.runtime.in_process import InProcess, InTurn, done
from rayddl.stages.runtime.workers import Task, Workers
from rayddl.stages.settings import without_resources
from rayddl.storage import Folder

POLL_SECONDS = 0.2
DONE = "summary.json"


def experts_for(config: ExpertsConfig, context: Context, cache: Folder, threads: int) -> Input:
    """The experts of ``config`` as an input; missing ones are trained by the experts stage in this process.

    Trials that need the same experts divide the work: each trains those that no other process is training.
    """
    folder = cache.child(fingerprint(config))
    if not folder.has(DONE):
        here = replace(context, out=folder, backend=SharedInProcess(threads, folder=folder))
        folder.write_json(DONE, experts.run(config, here).summary)
    return Input(context.stage, config.kind, folder, config.model_dump(mode="json"), folder.read_json(DONE))


def fingerprint(config: ExpertsConfig) -> str:
    """The first 12 hexadecimal digits of the SHA-256 of the settings that determine the experts."""
    text = json.dumps(without_resources(config), sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True, kw_only=True)
class SharedInProcess(InProcess):
    """Runs units of work in this process, and divides them with other processes that use the same folder."""

    folder: Folder
    """Contains a lock file for each unit that is being run."""

    def opened(self, *args: Any, **options: Any) -> AbstractContextManager[Workers]:
        del args, options
        return nullcontext(_SharedUnits(self.folder))


class _SharedUnits(InTurn):
    """Runs every unit, also those that another process has finished: units skip existing results."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder

    def results(self, tasks: Sequence[Task], idle: Callable[[], None]) -> Iterator[tuple[Any, Any]]:
        # In an order of its own: where locks do not work, as on object storage, each unit is run by whom comes first.
        waiting = random.sample(tasks, len(tasks))
        while waiting:
            before = len(waiting)
            for task in list(waiting):
                try:
                    # Two processes that run the same unit write the same bytes: the lock only saves work.
                    with locks.exclusive(self._folder, f"{task.name}.lock"):
                        result = done(task.work)
                except locks.Busy:
                    continue
                waiting.remove(task)
                yield task.unit, result
            if len(waiting) == before:
                idle()
                time.sleep(POLL_SECONDS)
