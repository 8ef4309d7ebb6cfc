"""The stage kinds: the one list that the pipeline floor reads.

A kind's module is imported only when a stage of it runs, and with it torch and Ray.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from rayddl.data.config import SourceConfig
from rayddl.stages.compare.settings import CompareConfig
from rayddl.stages.context import Context, Result
from rayddl.stages.coreset.settings import CoresetConfig
from rayddl.stages.evaluate.settings import EvaluateConfig
from rayddl.stages.experts.settings import ExpertsConfig
from rayddl.stages.imported.settings import ImportedConfig
from rayddl.stages.match.settings import MatchConfig
from rayddl.stages.rded.settings import RdedConfig
from rayddl.stages.report.settings import ReportConfig
from rayddl.stages.settings import StageConfig
from rayddl.stages.teacher.settings import TeacherConfig
from rayddl.stages.tune.settings import TuneConfig

if TYPE_CHECKING:
    from rayddl.stages.estimates import Estimate


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
    reads_source: bool = field(default=False, kw_only=True)
    """Its workers read the source's files where they lie."""

    @property
    def run(self) -> Callable[[StageConfig, Context], Result]:
        """The function that does the work; imports its module on first use."""
        module = importlib.import_module(f"rayddl.stages.{self.name}.stage")
        run: Callable[[StageConfig, Context], Result] = module.run
        return run

    def estimate(
        self, config: StageConfig, stages: Mapping[str, StageConfig], outlook: Any, *, measure: bool = False
    ) -> Estimate | None:
        """What a stage of this kind will take; ``None`` for a kind that cannot tell. Imports neither torch
        nor Ray. ``stages`` are all settings of the definition, ``outlook`` is :func:`outlook`'s.

        With ``measure``, kinds that can do so try a step in another process, which takes a while.
        """
        name = f"rayddl.stages.{self.name}.estimate"
        if find_spec(name) is None:
            return None
        module = importlib.import_module(name)
        function = getattr(module, "measure", module.estimate) if measure else module.estimate
        found: Estimate = function(config, stages, outlook)
        return found


def outlook(source: SourceConfig) -> Any:
    """What estimates are made from beside settings: the size of the source, and this machine."""
    base = importlib.import_module("rayddl.stages.estimates")
    return base.outlook(source)


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("experts", ExpertsConfig),
        Kind("match", MatchConfig),
        Kind("teacher", TeacherConfig),
        Kind("rded", RdedConfig, version=2, reads_source=True),
        Kind("coreset", CoresetConfig),
        Kind("tune", TuneConfig),
        Kind("imported", ImportedConfig, needs_ray=False),
        Kind("evaluate", EvaluateConfig, version=2),
        Kind("compare", CompareConfig, needs_ray=False),
        Kind("report", ReportConfig, version=2, needs_ray=False),
    )
}
