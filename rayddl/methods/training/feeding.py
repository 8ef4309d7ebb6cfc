"""Batches on their way to a device and results on their way back, while the device computes.

A GPU computes while the CPU goes on, as long as nobody asks for a result. So the next batch is copied, on a stream of
its own, while the current one is computed, and a result is read when the one after it has been launched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

Batch: TypeAlias = tuple[Tensor, ...]


class Lane(Protocol):
    """Moves batches to a device and results back. What its methods return is only passed to its other methods."""

    def send(self, batch: Batch) -> Any:
        """Begin to copy ``batch`` to the device."""

    def arrive(self, sent: Any) -> Batch:
        """The copy of a batch on the device, for computations that are launched from now on."""

    def fetch(self, result: Tensor) -> Any:
        """Begin to copy ``result`` to the CPU, as soon as it is computed."""

    def read(self, fetched: Any) -> Tensor:
        """A result on the CPU. Waits for it, and for nothing that was launched after it."""


def through(batches: Iterable[Batch], compute: Callable[..., Tensor], lane: Lane) -> Iterator[Tensor]:
    """Yield ``compute(*batch)``, on the CPU, of each batch in order; a result is read when the next is launched."""
    before: Any = None
    for count, batch in enumerate(batches):
        # Launched, but not awaited: on a GPU the batch before this one is computed meanwhile.
        fetched = lane.fetch(compute(*lane.arrive(lane.send(batch))))
        if count:
            yield lane.read(before)
        before = fetched
    if before is not None:
        yield lane.read(before)


def lane_to(device: torch.device) -> Lane:
    """The lane of ``device``: on a GPU with copies at the side of computations, on a CPU without copies."""
    return CudaLane(device) if device.type == "cuda" else CpuLane()


def staging(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """An uninitialised tensor on the CPU; for a GPU pinned, so that :class:`CudaLane` need not copy it on the CPU."""
    return torch.empty(shape, dtype=dtype, pin_memory=device.type == "cuda")


class CpuLane:
    """Nothing is copied, and every computation has ended when it returns."""

    def send(self, batch: Batch) -> Batch:
        """The batch."""
        return batch

    def arrive(self, sent: Batch) -> Batch:
        """The batch."""
        return sent

    def fetch(self, result: Tensor) -> Tensor:
        """The result."""
        return result

    def read(self, fetched: Tensor) -> Tensor:
        """The result."""
        return fetched


class CudaLane:
    """Copies from pinned memory, on a stream of its own; one lane is used by one thread.

    Each batch is pinned anew. PyTorch's allocator of pinned memory gives a block away again only when the copies that
    read it have ended, so none is overwritten before.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._copies = torch.cuda.Stream(device)

    def send(self, batch: Batch) -> tuple[Batch, torch.cuda.Event]:
        """Pin the batch, and begin its copy on the lane's stream; tensors on a device are left as they are."""
        ready = torch.cuda.Event()
        with torch.cuda.stream(self._copies):
            moved = tuple(
                t if t.is_cuda else self._pinned(t).to(self._device, non_blocking=True) for t in batch
            )
            ready.record(self._copies)
        return moved, ready

    def arrive(self, sent: tuple[Batch, torch.cuda.Event]) -> Batch:
        """The batch, on which the current stream waits."""
        moved, ready = sent
        computing = torch.cuda.current_stream(self._device)
        computing.wait_event(ready)
        for tensor in moved:
            # Allocated on the stream of copies, which must not reuse the memory while this stream reads it.
            tensor.record_stream(computing)
        return moved

    def fetch(self, result: Tensor) -> tuple[Tensor, torch.cuda.Event]:
        """Begin the copy on the current stream, behind the computation."""
        here = staging(tuple(result.shape), result.dtype, self._device)
        here.copy_(result, non_blocking=True)
        done = torch.cuda.Event()
        done.record(torch.cuda.current_stream(self._device))
        return here, done

    def read(self, fetched: tuple[Tensor, torch.cuda.Event]) -> Tensor:
        """Wait for the copy's event only."""
        here, done = fetched
        done.synchronize()
        return here

    @staticmethod
    def _pinned(tensor: Tensor) -> Tensor:
        return tensor if tensor.is_pinned() else tensor.pin_memory()
