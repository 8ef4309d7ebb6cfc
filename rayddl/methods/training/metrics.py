"""Accuracy and confusion matrix of a network on labelled images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rayddl.data.pixels.encoded import InBatches
from rayddl.methods.training.feeding import lane_to, through
from rayddl.methods.training.steps import Steps

BATCH = 256
TOP = 5
"""Number of classes with the largest logits that must include the label for top-5 accuracy."""


@torch.no_grad()
def accuracy(steps: Steps, theta_P: Tensor, x: InBatches, y: Tensor) -> float:
    """Share of images ``x`` ``[N, C, H, W]`` whose largest logit is that of label ``y`` ``[N]``, in 0..1.

    With batch norm, a vector ``[P + S]`` is tested with its running statistics, a vector ``[P]`` with
    the statistics of the test batches.
    """
    hits = torch.zeros((), dtype=torch.int64, device=x.device)
    for images, labels in zip(x.split(BATCH), y.split(BATCH), strict=True):
        hits += (_logits(steps, theta_P, images).argmax(1) == labels).sum()
    return int(hits) / len(y)


@torch.no_grad()
def scored(steps: Steps, theta_P: Tensor, x: InBatches, y: Tensor, classes: int) -> Score:
    """The score on images ``x`` ``[N, C, H, W]`` with labels ``y`` ``[N]``; batch norm as in :func:`accuracy`."""
    score = Score(classes)
    parts = ((images,) for images in x.split(BATCH))
    answers = through(parts, lambda images: _logits(steps, theta_P, images), lane_to(x.device))
    for logits, labels in zip(answers, y.cpu().split(BATCH), strict=True):
        score.add(logits, labels)
    return score


class Score:
    """Accumulates accuracy and confusion matrix over batches."""

    def __init__(self, classes: int) -> None:
        self._classes, self._among = classes, 0
        self._pairs = torch.zeros(classes * classes, dtype=torch.int64)
        self.unanswered = 0
        """Number of images with a logit that is not finite: the network has diverged."""
        self.best: float | None = None
        """The best accuracy after late epochs, if they were tested."""

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Count ``logits`` ``[B, K]`` against int64 ``labels`` ``[B]``, both on the CPU."""
        likeliest = logits.argmax(1)
        self.unanswered += int((~logits.isfinite()).any(1).sum())
        self._pairs += torch.bincount(labels * self._classes + likeliest, minlength=len(self._pairs))
        if self._classes > TOP:
            self._among += int((logits.topk(TOP, dim=1).indices == labels[:, None]).any(1).sum())

    @property
    def confusion(self) -> Tensor:
        """int64 ``[K, K]``: number of images of the row's class that were classified as the column's."""
        return self._pairs.view(self._classes, self._classes)

    @property
    def accuracy(self) -> float:
        """Share of images whose most probable class is their label, in 0..1."""
        return int(self.confusion.diagonal().sum()) / int(self._pairs.sum())

    @property
    def top5(self) -> float | None:
        """Share of images whose label is among the five most probable classes; ``None`` for up to five classes."""
        return self._among / int(self._pairs.sum()) if self._classes > TOP else None

    def confused(self) -> Confused:
        """The non-zero entries of the confusion matrix."""
        at = self._pairs.nonzero().flatten()
        return Confused(
            (at // self._classes).tolist(), (at % self._classes).tolist(), self._pairs[at].tolist()
        )


@dataclass(frozen=True)
class Confused:
    """A sparse confusion matrix: with a thousand classes, few of a million entries are not zero."""

    true: Sequence[int]
    predicted: Sequence[int]
    count: Sequence[int]

    def per_class(self, classes: int) -> list[float | None]:
        """The accuracy of each class, in 0..1; ``None`` for a class without images."""
        right, shown = [0] * classes, [0] * classes
        for true, predicted, count in zip(self.true, self.predicted, self.count, strict=True):
            shown[true] += count
            right[true] += count if true == predicted else 0
        return [hits / of if of else None for hits, of in zip(right, shown, strict=True)]


def _logits(steps: Steps, theta_P: Tensor, images: Tensor) -> Tensor:
    # The last batch is padded, so that all have the shape of the compiled function.
    missing = BATCH - len(images)
    if missing == 0:
        return steps.logits(theta_P, images)
    padded = torch.cat([images, images[-1:].expand(missing, *images.shape[1:])])
    return steps.logits(theta_P, padded)[: len(images)]
