"""Trials of stages that report once, at their end, each run whole in the trial's process."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from rayddl.stages.context import Context
from rayddl.stages.runtime.in_process import InProcess
from rayddl.stages.runtime.sources import SharedSource, adopt
from rayddl.stages.settings import StageConfig
from rayddl.stages.tune.settings import TuneConfig, configured
from rayddl.stages.tune.space import Settings
from rayddl.stages.tune.trial import Ticket
from rayddl.storage import Folder


@dataclass(frozen=True)
class StageTrials(ABC):
    """Makes trials of a stage. Sent to every worker; a kind says how one is run and judged."""

    config: TuneConfig
    templates: Mapping[str, StageConfig]
    context: Context
    """The template's, as if it ran by itself."""
    source: SharedSource

    def __call__(self, ticket: Ticket) -> StageTrial:
        """The trial, which does nothing before it is asked to."""
        return StageTrial(self, ticket)

    def pinned(self, settings: Settings, iteration: int) -> Mapping[str, Any]:
        """Nothing: these stages have no length."""
        del settings, iteration
        return {}

    def template(self, ticket: Ticket) -> StageConfig:
        """The template with the trial's settings."""
        return configured(self.config, self.templates, ticket.settings)[self.config.of]

    def here(self, ticket: Ticket, out: Folder) -> Context:
        """The template's context in this process, writing into ``out``."""
        adopt(self.context.source, self.source)
        return replace(self.context, out=out, backend=InProcess(ticket.threads))

    @abstractmethod
    def run(self, ticket: Ticket) -> float:
        """Run the stage into ``made`` in the trial's folder; how good what it made is, 0..1."""

    @abstractmethod
    def held_out(self, ticket: Ticket, seed: int) -> float:
        """How good what the trial made, or its settings, are with a seed that no search has seen, 0..1."""


class StageTrial:
    """One run of the stage."""

    def __init__(self, trials: StageTrials, ticket: Ticket) -> None:
        self._trials, self._ticket = trials, ticket

    def reach(self, until: int) -> Mapping[str, float]:
        """Run it; what an earlier attempt left in the trial's folder is taken up by the stage itself."""
        del until
        return {"accuracy": self._trials.run(self._ticket)}

    def save(self) -> bytes:
        """Nothing: the stage's files are its state."""
        return b""

    def load(self, data: bytes) -> None:
        """Nothing: see :meth:`save`."""
        del data

    def leave(self) -> None:
        """Nothing: the stage has left it already."""
