"""The resource estimate of ``kind: imported``."""

from __future__ import annotations

from rayddl.stages.estimates import PROCESS, Estimate, Outlook, Stages
from rayddl.stages.imported.settings import ImportedConfig
from rayddl.stages.runtime.sizes import WHOLE_BYTES
from rayddl.stages.speed import IMAGE, STAGE


def estimate(config: ImportedConfig, stages: Stages, outlook: Outlook) -> Estimate:
    """The source is decoded once, for its classes and its pixel space: a large one by tasks."""
    del config, stages
    images = outlook.source_summary.train + outlook.source_summary.test
    return Estimate(
        "1 set",
        1,
        PROCESS + 2 * min(WHOLE_BYTES, images * outlook.source_summary.numbers),
        None,
        seconds=STAGE + images * IMAGE,
    )
