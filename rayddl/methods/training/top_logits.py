"""Logits of which only the largest are kept."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rayddl.methods.training.soft_settings import place_bytes

_TYPES = {1: torch.uint8, 2: torch.int16, 4: torch.int32}


@dataclass(frozen=True, eq=False)
class TopLogits:
    """The largest logits of each image, and one number that stands for each of the others.

    The others keep their share of the softmax at the temperature for which they were left out, divided equally. So at
    that temperature the probabilities of the kept classes are what they were, but for rounding to float16.
    """

    values: Tensor
    """float16 ``[N, k]``."""
    places: Tensor
    """Integers ``[N, k]``: the classes of ``values``."""
    rest: Tensor
    """float16 ``[N]``: the logit of every other class."""
    classes: int
    """K."""

    @classmethod
    def of(cls, logits: Tensor, top: int, temperature: float) -> TopLogits:
        """The ``top`` largest of ``logits`` ``[N, K]``, fewer than K."""
        whole = logits.float()
        classes = whole.shape[1]
        values, places = whole.topk(top, dim=1)
        others = whole.scatter(1, places, -math.inf)
        mean = torch.logsumexp(others / temperature, 1) - math.log(classes - top)
        return cls(
            values.half(), places.to(_TYPES[place_bytes(classes)]), (temperature * mean).half(), classes
        )

    def __getitem__(self, rows: slice) -> Tensor:
        """The logits of ``rows``, float16 ``[B, K]``."""
        rest = self.rest[rows, None].expand(-1, self.classes)
        return rest.scatter(1, self.places[rows].long(), self.values[rows])
