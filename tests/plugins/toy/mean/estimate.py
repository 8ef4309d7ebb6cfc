"""What ``kind: mean`` will take."""

from rayddl.stages.estimates import PROCESS, Estimate, Outlook, Stages, made
from toy.mean.settings import MeanConfig


def estimate(config: MeanConfig, stages: Stages, outlook: Outlook) -> Estimate:
    """A task for each class, which holds the train split in float32."""
    del stages
    glance = outlook.glance
    share = outlook.machine.share(config.resources, glance.classes, gpu=False)
    memory = PROCESS + 4 * glance.train * glance.numbers
    return made(f"{glance.classes} means", share, outlook, memory, glance.classes * glance.numbers)
