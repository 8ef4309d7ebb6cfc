"""What a stage's workers ask of a cluster, from its settings and the cluster's nodes. Imports neither torch nor Ray.

A worker on a GPU lives in a *slot*: one GPU (or as many as a worker asks for) with the CPUs of the workers that
share it. Ray packs fractions of a GPU onto the same one, so slots, and not fractions, spread work over all GPUs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from rayddl.config import Config
from rayddl.stages.runtime.capacity import Capacity

SHARED = 4
"""Processes that share a GPU at most, unless a stage's resources say otherwise."""
GPU_CPUS = 8.0
"""CPUs that a worker alone on a GPU asks for at most: they launch kernels, and feed and judge."""
BESIDE = 0.25
"""Share of a GPU kept for short evaluations beside matching."""


class Resources(Config):
    """What one worker of the stage requests from Ray. Changes no result and no fingerprint."""

    num_cpus: float | None = Field(default=None, gt=0)
    """CPUs of one worker. Default: by the kind of work and the cluster's CPUs."""
    num_gpus: float | None = Field(default=None, ge=0)
    """GPUs of one worker, also a fraction. Default: by the kind of work and the cluster's GPUs."""
    memory: int | None = Field(default=None, gt=0)
    """Heap memory of one worker in bytes. Default: not limited."""
    at_once: int | None = Field(default=None, ge=1)
    """Workers that run at the same time. Default: as many as the cluster's resources allow."""


