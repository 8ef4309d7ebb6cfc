"""The resource estimate of ``kind: refine``."""

from __future__ import annotations

from rayddl.stages.estimates import (
    FLOAT,
    PROCESS,
    STEP,
    VECTORS,
    Estimate,
    Outlook,
    Stages,
    in_turn,
    made,
    net_of,
    of_set,
    outline,
)
from rayddl.stages.refine.settings import VIEWS, RefineConfig
from rayddl.stages.speed import FORWARD, GRADIENT

PASSES = GRADIENT + FORWARD
"""Cost of a step in forward passes: the gradient of the views, and the anchors' features."""


def estimate(config: RefineConfig, stages: Stages, outlook: Outlook) -> Estimate:
    """A step of each observer on a block of views; the images as uint8."""
    source_summary, of = outlook.source_summary, stages.get(config.set)
    ipc, per_image = of_set(stages, of, "ipc") or 1, (of_set(stages, of, "factor") or 1) ** 2
    images = ipc * source_summary.classes
    per_block = max(1, min(images, VIEWS // per_image))
    share = outlook.machine.share(config.resources, -(-images // per_block))
    nets = [net_of(stages, stages.get(name)) for name in config.observers]
    sizes = [outline(net, source_summary) for net in nets]
    memory = None
    if sizes and None not in sizes:
        step = sum(
            (per_block * per_image * STEP * size.activations + VECTORS * size.parameters) * FLOAT
            for size in sizes
            if size is not None
        )
        memory = step + (0 if share.num_gpus else PROCESS)
    written = images * source_summary.numbers * 2 + outlook.space
    speed = outlook.machine.speed
    steps = [
        speed.step(
            net,
            source_summary,
            per_block * per_image,
            share,
            passes=PASSES,
            dispatch=2,
            precision=config.precision,
        )
        for net in nets
    ]
    known = [step for step in steps if step is not None]
    seconds = in_turn(-(-images // per_block), share, config.steps * sum(known))
    work = f"{images:,} images × {config.steps} steps"
    return made(work, share, outlook, memory, written, seconds if len(known) == len(nets) else None)
