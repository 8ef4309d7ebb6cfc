"""Several processes that train one network together, each on its part of every batch.

The processes are those of torch's default process group. They begin from the state of the first one, and their
parameters stay equal, on like machines bit for bit: all of them update by the same sum of gradients. Batch norm uses
the statistics of the whole batch, so what is computed does not depend on the number of processes; only rounding,
dropout and stochastic depth do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from rayddl.errors import StageError
from rayddl.nets.layers import BatchNorm

LIKE = 1e-3
"""Parameters of two processes are alike up to this distance from their mean, relative to its norm."""


class PeerLost(RuntimeError):
    """Another process of the team has ended, or cannot be reached."""


@contextmanager
def losing(what: str) -> Iterator[None]:
    """Raise :class:`PeerLost` for what torch raises in the block if a process is gone, which has no type of its own."""
    try:
        yield
    except torch.OutOfMemoryError:  # a RuntimeError, too
        raise
    except RuntimeError as error:
        raise PeerLost(f"{what} failed: {error}") from error


@torch.library.custom_op("rayddl::summed", mutates_args=(), schema="(Tensor x) -> Tensor")
def summed(x: Tensor) -> Tensor:
    """The sum of ``x`` over all processes. Raises :class:`PeerLost`.

    It has a derivative, and is an operator of its own so that functions which call it can be compiled as a whole.
    """
    total = x.clone(memory_format=torch.contiguous_format)
    with losing("the sum over the team"):
        dist.all_reduce(total)
    return total


summed.register_fake(lambda x: torch.empty_like(x, memory_format=torch.contiguous_format))
# What is summed here is used by every process, and each has the derivative of its own part of the loss.
summed.register_autograd(lambda _, grad: summed(grad))


@dataclass(frozen=True)
class Team:
    """The processes that train together."""

    rank: int = 0
    """This process's number, from 0."""
    size: int = 1
    """The number of processes."""

    @classmethod
    def here(cls) -> Team:
        """The team that this process belongs to: itself alone without a process group."""
        if not (dist.is_available() and dist.is_initialized()):
            return ALONE
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def first(self) -> bool:
        """True in the process that writes files and reports progress."""
        return self.rank == 0

    @property
    def lasting(self) -> bool:
        """False in a process group, even of one process: it ends when a process is lost, or when another can join."""
        return self is ALONE

    @property
    def noise(self) -> tuple[int, ...]:
        """What a seed of dropout is derived with, so that the processes drop different units."""
        return (self.rank,) if self.rank else ()

    def rows(self, count: int) -> slice:
        """The rows that this process has of a batch of ``count``, in which the processes follow each other.

        If there are fewer rows than processes, each has all of them.
        """
        if count < self.size:
            return slice(0, count)
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def even(self, count: int) -> bool:
        """True if all processes have equally many rows of a batch of ``count``: these can be compiled for."""
        return count % self.size == 0

    def backward(self, loss: Tensor, count: int, parameters: Iterable[nn.Parameter]) -> Tensor:
        """Set the gradients of the mean loss of a batch of ``count``, and return that loss, detached.

        ``loss`` is the mean over this process's :meth:`rows`. Raises :class:`PeerLost`.
        """
        if self.size == 1:
            loss.backward()
            return loss.detach()
        rows = self.rows(count)
        share = (rows.stop - rows.start) / count if count >= self.size else 1 / self.size
        part = loss * share
        part.backward()
        with torch.no_grad():
            # One sum for all gradients and the loss: each call waits for the network.
            found = [parameter.grad for parameter in parameters if parameter.grad is not None]
            total = summed(torch.cat([*(grad.flatten() for grad in found), part.detach().view(1)]))
            *sums, whole = total.split([*(grad.numel() for grad in found), 1])
            for grad, whole_grad in zip(found, sums, strict=True):
                grad.copy_(whole_grad.view_as(grad))
            mean: Tensor = whole.squeeze(0)
        return mean

    def total(self, value: int) -> int:
        """The sum of ``value`` over all processes. Raises :class:`PeerLost`."""
        if self.size == 1:
            return value
        place = torch.device("cuda") if dist.get_backend() == "nccl" else torch.device("cpu")
        return int(summed(torch.tensor([value], device=place)))

    def broadcast(self, data: bytes | None) -> bytes | None:
        """Return the ``data`` of the first process, in all of them. Raises :class:`PeerLost`."""
        if self.size == 1:
            return data
        box: list[Any] = [data]
        with losing("sending the team its state"):
            dist.broadcast_object_list(box)
        found: bytes | None = box[0]
        return found

    def beginning(self, stored: bytes | None, state: Callable[[], bytes]) -> bytes | None:
        """The state from which every process begins: what the first one has ``stored``, else its own ``state``.

        ``None`` for a process alone that has nothing stored: its own state it has already.
        """
        if self.size == 1:
            return stored
        return self.broadcast((stored or state()) if self.first else None)

    @torch.no_grad()
    def refuse_unlike(self, module: nn.Module) -> None:
        """Raise :class:`StageError` unless the parameters of ``module`` are those of all processes, but for rounding.

        Processors of different kinds round differently; equal steps from an equal beginning give no other difference.
        """
        if self.size == 1:
            return
        own = torch.cat([parameter.detach().flatten().float() for parameter in module.parameters()])
        mean = summed(own) / self.size
        if self.total(int(bool((own - mean).norm() > LIKE * mean.norm()))):
            raise StageError(
                f"internal error: the {self.size} processes of the team ended with different parameters. Delete the "
                "stage's folder and run the same command to train again; please report it.",
                code="team-apart",
            )


