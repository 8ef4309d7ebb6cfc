"""Batches are copied to a device while it computes, and no result is awaited before the next batch is launched."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from rayddl.methods.patches.score import Scorer
from rayddl.methods.training.feeding import lane_to, staging, through
from tests.standin import StandIn

COUNT = 6
WAIT = 5.0
"""Seconds after which a batch that was not sent counts as not sent; a loop that sends it needs none of them."""


def test_the_next_batch_is_copied_while_one_is_computed() -> None:
    """The device ends a computation only when the copy of the next batch has begun: a loop that waits for a result
    before it sends the next batch would not get one.
    """
    began = [threading.Event() for _ in range(COUNT + 1)]
    began[COUNT].set()  # nothing comes after the last batch
    met: list[bool] = []

    def computing(batch: Tensor) -> Tensor:
        met.append(began[int(batch) + 1].wait(WAIT))
        return 10 * batch

    device = StandIn(lambda batch: began[int(batch)].set(), computing)
    found = [int(x) for x in through(((torch.tensor(k),) for k in range(COUNT)), device.launch, device)]
    device.close()

    assert met == [True] * COUNT
    assert found == [10 * k for k in range(COUNT)]


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_every_batch_gives_its_result_once_and_in_order(count: int) -> None:
    """Also for no batch and for one, on the CPU, where nothing is copied."""
    batches = [(torch.full((2,), k), torch.tensor(k)) for k in range(count)]
    found = list(through(iter(batches), lambda x, y: x + y, lane_to(torch.device("cpu"))))
    assert [part.tolist() for part in found] == [[2 * k, 2 * k] for k in range(count)]


def test_a_batch_is_made_only_when_the_one_before_is_launched() -> None:
    """Batches that are decoded or read on the way are made one at a time: no more than two are held."""
    log: list[str] = []

    def batches() -> Iterator[tuple[Tensor]]:
        for k in range(3):
            log.append(f"made {k}")
            yield (torch.tensor(k),)

    def compute(x: Tensor) -> Tensor:
        log.append(f"launched {int(x)}")
        return x

    found = through(batches(), compute, lane_to(torch.device("cpu")))
    log.extend(f"read {int(x)}" for x in found)
    assert log == [
        "made 0", "launched 0", "made 1", "launched 1", "read 0", "made 2", "launched 2", "read 1", "read 2",
    ]  # fmt: skip


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_what_the_cpu_gives() -> None:
    """Patches in pageable and in pinned memory, in batches of which the last is incomplete."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 36, 5)).eval()
    patches, labels = torch.randint(0, 256, (1003, 3, 6, 6), dtype=torch.uint8), torch.arange(1003) % 5
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.3])
    here = Scorer(net, mean, std, size=6, pad=False, batch=64)(patches, labels)
    pinned = staging(tuple(patches.shape), torch.uint8, torch.device("cuda"))
    pinned.copy_(patches)
    there = Scorer(net.to("cuda"), mean, std, size=6, pad=False, batch=64)

    assert torch.allclose(there(patches, labels), here, atol=1e-4)
    assert torch.equal(there(pinned, labels), there(patches, labels))
