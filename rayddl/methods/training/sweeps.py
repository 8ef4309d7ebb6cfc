"""A student's steps of SGD, forwards, and the derivative through them, back.

On a CPU a compiled step may keep its long convolutions for the way back, which would compute them again.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from rayddl.nets.compiling import compiled, switched_off

if TYPE_CHECKING:
    from rayddl.nets.keeping import Kept

Ahead: TypeAlias = Callable[
    [Tensor, Tensor, Sequence[Tensor], Sequence[Tensor], int], tuple[list[Tensor], list[list[Tensor]]]
]
Back: TypeAlias = Callable[
    [Tensor, Tensor, Tensor, Sequence[Tensor], Sequence[Tensor], Sequence[Tensor], Sequence[list[Tensor]]],
    tuple[Tensor, Tensor, list[Tensor], list[Tensor]],
]


@dataclass(frozen=True)
class Sweeps:
    """The two ways, made of the functions of one step as :class:`~rayddl.methods.training.steps.Steps` has them."""

    gradient: Callable[..., Any]
    tangent: Callable[..., Any]
    together: Together
    store: Store

    def ahead(
        self, theta_P: Tensor, lr: Tensor, x: Sequence[Tensor], y: Sequence[Tensor], most: int = 0
    ) -> tuple[list[Tensor], list[list[Tensor]]]:
        """As :attr:`Steps.ahead <rayddl.methods.training.steps.Steps.ahead>`."""
        path: list[Tensor] = [theta_P]
        kept: list[list[Tensor]] = []
        some: list[Tensor]
        for images, labels in zip(x, y, strict=True):
            known = self.together.of(path[-1], images, labels) if most else None
            if known is None or known.bytes > most:
                (gradient_P, _), some = self.gradient(path[-1], images, labels), []
            else:
                (gradient_P, _), found = known.first(path[-1], images, labels)
                some = [self.store.holding(tensor) for tensor in found]
            path.append(path[-1] - lr * gradient_P)
            kept.append(some)
        return path, kept

    def back(
        self,
        lam_P: Tensor,
        total: Tensor,
        lr: Tensor,
        path: Sequence[Tensor],
        x: Sequence[Tensor],
        y: Sequence[Tensor],
        kept: Sequence[list[Tensor]],
        *,
        through_theta: bool,
    ) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
        """As :attr:`Steps.back <rayddl.methods.training.steps.Steps.back>`."""
        by_x, by_y = [], []
        for theta_P, images, labels, some in zip(*map(reversed, (path, x, y, kept)), strict=True):
            known = self.together.of(theta_P, images, labels) if some else None
            along = self.tangent if known is None else partial(known.second, some)
            gv, Hv, mixed_x, mixed_y = along(theta_P, images, labels, lam_P)
            self.store.take_back(some)
            total = total - gv
            by_x.append(mixed_x)
            by_y.append(mixed_y)
            if through_theta:
                lam_P = lam_P - lr * Hv
        return lam_P, total, by_x[::-1], by_y[::-1]

    def bytes_kept(self, theta_P: Tensor, x: Tensor, y: Tensor) -> int:
        """As :attr:`Steps.bytes_kept <rayddl.methods.training.steps.Steps.bytes_kept>`."""
        known = self.together.of(theta_P, x, y)
        return 0 if known is None else known.bytes


class Store:
    """Memory for what steps keep, which later steps use again.

    It is not the allocator's: tensors that outlive all others would leave gaps in its memory, as large as themselves.
    """

    def __init__(self) -> None:
        self._free: dict[tuple[Any, ...], list[Tensor]] = {}

    def holding(self, tensor: Tensor) -> Tensor:
        """A copy of ``tensor``, whose elements fill its memory."""
        size = tensor.shape, tensor.stride(), tensor.dtype
        free = self._free.setdefault(size, [])
        held = free.pop() if free else _mapped(tensor.nbytes, tensor.dtype).as_strided(*size[:2])
        return held.copy_(tensor)

    def take_back(self, held: list[Tensor]) -> None:
        """Use the memory of these again; the list is emptied."""
        while held:
            tensor = held.pop()
            self._free[tensor.shape, tensor.stride(), tensor.dtype].append(tensor)


def _mapped(size: int, dtype: torch.dtype) -> Tensor:
    # Private, where the system has the choice: memory that is shared counts as a file's.
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    return torch.frombuffer(mmap.mmap(-1, size, **private), dtype=dtype)


@dataclass(frozen=True)
class Together:
    """A step's gradient and tangent, compiled so that the tangent reads what the gradient keeps."""

    gradient: Callable[..., Any]
    tangent: Callable[..., Any]
    """Both uncompiled."""
    wanted: bool
    _made: dict[tuple[Any, ...], Kept | None] = field(default_factory=dict)
    """By the sizes of a call."""

    def of(self, theta_P: Tensor, x: Tensor, y: Tensor) -> Kept | None:
        """Both for tensors like these; ``None`` on a GPU, if not compiled, and for networks with nothing to keep."""
        if not self.wanted or theta_P.is_cuda or switched_off():
            return None
        # Imported late: it loads parts of torch's compiler, which most processes do not need.
        from rayddl.nets.keeping import keeping

        sizes = tuple((tensor.shape, tensor.dtype) for tensor in (theta_P, x, y))
        if sizes not in self._made:
            found = keeping(self.gradient, self.tangent, (theta_P, x, y), (theta_P,))
            if found is not None:
                found = replace(found, first=compiled(found.first), second=compiled(found.second))
            self._made[sizes] = found
        return self._made[sizes]
