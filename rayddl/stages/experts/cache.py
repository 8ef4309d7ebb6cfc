"""Experts that trials of a search share: trained once for each way of training them, by whichever trial comes first."""

from __future__ import annotations

import hashlib
import json
import time
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

from rayddl import locks
from rayddl.methods.trajectories import files
from rayddl.stages.context import Input
from rayddl.stages.experts import stage as experts
from rayddl.stages.experts import worker as expertwork
from rayddl.stages.experts.artifact import Job, summary
from rayddl.stages.experts.settings import ExpertsConfig
from rayddl.stages.runtime.sources import SharedSource, fit_space
from rayddl.stages.settings import without_resources
from rayddl.storage import Folder

POLL_SECONDS = 0.2
DONE = "summary.json"
QUIET: Any = SimpleNamespace(say=SimpleNamespace(remote=lambda *_: None))
"""A tally that nobody reads."""


def experts_for(
    stage: str, config: ExpertsConfig, source: SharedSource, seed: int, shelf: Folder, threads: int
) -> Input:
    """The experts that ``config`` asks for, trained in this process as far as they are not there.

    Several trials that want the same ones share the work: each takes the experts that no other has taken.
    """
    import ray

    folder = shelf.child(fingerprint(config))
    if not folder.has(DONE):
        fitted = fit_space(source, folder)
        job = Job(config, source, ray.put(fitted), folder, seed, experts.compiled(config, source), threads)
        _train(job, folder)
        folder.write_json(DONE, summary(job, config.count))
    return Input(stage, config.kind, folder, config.model_dump(mode="json"), folder.read_json(DONE))


def fingerprint(config: ExpertsConfig) -> str:
    """Names a way of training experts."""
    text = json.dumps(without_resources(config), sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _train(job: Job, folder: Folder) -> None:
    missing = list(range(job.config.count))
    while missing:
        missing = [i for i in missing if not folder.has(files.file_name(i))]
        before = len(missing)
        for index in list(missing):
            # Two that train the same expert write the same bytes: a lock saves work, nothing hangs on it.
            with suppress(locks.Busy), locks.exclusive(folder, f"expert-{index:04d}.lock"):
                if not folder.has(files.file_name(index)):
                    expertwork.train_some(job, (index,), QUIET)
                missing.remove(index)
        if missing and len(missing) == before:
            time.sleep(POLL_SECONDS)
