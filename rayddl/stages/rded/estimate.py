"""The resource estimate of ``kind: rded``."""

from __future__ import annotations

from rayddl.stages.estimates import Estimate, Outlook, Stages, made, net_of
from rayddl.stages.rded.settings import RdedConfig
from rayddl.stages.runtime import sizes
from rayddl.stages.speed import FORWARD, IMAGE

STREAM = 4.0
"""Seconds in which Ray Data starts."""


def estimate(config: RdedConfig, stages: Stages, outlook: Outlook) -> Estimate:
    """A stream of crops, without memory, which depends on the observer; the stitched images as uint8."""
    source_summary, machine = outlook.source_summary, outlook.machine
    images = min(config.mipc * source_summary.classes, source_summary.train)
    share, cutters = sizes.streamed(config.resources, config.decoders, machine.have)
    written = config.ipc * source_summary.classes * source_summary.numbers * 2 + outlook.space
    work = f"{images:,} images × {config.candidates} crops"
    scored = machine.speed.step(
        net_of(stages, stages.get(config.teacher)),
        source_summary,
        config.candidates,
        share,
        passes=FORWARD,
        dispatch=0.01,
        precision=config.precision,
    )
    decoders = cutters or share
    read = IMAGE * images / (decoders.at_once * decoders.num_cpus)
    seconds = None if scored is None else STREAM + read + images * scored / share.at_once
    return made(work, share, outlook, None, written, seconds)