@dataclass(frozen=True)
class Share:
    """What one worker of a stage gets, and how many run at once."""

    num_cpus: float
    num_gpus: float
    memory: int | None
    at_once: int
    gpus: int = 0
    """Slots of GPUs; 0 where workers have none."""
    beside: float = 0.0
    """CPUs kept in the first slot for short evaluations, with :data:`BESIDE` of its GPU."""

    @property
    def options(self) -> dict[str, Any]:
        """For ``.options(...)`` of a task or actor."""
        asked: dict[str, Any] = {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus}
        return asked if self.memory is None else {**asked, "memory": self.memory}

    @property
    def threads(self) -> int:
        """Torch threads of the worker."""
        return max(1, int(self.num_cpus))

    @property
    def per_slot(self) -> int:
        """Workers in one slot at most."""
        return -(-self.at_once // self.gpus) if self.gpus else 1

    @property
    def slots(self) -> tuple[Mapping[str, float], ...]:
        """What each slot takes of a node, by Ray's names."""
        whole = {
            "GPU": max(1.0, self.num_gpus),
            "CPU": _rounded(self.per_slot * self.num_cpus),
            "memory": float(self.per_slot * (self.memory or 0)),
        }
        first = {**whole, "CPU": _rounded(whole["CPU"] + self.beside)}
        return tuple(_named(first if k == 0 else whole) for k in range(self.gpus))

    @property
    def needs(self) -> Mapping[str, float]:
        """What the largest thing that Ray places at once takes of a node: a slot, or a worker without a GPU."""
        if self.gpus:
            return self.slots[0]
        return _named({"CPU": self.num_cpus, "GPU": self.num_gpus, "memory": float(self.memory or 0)})


@dataclass(frozen=True)
class Ask:
    """What workers of a stage ask for, and whether all of them only run together."""

    key: str
    """The setting that changes it."""
    share: Share
    together: bool = False

    @property
    def placed(self) -> Iterator[Mapping[str, float]]:
        """Everything that has to be on the cluster at once for the stage to run."""
        if not self.together:
            yield self.share.needs
        elif self.share.gpus:
            yield from self.share.slots
        else:
            yield from (self.share.needs for _ in range(self.share.at_once))


def spread(asked: Resources, have: Capacity, *, units: int, gpu: bool = True, fill: bool = False) -> Share:
    """For ``units`` independent units of work: every GPU is used before any is shared, by :data:`SHARED` workers at
    most; without GPUs, or where the work has no use of one (``gpu``), a CPU each.

    With ``fill``, a GPU is shared only by as many workers as units fill on all GPUs: for callers that leave it to Ray
    where workers go.
    """
    wanted = max(1, min(units, asked.at_once or units))
    per_gpu = _gpu_of(asked, have) if gpu else 0.0
    if not per_gpu:
        return _on_cpus(asked, have, wanted, 1.0)
    holding = _holding(have, max(1.0, per_gpu))
    count = int(sum(node["GPU"] // max(1.0, per_gpu) for node in holding)) or 1
    sharing = wanted // count if fill else -(-wanted // count)
    most = SHARED if asked.num_gpus is None else int(1 / per_gpu + 1e-6) if per_gpu < 1 else 1
    beside = min((_beside(node, per_gpu) for node in holding), default=1.0)
    if asked.num_cpus is not None and beside:
        most = min(most, max(1, int(beside / asked.num_cpus + 1e-6)))
    sharing = max(1, min(sharing, most))
    num_cpus = min(1.0, _rounded(beside / sharing)) if asked.num_cpus is None else asked.num_cpus
    num_gpus = _rounded(1 / sharing) if asked.num_gpus is None else per_gpu
    return Share(num_cpus, num_gpus, asked.memory, min(wanted, count * sharing), gpus=min(count, wanted))


def alone(asked: Resources, have: Capacity) -> Share:
    """For one worker that takes what a node gives: a GPU with its CPUs, :data:`GPU_CPUS` at most, else all CPUs."""
    return together(asked, have, workers=1)


def together(asked: Resources, have: Capacity, *, workers: int, beside: bool = False) -> Share:
    """For ``workers`` that stay until all is done, and need each other: every GPU is used before any is shared.

    ``beside`` keeps a share of the first GPU, or a CPU, for short evaluations. One worker alone takes all CPUs of a
    node without GPUs; several take one each, or less where more do not fit.
    """
    per_gpu = _gpu_of(asked, have)
    if not per_gpu:
        largest = max(1.0, have.largest("CPU") - beside) if workers == 1 else 1.0
        cpus = math.floor(largest) if workers == 1 else have.part("CPU", workers, largest)
        return Share(asked.num_cpus or cpus, 0.0, asked.memory, workers)
    each = max(1.0, per_gpu)
    count = int(sum(node["GPU"] // each for node in _holding(have, each))) or 1
    most = workers if asked.num_gpus is None else int(1 / per_gpu + 1e-6) if per_gpu < 1 else 1
    sharing = min(-(-workers // count), most)
    slots = max(min(workers, count), -(-workers // sharing))
    room = _cpus_beside(have, each, slots)
    kept = min(1.0, _rounded(room / 2)) if beside else 0.0
    num_cpus = asked.num_cpus or _whole(_rounded((room - kept) / sharing))
    free = 1 - BESIDE if beside and per_gpu <= 1 and asked.num_gpus is None else 1.0
    num_gpus = _rounded(free / sharing) if asked.num_gpus is None else per_gpu
    return Share(num_cpus, num_gpus, asked.memory, workers, gpus=slots, beside=kept)


def streamed(asked: Resources, decoders: Resources, have: Capacity) -> tuple[Share, Share | None]:
    """For a stream of images: scoring workers, one on each GPU, and decoding ones on CPUs, as many as the cluster has
    room for at any time. Without GPUs the second is ``None``, and scoring workers decode for themselves.

    On a node of one CPU and one GPU each has half of the CPU: either alone would wait for the other.
    """
    per_gpu = _gpu_of(asked, have)
    if not per_gpu:
        return _on_cpus(asked, have, asked.at_once or 10**6, 1.0), None
    each = max(1.0, per_gpu)
    holding = _holding(have, each)
    beside = min((_beside(node, each) for node in holding), default=1.0)
    cpus = asked.num_cpus if asked.num_cpus is not None else min(1.0, _rounded(beside / 2))
    count = int(sum(node["GPU"] / per_gpu + 1e-6 for node in holding)) or 1
    judges = Share(cpus, per_gpu, asked.memory, min(count, asked.at_once or count))
    # What is left where a judge is, and all of the nodes without GPUs.
    left = [float(n.get("CPU", 0)) - cpus * (float(n.get("GPU", 0)) >= per_gpu) for n in have.most]
    free = decoders.num_cpus if decoders.num_cpus is not None else min(1.0, _rounded(max(left, default=1.0)))
    fits = int(sum(max(0.0, value) / free + 1e-6 for value in left)) if free > 0 else 1
    cutters = Share(free, 0.0, decoders.memory, max(1, min(fits, decoders.at_once or fits)))
    return judges, cutters


def _gpu_of(asked: Resources, have: Capacity) -> float:
    """The share of a GPU that a worker asks for, at first a whole one; 0 where the cluster has none."""
    if asked.num_gpus is not None:
        return asked.num_gpus
    return 1.0 if have.total("GPU") else 0.0


def _on_cpus(asked: Resources, have: Capacity, wanted: int, cpus: float) -> Share:
    num_cpus = asked.num_cpus if asked.num_cpus is not None else cpus
    needs = _named({"CPU": num_cpus, "memory": float(asked.memory or 0)})
    return Share(num_cpus, 0.0, asked.memory, max(1, min(wanted, have.fits(needs))))


def _holding(have: Capacity, gpus: float) -> tuple[Mapping[str, float], ...]:
    """The nodes, there or to come, that have so many GPUs."""
    return tuple(node for node in have.most if float(node.get("GPU", 0)) >= gpus)


def _beside(node: Mapping[str, float], gpus: float) -> float:
    """CPUs of a node for every slot of so many GPUs on it."""
    return float(node.get("CPU", 0)) / (float(node["GPU"]) // max(1.0, gpus))


def _cpus_beside(have: Capacity, gpus: float, slots: int) -> float:
    """The most CPUs, up to :data:`GPU_CPUS`, that so many slots can have each."""
    values = sorted({_rounded(min(GPU_CPUS, _beside(n, gpus))) for n in _holding(have, gpus)}, reverse=True)
    fitting = (v for v in values if have.fits({"GPU": gpus, "CPU": v}) >= slots)
    return next(fitting, values[-1] if values else 1.0)


def _named(needs: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in needs.items() if value}


def _rounded(value: float) -> float:
    """Down to what Ray counts in, so that shares never exceed what they are shares of."""
    return math.floor(value * 1000 + 1e-6) / 1000


def _whole(value: float) -> float:
    """Whole CPUs where there is one at least."""
    return float(math.floor(value)) if value >= 1 else value
