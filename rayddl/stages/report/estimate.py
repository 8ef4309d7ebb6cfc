"""The resource estimate of ``kind: report``."""

from __future__ import annotations

from rayddl.stages.estimates import PAGE, PAGE_PROCESS, Estimate, Outlook, Stages
from rayddl.stages.report.settings import ReportConfig


def estimate(config: ReportConfig, stages: Stages, outlook: Outlook) -> Estimate:
    """One page with a few hundred kilobytes per stage."""
    del outlook
    shown = len(stages) - 1 if "*" in config.of else len(config.of)
    return Estimate("1 page", 1, PAGE_PROCESS, shown * 300_000, seconds=PAGE)
