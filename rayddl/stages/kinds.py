"""The registry of stage kinds, read by the pipeline floor: one line for each of rayddl's own.

A kind is a folder. Besides ``settings`` and ``stage`` it may have the modules ``estimate`` (resources), ``cautions``
(warnings), ``draft`` (settings for ``rayddl init``), ``result_grid`` (a search for Ray Tune) and ``report`` (sections
of the page), which are found by name. The settings class declares what a stage produces and how it is tuned. ``stage``,
and with it torch and Ray, is imported only when a stage of the kind runs.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
from rayddl.stages.refine.settings import RefineConfig
from rayddl.stages.report.settings import ReportConfig
from rayddl.stages.settings import StageConfig
from rayddl.stages.teacher.settings import TeacherConfig
from rayddl.stages.tune.settings import TuneConfig
from rayddl.storage import Folder

if TYPE_CHECKING:
    from rayddl.stages.estimates import Estimate


@dataclass(frozen=True)
class Kind:
    """A stage kind: its name, settings class and version of the output.

    ``version`` is part of the fingerprint: raise it when the kind's output changes for the same settings.
    """

    name: str
    config: type[StageConfig]
    version: int = 1
    needs_ray: bool = True

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
        """The package that contains the kind's settings."""
        return self.config.__module__.rpartition(".")[0]

    def optional(self, name: str) -> Any | None:
        """The module ``name`` of the kind's folder; ``None`` if there is none."""
        try:
            found = find_spec(f"{self.folder}.{name}") if self.folder else None
        except ModuleNotFoundError:  # a plugin's settings module may be outside a package
            return None
        return self.module(name) if found else None

    def estimate(
        self, config: StageConfig, stages: Mapping[str, StageConfig], outlook: Any, *, measure: bool = False
    ) -> Estimate | None:
        """The estimate of a stage of this kind; ``None`` for a kind without estimates. Imports neither torch
        nor Ray. ``stages`` are all settings of the definition, ``outlook`` is the result of :func:`outlook`.

        With ``measure``, kinds that support it run a step in another process, which takes up to minutes.
        """
        module = self.optional("estimate")
        if module is None:
            return None
        function = getattr(module, "measure", module.estimate) if measure else module.estimate
        found: Estimate = function(config, stages, outlook)
        return found

    def cautions_before(
        self, config: StageConfig, stages: Mapping[str, StageConfig], outlook: Any
    ) -> tuple[str, ...]:
        """Warnings about a stage that has not run, from its settings and the source. Arguments are those of
        :meth:`estimate`.
        """
        module = self.optional("cautions")
        return tuple(module.before(config, stages, outlook)) if module and self.warns_before else ()

    @property
    def warns_before(self) -> bool:
        """Whether there may be warnings about a stage that has not run, for which the source is looked at."""
        return hasattr(self.optional("cautions"), "before")

    def cautions_after(self, summary: Mapping[str, Any]) -> tuple[str, ...]:
        """Warnings about the result of a finished stage, from its summary."""
        module = self.optional("cautions")
        return tuple(module.after(summary)) if module else ()

    def cautions_beside(
        self, summary: Mapping[str, Any], others: Sequence[Mapping[str, Any]]
    ) -> tuple[str, ...]:
        """Warnings about a finished stage that follow from ``others``, the run's finished stages of its kind."""
        module = self.optional("cautions")
        return tuple(module.beside(summary, others)) if module and hasattr(module, "beside") else ()

    def result_grid(self, folder: Folder, summary: Mapping[str, Any]) -> Any | None:
        """Ray's ``ResultGrid`` of the finished stage in ``folder``; ``None`` for a kind that is no search."""
        module = self.optional("result_grid")
        return module.opened(folder, summary) if module else None


def impossible(stages: Mapping[str, StageConfig], outlook: Any) -> list[str]:
    """Why ``stages`` must fail on the images of ``outlook``, the result of :func:`outlook`."""
    module = importlib.import_module("rayddl.stages.possible")
    each = [text for name, config in stages.items() for text in module.problems(name, config, outlook)]
    return [*module.of_source(outlook), *each]


def outlook(source: SourceConfig, *, timed: bool = True) -> Any:
    """Inputs of estimates besides settings: the size of the source, and this machine's resources. Its speed is
    measured if ``timed``.
    """
    base = importlib.import_module("rayddl.stages.estimates")
    return base.outlook(source, timed=timed)


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("experts", ExpertsConfig),
        Kind("match", MatchConfig),
        Kind("teacher", TeacherConfig),
        Kind("rded", RdedConfig, version=2),
        Kind("coreset", CoresetConfig),
        Kind("refine", RefineConfig, version=2),
        Kind("tune", TuneConfig),
        Kind("imported", ImportedConfig),
        Kind("evaluate", EvaluateConfig, version=2),
        Kind("compare", CompareConfig, version=2, needs_ray=False),
        Kind("report", ReportConfig, version=2, needs_ray=False),
    )
}
"""rayddl's own kinds, by name."""
plugins.shipped("kinds", KINDS)


def known() -> dict[str, Kind]:
    """Every kind by its name: rayddl's own, then those of plugins."""
    return KINDS | {kind.name: kind for plugin in plugins.active() for kind in plugin.kinds}


def judges(first: str = "") -> list[Kind]:
    """The kinds that evaluate sets, the one named ``first`` before the others."""
    found = [kind for kind in known().values() if kind.config.produces == "judgement"]
    return sorted(found, key=lambda kind: kind.name != first)


def produced(kind: str) -> str:
    """The product of stages of the kind named ``kind``; empty for an unknown kind."""
    found = known().get(kind)
    return found.config.produces if found else ""
