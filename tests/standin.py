"""A device that stands in for a GPU: it copies and computes in two threads of its own, as a GPU does on two streams."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from torch import Tensor


class StandIn:
    """A lane for :func:`rayddl.methods.training.feeding.through`, and the computation that is launched on it.

    ``copying`` and ``computing`` are called with a batch's first tensor, the second after the first has ended; what
    ``computing`` returns is the result.
    """

    def __init__(self, copying: Callable[[Tensor], Any], computing: Callable[[Tensor], Tensor]) -> None:
        self._copying, self._computing = copying, computing
        self._copies, self._stream = ThreadPoolExecutor(1), ThreadPoolExecutor(1)

    def send(self, batch: tuple[Tensor, ...]) -> Future[Tensor]:
        def copied() -> Tensor:
            self._copying(batch[0])
            return batch[0]

        return self._copies.submit(copied)

    def arrive(self, sent: Future[Tensor]) -> tuple[Future[Tensor]]:
        return (sent,)

    def launch(self, sent: Future[Tensor]) -> Future[Tensor]:
        """Compute a batch when it has arrived; returns at once."""
        return self._stream.submit(lambda: self._computing(sent.result()))

    def fetch(self, result: Future[Tensor]) -> Future[Tensor]:
        return result

    def read(self, fetched: Future[Tensor]) -> Tensor:
        return fetched.result()

    def close(self) -> None:
        """End both threads."""
        self._copies.shutdown()
        self._stream.shutdown()
