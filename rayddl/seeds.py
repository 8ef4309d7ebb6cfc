"""Random generators that depend only on a run's seed and a name.

Every random choice uses a generator made for one purpose, such as the third epoch of one expert. A unit of
work therefore gives the same result on any worker, in any order and after any restart, and no generator
state has to be saved.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def derive(seed: int, *names: str | int) -> int:
    """Return a 63-bit seed for the purpose given by ``names``, e.g. ``derive(0, "experts", 3)``."""
    text = "/".join([str(seed), *(f"{type(n).__name__}:{n}" for n in names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *names: str | int) -> torch.Generator:
    """Return a CPU generator seeded with :func:`derive`.

    Numbers are drawn on the CPU and copied to the GPU, so that runs on both make the same choices.
    """
    import torch

    return torch.Generator().manual_seed(derive(seed, *names))
