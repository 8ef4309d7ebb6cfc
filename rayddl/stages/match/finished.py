"""A finished match stage, as the page shows it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from rayddl.report.run import Place, ReportedStage
from rayddl.report.values import Columns, Pictures


@dataclass(frozen=True)
class Match(ReportedStage):
    """A distillation: one row of ``metrics`` per iteration, of ``accuracy`` per seed and check."""

    place: ClassVar[Place] = Place.MADE
    poster: ClassVar[bool] = True

    metrics: Columns
    accuracy: Columns
    pictures: Pictures = field(kw_only=True)
