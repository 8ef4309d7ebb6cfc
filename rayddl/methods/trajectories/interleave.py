"""Trains several experts in one process: their steps alternate, each expert on its own CUDA stream.

One expert of a small network leaves most of a large GPU idle. Steps on several streams overlap, read the same
images and share compiled functions. Each expert's result is the same as without the others: it runs the same
kernels, and its random numbers do not depend on the others.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import nullcontext
from typing import Any, Generic, TypeVar

import torch

T = TypeVar("T")

GAIN = 1.1
"""Smallest increase of throughput for which twice as many experts are trained at once."""


class Lanes(Generic[T]):
    """Generators that are advanced in turns. The return value of a generator is its result."""

    def __init__(self, lanes: Sequence[Generator[None, None, T]], device: torch.device) -> None:
        self._lanes = dict(enumerate(lanes))
        self._streams: dict[int, Any] = {}
        if device.type == "cuda" and len(lanes) > 1:
            here = torch.cuda.current_stream(device)
            for place in self._lanes:
                self._streams[place] = torch.cuda.Stream(device)
                # The current stream copied the inputs to the device, perhaps not completely yet.
                self._streams[place].wait_stream(here)

    def __bool__(self) -> bool:
        return bool(self._lanes)

    def turn(self) -> list[tuple[int, T]]:
        """Advance every generator by a step. Returns index and result of those that ended."""
        ended = []
        for place, lane in list(self._lanes.items()):
            stream = self._streams.get(place)
            with nullcontext() if stream is None else torch.cuda.stream(stream):
                try:
                    next(lane)
                except StopIteration as stop:
                    ended.append((place, stop.value))
                    del self._lanes[place]
        return ended


def worthwhile(rate: Callable[[int], float], most: int) -> int:
    """How many to train at once: doubled from one, up to ``most``, as long as ``rate`` grows by :data:`GAIN`.

    ``rate(n)`` is the throughput, in units per second, of n at once.
    """
    best, found = 1, rate(1) if most > 1 else 0.0
    while 2 * best <= most:
        more = rate(2 * best)
        if more < GAIN * found:
            break
        best, found = 2 * best, more
    return best
