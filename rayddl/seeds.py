"""Randomness that depends on nothing but a run's seed and a name.

Every random choice draws from a generator made for one purpose (this expert's third epoch, that
iteration's window), so a unit of work gives the same result on any worker, in any order, and after
any restart, and no generator state has to be saved.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def derive(seed: int, *names: str | int) -> int:
    """A 63-bit seed for the purpose that ``names`` spell out, e.g. ``derive(0, "experts", 3)``."""
    text = "/".join([str(seed), *(f"{type(n).__name__}:{n}" for n in names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *names: str | int) -> torch.Generator:
    """A CPU generator seeded with :func:`derive`.

    Draws are made on the CPU and moved, so that a GPU run makes the same choices.
    """
    import torch

    return torch.Generator().manual_seed(derive(seed, *names))