ALONE = Team()


class TeamNorm(nn.BatchNorm2d):
    """Batch norm by the mean and variance of the whole batch, of which each process has a part.

    torch's own ``SyncBatchNorm`` works on GPUs only, and is not compiled as part of a step.
    """

    def __init__(self, own: nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) -> None:
        """Takes the parameters and the running statistics of ``own``, in whose place it stands."""
        super().__init__(
            own.num_features, own.eps, own.momentum, own.affine, own.track_running_stats, device="meta"
        )
        self.weight, self.bias = own.weight, own.bias
        self.running_mean, self.running_var = own.running_mean, own.running_var
        self.num_batches_tracked = own.num_batches_tracked
        self.training = own.training
        self.last = isinstance(own, BatchNorm)
        """True if channels are the last dimension, not the second."""
        self.apart = False
        """True while every process has the whole batch."""

    def _check_input_dim(self, input: Tensor) -> None:
        del input  # any number of dimensions

    def forward(self, x: Tensor) -> Tensor:
        if self.apart or not self.training:
            rows = x.reshape(-1, self.num_features)[..., None, None] if self.last else x
            return super().forward(rows).reshape(x.shape)
        channel = x.dim() - 1 if self.last else 1
        dims = [d for d in range(x.dim()) if d != channel]
        shape = [-1 if d == channel else 1 for d in range(x.dim())]
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        count = wide.new_full((1,), x.numel() // self.num_features)
        *sums, count = summed(torch.cat([wide.sum(dims), count])).split([self.num_features, 1])
        mean = sums[0] / count
        centred = wide - mean.view(shape)
        # A second sum: the mean square less the squared mean would lose the digits of a small variance.
        variance = summed(centred.square().sum(dims)) / count
        out = centred * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            out = out * self.weight.view(shape) + self.bias.view(shape)
        self._record(mean.detach(), (variance * count / (count - 1)).detach())
        result: Tensor = out.to(x.dtype)
        return result

    @torch.no_grad()
    def _record(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        part = self.num_batches_tracked.reciprocal() if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, part)
        self.running_var.lerp_(variance, part)


def joined(module: nn.Module, team: Team) -> list[TeamNorm]:
    """Replace each batch norm of ``module`` by a :class:`TeamNorm` with the same state, and return these.

    Names in state dicts stay as they are. A process alone keeps its module unchanged.
    """
    made: list[TeamNorm] = []
    if team.size == 1:
        return made
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
                made.append(TeamNorm(child))
                setattr(parent, name, made[-1])
    return made
