"""The resource estimate of ``kind: refine``."""

from __future__ import annotations

from rayddl.stages.estimates import FLOAT, PROCESS, STEP, VECTORS, Estimate, Outlook, Stages, made, outline
from rayddl.stages.refine.settings import VIEWS, RefineConfig


def estimate(config: RefineConfig, stages: Stages, outlook: Outlook) -> Estimate:
    """A step of each observer on a block of views; the images as uint8."""
    glance, of = outlook.glance, stages.get(config.set)
    ipc, per_image = int(getattr(of, "ipc", 1)), int(getattr(of, "factor", 1)) ** 2
    images = ipc * glance.classes
    per_block = max(1, min(images, VIEWS // per_image))
    share = outlook.machine.share(config.resources, -(-images // per_block))
    nets = [teacher.network(stages) for name in config.observers if (teacher := stages.get(name))]
    sizes = [outline(net, glance) for net in nets if net]
    memory = None
    if sizes and None not in sizes:
        step = sum(
            (per_block * per_image * STEP * size.activations + VECTORS * size.parameters) * FLOAT
            for size in sizes
            if size is not None
        )
        memory = step + (0 if share.num_gpus else PROCESS)
    written = images * glance.numbers * 2 + outlook.space
    return made(f"{images:,} images × {config.steps} steps", share, outlook, memory, written)
