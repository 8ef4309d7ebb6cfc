"""The resource estimate of ``kind: coreset``."""

from __future__ import annotations

from rayddl.stages.coreset.settings import SCORED, CoresetConfig
from rayddl.stages.estimates import FLOAT, PROCESS, Estimate, Outlook, Stages, net_of
from rayddl.stages.speed import FORWARD, IMAGE, STAGE

FEATURES = 2**28
"""Most bytes of features that a task holds: ``HELD`` of :mod:`rayddl.methods.selection.rows`, which imports torch."""


def estimate(config: CoresetConfig, stages: Stages, outlook: Outlook) -> Estimate:
    """A task for every few classes, which holds their features up to a limit; the chosen images as uint8."""
    source_summary = outlook.source_summary
    share = outlook.machine.share(config.resources, source_summary.classes, gpu=False)
    per_class = -(-source_summary.train // source_summary.classes)
    looked_at = per_class if config.mipc is None else min(config.mipc, per_class)
    features = 0
    if config.method in SCORED:
        features = 2 * per_class * source_summary.classes * FLOAT  # at most: one score of every image
    elif config.method != "random":
        features = 3 * FEATURES  # features, rows of length 1, portions in float64
    written = source_summary.classes * config.ipc * source_summary.numbers * 2 + outlook.space
    seconds = STAGE + source_summary.train * IMAGE / outlook.machine.cpus
    if config.features in stages:
        seen = outlook.machine.speed.step(
            net_of(stages, stages[str(config.features)]),
            source_summary,
            looked_at * source_summary.classes,
            share,
            passes=FORWARD,
        )
        seconds += (seen or 0.0) / share.at_once
    work, memory = f"{source_summary.classes} classes of {looked_at:,} images", PROCESS + features
    return Estimate(work, share.at_once, memory, written, seconds=seconds)
