"""The order in which experts see images: easy ones first, and later without the easiest (PAD)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from rayddl.methods.trajectories.settings import Curriculum


def el2n(logits: Tensor, labels: Tensor) -> Tensor:
    """EL2N scores (Paul et al. 2021) of logits ``[N, K]`` for labels int64 ``[N]``: float32 ``[N]``.

    The length of the difference between the probabilities and the one-hot label; small for easy images.
    """
    wanted = F.one_hot(labels, logits.shape[1]).to(torch.float32)
    apart = logits.float().softmax(1) - wanted
    return apart.square().sum(1).sqrt()


def ranks(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The rank of each image within its class, from the easiest, and the size of its class: int64 ``[N]`` each."""
    order = scores.argsort(stable=True)
    by_class = order[labels[order].argsort(stable=True)]
    sizes = labels.bincount()
    starts = sizes.cumsum(0) - sizes
    place = torch.arange(len(labels)) - starts[labels[by_class]]
    found = torch.empty_like(place)
    found[by_class] = place
    return found, sizes[labels]


def shown(curriculum: Curriculum, epoch: int, rank: Tensor, size: Tensor) -> Tensor:
    """The images of ``epoch``, counted from 0: int64 indices, of every class the same share, rounded down."""
    least, most = curriculum.range_in(epoch)
    whole = size.double()
    kept = (rank >= (least * whole).floor()) & (rank < (most * whole).floor().clamp(min=1))
    return kept.nonzero().flatten()
