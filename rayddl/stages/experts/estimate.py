"""The resource estimate of ``kind: experts``."""

from __future__ import annotations

from rayddl.stages.estimates import FLOAT, Estimate, Outlook, Stages, made, outline, training, trainings
from rayddl.stages.experts.settings import CONVEX_EPOCHS, ExpertsConfig

ON_DISK = {"float32": 4, "bfloat16": 2}


def estimate(config: ExpertsConfig, stages: Stages, outlook: Outlook) -> Estimate:
    """A worker holds the whole data, one step, and a trajectory; a file per expert."""
    del stages
    if config.replay is not None:
        return Estimate(f"up to {config.count} imported experts", 1)
    epochs = config.epochs or CONVEX_EPOCHS
    turns = min(config.experts_per_task or 1, config.count)
    share = outlook.machine.share(config.resources, -(-config.count // turns))
    work = f"{config.count} experts × {epochs} epochs"
    size, memory = (
        outline(config.net, outlook.source_summary),
        training([config.net], config.batch, share, outlook),
    )
    seconds = trainings(
        config.net, outlook.source_summary.train, config.batch, epochs, share, outlook,
        units=config.count, tests=epochs, wanted=config.compile, precision=config.precision,
        dearer=2 if config.flat_rho else 1,
    )  # fmt: skip
    if size is None or memory is None:
        return made(work, share, outlook, None, None, seconds)
    if share.num_gpus:
        # With a GPU, snapshots are held in main memory; every stream has its own memory for a step.
        memory += (turns - 1) * (memory - outlook.resident)
    else:
        memory += turns * (epochs + 1) * size.parameters * FLOAT
    kept = epochs + 1 if config.keep == "all" else len(config.waypoints or (0, epochs))
    written = config.count * kept * size.parameters * ON_DISK[config.disk] + outlook.space
    return made(work, share, outlook, memory, written, seconds)
