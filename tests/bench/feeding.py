"""Scoring batches on a device that copies and computes at the same time: with each batch copied ahead, and without.

    uv run python -m tests.bench.feeding [--batches 40] [--copy 0.02] [--compute 0.03] [--host 0.01]

The device is a stand-in whose copies and computations sleep in threads of their own, as a GPU's run on streams of
their own; the loop is the one that the workers use. `--host` is the CPU's own work on each batch, such as gathering
its rows. Where torch sees a GPU, RDED's scores of random patches by a ResNet-18 are timed there, too.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from rayddl.methods.training.feeding import CudaLane, Lane, through
from tests.bench import machine
from tests.standin import StandIn

BATCH, SIDE, ROUNDS = 1280, 112, 3


def in_turn(batches: Iterator[Any], compute: Any, lane: Lane) -> Iterator[Tensor]:
    """The loop without overlap: each result is awaited before the next batch is sent."""
    for batch in batches:
        yield lane.read(lane.fetch(compute(*lane.arrive(lane.send(batch)))))


def stand_in(loop: Any, given: argparse.Namespace) -> float:
    """Seconds of the loop over the stand-in."""

    def computing(batch: Tensor) -> Tensor:
        time.sleep(given.compute)
        return batch

    def batches() -> Iterator[tuple[Tensor]]:
        for k in range(given.batches):
            time.sleep(given.host)
            yield (torch.tensor(k),)

    device = StandIn(lambda _: time.sleep(given.copy), computing)
    began = time.perf_counter()
    count = len(list(loop(batches(), device.launch, device)))
    seconds = time.perf_counter() - began
    device.close()
    assert count == given.batches
    return seconds


def gpu(loop: Any, given: argparse.Namespace) -> float:
    """Seconds of the loop over a GPU, with scores in bf16."""
    import torchvision

    device = torch.device("cuda", 0)
    net = torchvision.models.resnet18().eval().to(device, torch.bfloat16, memory_format=torch.channels_last)
    patches = torch.randint(0, 256, (given.batches, BATCH, 3, SIDE, SIDE), dtype=torch.uint8)

    @torch.inference_mode()
    def score(x: Tensor) -> Tensor:
        shown = x.to(torch.bfloat16).div_(255).contiguous(memory_format=torch.channels_last)
        return net(shown).float().log_softmax(1)[:, 0]

    def run() -> float:
        began = time.perf_counter()
        list(loop(((part,) for part in patches), score, CudaLane(device)))
        return time.perf_counter() - began

    run()
    return min(run() for _ in range(ROUNDS))


def main() -> None:
    """Measure and print."""
    parser = machine.parser(__doc__)
    parser.add_argument("--batches", type=int, default=40)
    parser.add_argument("--copy", type=float, default=0.02, help="seconds of a batch's copy")
    parser.add_argument("--compute", type=float, default=0.03, help="seconds of a batch's computation")
    parser.add_argument("--host", type=float, default=0.01, help="seconds of the CPU's work on a batch")
    given = parser.parse_args()
    print(machine.figures(), flush=True)
    devices = {"stand-in": stand_in} | ({"GPU": gpu} if torch.cuda.is_available() else {})
    rows = []
    for name, measure in devices.items():
        apart, ahead = measure(in_turn, given), measure(through, given)
        rows.append(
            {"device": name, "batches": str(given.batches), "in turn s": f"{apart:.2f}",
             "copied ahead s": f"{ahead:.2f}", "of it": f"{ahead / apart:.2f}"}
        )  # fmt: skip
    slowest = given.batches * max(given.copy, given.compute, given.host)
    print(machine.table(rows))
    print(f"stand-in's floor, the slowest of the three alone: {slowest:.2f} s")


if __name__ == "__main__":
    main()
