"""What a worker does: the mean of one class."""

from dataclasses import dataclass

import torch

from rayddl.stages.runtime.sources import SharedSource, train_images, train_labels
from toy.mean.settings import MeanConfig


@dataclass(frozen=True)
class MeanTask:
    """What every worker is sent."""

    config: MeanConfig
    source: SharedSource


def mean(task: MeanTask, label: int) -> torch.Tensor:
    """The image of a class: uint8 ``[C, H, W]``."""
    images, labels = train_images(task.source), train_labels(task.source)
    own, every = images[labels == label].float().mean(0), images.float().mean(0)
    return torch.lerp(own, every, task.config.shrink).round().to(torch.uint8)
