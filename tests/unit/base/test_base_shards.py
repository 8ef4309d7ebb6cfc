"""Images in shards: the batches are those of one tensor, and one shard is held at a time."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from rayddl.methods.training.input_spec import BATCH
from rayddl.stages.runtime.shards import Batches, Shards


@dataclass(frozen=True)
class _Here(Shards):
    """Shards in this process, which writes down what is read."""

    whole: Tensor = field(default_factory=lambda: torch.zeros(0))
    read_: list[int] = field(default_factory=list)

    def read(self, number: int) -> Tensor:
        self.read_.append(number)
        return self.whole.split(self.counts)[number]


@pytest.mark.parametrize("counts", [(700,), (1, 255, 444), (300, 300, 100), (256, 444), (10,) * 70])
@pytest.mark.parametrize("share", [1.0, 0.4])
def test_batches_do_not_depend_on_the_shards(counts: tuple[int, ...], share: float) -> None:
    """All images, or some of them, twice; each pass reads each shard once."""
    draws = torch.Generator().manual_seed(0)
    whole = torch.randint(0, 256, (700, 3, 2, 2), generator=draws, dtype=torch.uint8)
    picked = torch.randperm(700, generator=draws)[: int(share * 700)].sort().values
    shards = _Here((), counts, 3, whole)
    batches = Batches(shards, picked)

    for _ in range(2):
        shards.read_.clear()
        found, wanted = list(batches), whole[picked].split(BATCH)
        assert len(found) == len(wanted)
        assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
        assert shards.read_ == sorted(set(shards.read_))
