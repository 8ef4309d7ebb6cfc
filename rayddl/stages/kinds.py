"""The stage kinds: the one list that the pipeline floor reads, one line for each of rayddl's own.

A kind is a folder. Beside ``settings`` and ``stage`` it may have ``estimate`` (what a stage will take) and
``report`` (its sections of the page), which are found there by name; what a stage produces and how it is tuned is
declared by the settings class. ``stage`` is imported only when a stage of the kind runs, and with it torch and Ray.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from rayddl import plugins
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
    """A stage kind: its settings, its format's version, and what it needs to run.

    ``version`` enters the fingerprint: raise it when the kind's output changes for the same settings.
    """

    name: str
    config: type[StageConfig]
    version: int = 1
    needs_ray: bool = True
    reads_source: bool = field(default=False, kw_only=True)
    """Its workers read the source's files where they lie."""

    @property
    def run(self) -> Callable[[StageConfig, Context], Result]:
        """``run(config, context) -> Result`` of the kind's ``stage`` module."""
        run: Callable[[StageConfig, Context], Result] = self.module("stage").run
        return run

    def module(self, name: str) -> Any:
        """The module ``name`` of the kind's folder."""
        return importlib.import_module(f"{self.folder}.{name}")

    @property
    def folder(self) -> str:
        """The package that the kind's settings stand in."""
        return self.config.__module__.rpartition(".")[0]

    def optional(self, name: str) -> Any | None:
        """The module ``name`` of the kind's folder; ``None`` where it has none."""
        try:
            found = find_spec(f"{self.folder}.{name}") if self.folder else None
        except ModuleNotFoundError:  # the settings of a kind from outside may stand in no package
            return None
        return self.module(name) if found else None

    def estimate(
        self, config: StageConfig, stages: Mapping[str, StageConfig], outlook: Any, *, measure: bool = False
    ) -> Estimate | None:
        """What a stage of this kind will take; ``None`` for a kind that cannot tell. Imports neither torch
        nor Ray. ``stages`` are all settings of the definition, ``outlook`` is :func:`outlook`'s.

        With ``measure``, kinds that can do so try a step in another process, which takes a while.
        """
        module = self.optional("estimate")
        if module is None:
            return None
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
"""rayddl's own."""
plugins.shipped("kinds", KINDS)


def known() -> dict[str, Kind]:
    """Every kind by its name: rayddl's own, then those of the plugins."""
    return KINDS | {kind.name: kind for plugin in plugins.active() for kind in plugin.kinds}


def judges(first: str = "") -> list[Kind]:
    """The kinds that judge sets, the one named ``first`` before the others."""
    found = [kind for kind in known().values() if kind.config.produces == "judgement"]
    return sorted(found, key=lambda kind: kind.name != first)


def produced(kind: str) -> str:
    """What stages of the kind named ``kind`` produce; nothing for a kind that is not known."""
    found = known().get(kind)
    return found.config.produces if found else ""
