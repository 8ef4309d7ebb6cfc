"""Trials of stages that report once, at their end: each runs the whole stage in the trial's process."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rayddl.stages.context import Context
from rayddl.stages.runtime.in_process import InProcess
from rayddl.stages.runtime.sources import SharedSource, adopt
from rayddl.stages.settings import StageConfig
from rayddl.stages.tune.settings import TuneConfig, configured
from rayddl.stages.tune.space import Settings
from rayddl.stages.tune.trial import TrialTask, over_seeds
from rayddl.storage import Folder


@dataclass(frozen=True)
class StageTrials(ABC):
    """Makes trials of a stage. Sent to every worker; subclasses define how a trial is run and evaluated."""

    config: TuneConfig
    templates: Mapping[str, StageConfig]
    context: Context
    """The template's context."""
    source: SharedSource

    def __call__(self, task: TrialTask) -> StageTrial:
        """A trial that has not started."""
        return StageTrial(self, task)

    def pinned(self, settings: Settings, iteration: int) -> Mapping[str, Any]:
        """Empty: these stages have no length."""
        del settings, iteration
        return {}

    def template(self, task: TrialTask) -> StageConfig:
        """The template with the trial's settings."""
        return configured(self.config, self.templates, task.settings)[self.config.of]

    def here(self, task: TrialTask, out: Folder) -> Context:
        """The template's context in this process, writing into ``out``."""
        adopt(self.context.source, self.source)
        return replace(self.context, out=out, backend=InProcess(task.threads))

    @abstractmethod
    def run(self, task: TrialTask) -> Sequence[float]:
        """Run the stage into the folder ``made`` of the trial, and return its output's accuracies, one per seed."""

    @abstractmethod
    def held_out(self, task: TrialTask, seed: int) -> float:
        """The metric, in [0, 1], of the trial's output or settings with a seed that no search uses."""


class StageTrial:
    """One run of the stage."""

    def __init__(self, trials: StageTrials, task: TrialTask) -> None:
        self._trials, self._ticket = trials, task

    def reach(self, until: int) -> Mapping[str, float]:
        """Run the stage, which resumes from files of an earlier attempt in the trial's folder."""
        del until
        return over_seeds(self._trials.run(self._ticket))

    def save(self) -> bytes:
        """Empty: the stage's files are its state."""
        return b""

    def load(self, data: bytes) -> None:
        """Do nothing: see :meth:`save`."""
        del data

    def leave(self) -> None:
        """Do nothing: the stage has written its output."""
