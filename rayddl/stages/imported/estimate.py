"""The resource estimate of ``kind: imported``."""

from __future__ import annotations

from rayddl.stages.estimates import PROCESS, Estimate, Outlook, Stages
from rayddl.stages.imported.settings import ImportedConfig


def estimate(config: ImportedConfig, stages: Stages, outlook: Outlook) -> Estimate:
    """The source is decoded once, for its classes and its pixel space."""
    del config, stages
    source = (outlook.glance.train + outlook.glance.test) * outlook.glance.numbers
    return Estimate("1 set", 1, PROCESS + 2 * source, None)
