"""Several experts in one process: their steps are taken in turns, each expert's on a CUDA stream of its own.

One expert of a small network leaves most of a large GPU idle. Steps launched in turns overlap there, read the
same images and share the compiled functions. An expert's numbers are those that it has alone: its kernels are
the same, and nothing that it draws depends on the others.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import nullcontext
from typing import Any, Generic, TypeVar

import torch

T = TypeVar("T")

GAIN = 1.1
"""How much more must be done in a second for twice as many experts to be worth their memory."""


class Lanes(Generic[T]):
    """Generators that are advanced in turns. What one returns is its result."""

    def __init__(self, lanes: Sequence[Generator[None, None, T]], device: torch.device) -> None:
        self._lanes = dict(enumerate(lanes))
        self._streams: dict[int, Any] = {}
        if device.type == "cuda" and len(lanes) > 1:
            here = torch.cuda.current_stream(device)
            for place in self._lanes:
                self._streams[place] = torch.cuda.Stream(device)
                # What the lanes read was put on the device by this stream, perhaps not all of it yet.
                self._streams[place].wait_stream(here)

    def __bool__(self) -> bool:
        return bool(self._lanes)

    def turn(self) -> list[tuple[int, T]]:
        """Advance every lane by a step; place and result of those that ended."""
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
    """How many at once to take: doubled from one, up to ``most``, as long as ``rate`` grows by :data:`GAIN`.

    ``rate(n)`` is what n at once get done in a second.
    """
    best, found = 1, rate(1) if most > 1 else 0.0
    while 2 * best <= most:
        more = rate(2 * best)
        if more < GAIN * found:
            break
        best, found = 2 * best, more
    return best
