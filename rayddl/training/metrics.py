"""How well a network does."""

from __future__ import annotations

import torch
from torch import Tensor

from rayddl.training.steps import Steps

BATCH = 256


@torch.no_grad()
def accuracy(steps: Steps, theta_P: Tensor, x: Tensor, y: Tensor) -> float:
    """Share of images ``x`` ``[N, C, H, W]`` whose largest logit is that of label ``y`` ``[N]``, in 0..1.

    A network with batch norm is tested by the running statistics behind its parameters, if they are
    there, else by the statistics of the test batches.
    """
    hits = torch.zeros((), dtype=torch.int64, device=x.device)
    for images, labels in zip(x.split(BATCH), y.split(BATCH), strict=True):
        logits = steps.logits(theta_P, _padded(images))[: len(labels)]
        hits += (logits.argmax(1) == labels).sum()
    return int(hits) / len(y)


def _padded(images: Tensor) -> Tensor:
    # One shape for every batch: a compiled function serves them all.
    missing = BATCH - len(images)
    return images if missing == 0 else torch.cat([images, images[-1:].expand(missing, *images.shape[1:])])
