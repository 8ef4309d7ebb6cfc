"""Images in model space that are encoded when they are used: a split is held as bytes, or not at all.

Their float32 numbers have the bits of the whole split encoded at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from rayddl.data.pixels.space import PixelSpace


class InBatches(Protocol):
    """Images in model space that are read from first to last: a tensor ``[N, C, H, W]``, or a class below."""

    @property
    def device(self) -> torch.device:
        """Where the batches are."""

    def split(self, split_size: Any) -> Iterable[Tensor]:
        """The images ``split_size`` at a time, float32 ``[B, C, H, W]``."""


@dataclass(frozen=True, eq=False)
class Encoded:
    """Images that are read in any order, as from a tensor ``[N, C, H, W]``, and encoded with each batch."""

    images: Tensor
    """uint8 ``[M, C, H, W]``, in any memory or mapped from a file; float32 if they are in model space already."""
    space: PixelSpace | None
    """``None``: ``images`` are in model space. Another one encodes each number by itself."""
    device: torch.device
    places: Tensor | None = None
    """int64 ``[N]``: the images among ``images``; ``None``: all of them."""

    def __len__(self) -> int:
        return len(self.images if self.places is None else self.places)

    def __getitem__(self, picked: Tensor | Sequence[int] | slice) -> Tensor:
        """The images at ``picked``, int64 ``[B]`` or a slice: float32 ``[B, C, H, W]`` on the device."""
        if not isinstance(picked, slice):
            picked = torch.as_tensor(picked)
        if self.places is not None:
            picked = self.places[picked.to(self.places.device) if isinstance(picked, Tensor) else picked]
        here = self.images[picked.to(self.images.device) if isinstance(picked, Tensor) else picked]
        here = here.to(self.device, non_blocking=True)
        return here if self.space is None else self.space.encode(here)

    def split(self, split_size: int) -> Iterator[Tensor]:
        """See :class:`InBatches`."""
        return (self[start : start + split_size] for start in range(0, len(self), split_size))

    def only(self, places: Tensor) -> Encoded:
        """The images at ``places``, int64 ``[n]``, in this order; none of them is read yet."""
        places = places.cpu()
        return replace(self, places=places if self.places is None else self.places[places])


@dataclass(frozen=True, eq=False)
class Streamed:
    """Images that are read from first to last, and encoded as they come."""

    portions: Iterable[Tensor]
    """uint8 ``[n, C, H, W]`` each; may be iterated again. A batch never has images of two, so all but the last hold a
    multiple of a batch; for whitening they are of :data:`~rayddl.data.pixels.space.PORTION` images."""
    space: PixelSpace
    device: torch.device

    def split(self, split_size: int) -> Iterator[Tensor]:
        """See :class:`InBatches`."""
        for part in self.portions:
            yield from in_model_space(self.space, part, self.device).split(split_size)


def in_model_space(space: PixelSpace, images: Tensor, device: torch.device) -> Tensor:
    """uint8 ``images`` ``[B, C, H, W]`` in model space on ``device``, with the bits of the CPU."""
    if space.elementwise:
        return space.encode(images.to(device, non_blocking=True))
    return space.encode(images).to(device)
