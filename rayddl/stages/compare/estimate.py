"""The resource estimate of ``kind: compare``."""

from __future__ import annotations

from rayddl.stages.compare.settings import CompareConfig
from rayddl.stages.estimates import PAGE, PAGE_PROCESS, Estimate, Outlook, Stages


def estimate(config: CompareConfig, stages: Stages, outlook: Outlook) -> Estimate:
    """One page with some hundred kilobytes per set."""
    del outlook
    named = [name for name in config.of if name != "*"]
    every = [name for name, stage in stages.items() if stage.produces == "judgement"]
    shown = len(config.runs) + len(every if "*" in config.of else named)
    return Estimate("1 page", 1, PAGE_PROCESS, shown * 200_000, seconds=PAGE)
