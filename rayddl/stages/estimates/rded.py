"""What ``kind: rded`` will take."""

from __future__ import annotations

from rayddl.stages.configs.rded import RdedConfig
from rayddl.stages.estimates.base import Estimate, Outlook, Stages, made


def estimate(config: RdedConfig, stages: Stages, outlook: Outlook) -> Estimate:
    """A stream of crops: memory hangs on the observer and is not told; the stitched images, as bytes."""
    del stages
    glance = outlook.glance
    images = min(config.mipc * glance.classes, glance.train)
    share = outlook.machine.share(config.resources, images, gpus=1)
    written = config.ipc * glance.classes * glance.numbers * 2 + outlook.space
    return made(f"{images:,} images × {config.num_crops} crops", share, outlook, None, written)
