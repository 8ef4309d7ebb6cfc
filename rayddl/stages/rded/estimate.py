"""The resource estimate of ``kind: rded``."""

from __future__ import annotations

from rayddl.stages.estimates import Estimate, Outlook, Stages, made
from rayddl.stages.rded.settings import RdedConfig
from rayddl.stages.runtime import sizes


def estimate(config: RdedConfig, stages: Stages, outlook: Outlook) -> Estimate:
    """A stream of crops, without memory, which depends on the observer; the stitched images as uint8."""
    del stages
    glance = outlook.glance
    images = min(config.mipc * glance.classes, glance.train)
    share, _ = sizes.streamed(config.resources, config.decoders, outlook.machine.have)
    written = config.ipc * glance.classes * glance.numbers * 2 + outlook.space
    return made(f"{images:,} images × {config.candidates} crops", share, outlook, None, written)
