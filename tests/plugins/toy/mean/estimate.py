"""What ``kind: mean`` will take."""

from rayddl.stages.estimates import PROCESS, Estimate, Outlook, Stages, made
from toy.mean.settings import MeanConfig


def estimate(config: MeanConfig, stages: Stages, outlook: Outlook) -> Estimate:
    """A task for each class, which holds the train split in float32."""
    del stages
    source_summary = outlook.source_summary
    share = outlook.machine.share(config.resources, source_summary.classes, gpu=False)
    memory = PROCESS + 4 * source_summary.train * source_summary.numbers
    return made(
        f"{source_summary.classes} means",
        share,
        outlook,
        memory,
        source_summary.classes * source_summary.numbers,
    )
