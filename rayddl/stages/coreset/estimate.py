"""The resource estimate of ``kind: coreset``."""

from __future__ import annotations

from rayddl.stages.coreset.settings import SCORED, CoresetConfig
from rayddl.stages.estimates import FLOAT, PROCESS, Estimate, Outlook, Stages, net_of
from rayddl.stages.speed import FORWARD, IMAGE, STAGE

FEATURES = 2**28
"""Most bytes of features that a task holds: ``HELD`` of :mod:`rayddl.methods.selection.rows`, which imports torch."""


def estimate(config: CoresetConfig, stages: Stages, outlook: Outlook) -> Estimate:
    """A task for every few classes, which holds their features up to a limit; the chosen images as uint8."""
    glance = outlook.glance
    share = outlook.machine.share(config.resources, glance.classes, gpu=False)
    per_class = -(-glance.train // glance.classes)
    looked_at = per_class if config.mipc is None else min(config.mipc, per_class)
    features = 0
    if config.method in SCORED:
        features = 2 * per_class * glance.classes * FLOAT  # at most: one score of every image
    elif config.method != "random":
        features = 3 * FEATURES  # features, rows of length 1, portions in float64
    written = glance.classes * config.ipc * glance.numbers * 2 + outlook.space
    seconds = STAGE + glance.train * IMAGE / outlook.machine.cpus
    if config.features in stages:
        seen = outlook.machine.speed.step(
            net_of(stages, stages[str(config.features)]),
            glance,
            looked_at * glance.classes,
            share,
            passes=FORWARD,
        )
        seconds += (seen or 0.0) / share.at_once
    work, memory = f"{glance.classes} classes of {looked_at:,} images", PROCESS + features
    return Estimate(work, share.at_once, memory, written, seconds=seconds)
