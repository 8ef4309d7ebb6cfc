"""The stage kinds: the one list that the pipeline floor reads.

A kind's module is imported only when a stage of it runs, and with it torch and Ray.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass

from rayddl.stages.config import StageConfig
from rayddl.stages.configs.evaluate import EvaluateConfig
from rayddl.stages.configs.experts import ExpertsConfig
from rayddl.stages.configs.match import MatchConfig
from rayddl.stages.configs.report import ReportConfig
from rayddl.stages.context import Context, Result


@dataclass(frozen=True)
class Kind:
    """A stage kind: its settings, the module that runs it, and its format's version.

    The module has ``run(config, context) -> Result``. ``version`` enters the fingerprint: raise it
    when the kind's output changes for the same settings.
    """

    name: str
    config: type[StageConfig]
    version: int = 1
    needs_ray: bool = True

    @property
    def run(self) -> Callable[[StageConfig, Context], Result]:
        """The function that does the work; imports its module on first use."""
        module = importlib.import_module(f"rayddl.stages.{self.name}")
        run: Callable[[StageConfig, Context], Result] = module.run
        return run


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("experts", ExpertsConfig),
        Kind("match", MatchConfig),
        Kind("evaluate", EvaluateConfig),
        Kind("report", ReportConfig, needs_ray=False),
    )
}
