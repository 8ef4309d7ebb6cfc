"""How well a network does, image by image and class by class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rayddl.methods.training.steps import Steps

BATCH = 256
TOP = 5
"""Answers among which the right one must be for the looser accuracy of the literature."""


@torch.no_grad()
def accuracy(steps: Steps, theta_P: Tensor, x: Tensor, y: Tensor) -> float:
    """Share of images ``x`` ``[N, C, H, W]`` whose largest logit is that of label ``y`` ``[N]``, in 0..1.

    A network with batch norm is tested by the running statistics behind its parameters, if they are
    there, else by the statistics of the test batches.
    """
    hits = torch.zeros((), dtype=torch.int64, device=x.device)
    for images, labels in zip(x.split(BATCH), y.split(BATCH), strict=True):
        hits += (_logits(steps, theta_P, images).argmax(1) == labels).sum()
    return int(hits) / len(y)


@torch.no_grad()
def scored(steps: Steps, theta_P: Tensor, x: Tensor, y: Tensor, classes: int) -> Score:
    """Every figure on the images ``x`` with labels ``y``; the network is tested as by :func:`accuracy`."""
    score = Score(classes)
    for images, labels in zip(x.split(BATCH), y.split(BATCH), strict=True):
        score.add(_logits(steps, theta_P, images), labels)
    return score


class Score:
    """Answers to labelled images, added up batch by batch."""

    def __init__(self, classes: int) -> None:
        self._classes, self._among = classes, 0
        self._pairs = torch.zeros(classes * classes, dtype=torch.int64)

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Count ``logits`` ``[B, K]`` against int64 ``labels`` ``[B]``."""
        likeliest, labels = logits.argmax(1).cpu(), labels.cpu()
        self._pairs += torch.bincount(labels * self._classes + likeliest, minlength=len(self._pairs))
        if self._classes > TOP:
            self._among += int((logits.topk(TOP, dim=1).indices.cpu() == labels[:, None]).any(1).sum())

    @property
    def confusion(self) -> Tensor:
        """int64 ``[K, K]``: images of the row's class that were taken for the column's."""
        return self._pairs.view(self._classes, self._classes)

    @property
    def accuracy(self) -> float:
        """Share of images whose likeliest class is theirs, in 0..1."""
        return int(self.confusion.diagonal().sum()) / int(self._pairs.sum())

    @property
    def top5(self) -> float | None:
        """Share of images whose class is among the five likeliest; ``None`` where there are no more classes."""
        return self._among / int(self._pairs.sum()) if self._classes > TOP else None

    def confused(self) -> Confused:
        """The entries of the confusion matrix that are not zero."""
        at = self._pairs.nonzero().flatten()
        return Confused(
            (at // self._classes).tolist(), (at % self._classes).tolist(), self._pairs[at].tolist()
        )


@dataclass(frozen=True)
class Confused:
    """A confusion matrix without its zeros: a thousand classes have a million places and few entries."""

    true: Sequence[int]
    predicted: Sequence[int]
    count: Sequence[int]

    def per_class(self, classes: int) -> list[float | None]:
        """Each class's share of right answers, in 0..1; ``None`` for a class of which none were shown."""
        right, shown = [0] * classes, [0] * classes
        for true, predicted, count in zip(self.true, self.predicted, self.count, strict=True):
            shown[true] += count
            right[true] += count if true == predicted else 0
        return [hits / of if of else None for hits, of in zip(right, shown, strict=True)]


def _logits(steps: Steps, theta_P: Tensor, images: Tensor) -> Tensor:
    # One shape for every batch: a compiled function serves them all.
    missing = BATCH - len(images)
    if missing == 0:
        return steps.logits(theta_P, images)
    padded = torch.cat([images, images[-1:].expand(missing, *images.shape[1:])])
    return steps.logits(theta_P, padded)[: len(images)]
