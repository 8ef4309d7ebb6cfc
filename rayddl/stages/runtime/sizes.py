"""Resources of a stage's workers, from settings and the cluster's nodes. Imports neither torch nor Ray.

A worker on a GPU runs in a *slot*: one GPU (or several, if a worker requests them) with the CPUs of the workers that
share it. Ray packs fractions onto the same GPU, so slots, and not fractions, distribute work over all GPUs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import Field

from rayddl.config import Config
from rayddl.stages.runtime.capacity import Capacity

SHARED = 4
"""Most processes that share a GPU, unless set in a stage's resources."""
GPU_CPUS = 8.0
"""Most CPUs of a single worker on a GPU: they launch kernels, load data and run tests."""
WHOLE_BYTES = 256 * 2**20
"""Most bytes of a decoded split that a process holds; larger ones are in shards, and in files."""
MANY = 10**6
"""Units of work where their number is not known: slots of GPUs are then as large as any number makes them."""
BESIDE = 0.25
"""Share of a GPU reserved for short evaluations during matching."""


class Resources(Config):
    """What one worker of the stage requests from Ray. No part of the fingerprint. Bits are the same only for the same
    ``num_cpus``, which is the number of threads that sums are split between.
    """

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
    """The resources of one worker of a stage, and the number of concurrent workers."""

    num_cpus: float
    num_gpus: float
    memory: int | None
    at_once: int
    gpus: int = 0
    """The number of GPU slots; 0 if workers have no GPU."""
    beside: float = 0.0
    """CPUs reserved in the first slot for short evaluations, with :data:`BESIDE` of its GPU if workers leave it."""
    part: float = 1.0
    """The share of a GPU that a slot has, where other stages may use the rest."""
    team: bool = False
    """True if the workers are a team, which runs each unit of work together and is placed by Ray Train."""
    range: tuple[int, int] | None = None
    """The least and the largest number of workers of a team whose size follows the cluster; it has ``at_once`` now."""

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of ``.options(...)`` for a task or actor."""
        asked: dict[str, Any] = {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus}
        return asked if self.memory is None else {**asked, "memory": self.memory}

    @property
    def threads(self) -> int:
        """The number of torch threads of a worker."""
        return max(1, int(self.num_cpus))

    @property
    def per_slot(self) -> int:
        """The largest number of workers in one slot."""
        return -(-self.at_once // self.gpus) if self.gpus else 1

    @property
    def slots(self) -> tuple[Mapping[str, float], ...]:
        """The resources of each slot, by Ray's names."""
        whole = {
            "GPU": max(self.part, self.num_gpus),
            "CPU": _rounded(self.per_slot * self.num_cpus),
            "memory": float(self.per_slot * (self.memory or 0)),
        }
        first = {**whole, "CPU": _rounded(whole["CPU"] + self.beside)}
        return tuple(_named(first if k == 0 else whole) for k in range(self.gpus))

    @property
    def needs(self) -> Mapping[str, float]:
        """The resources of the largest unit that Ray places on one node: a slot, or a worker without a GPU."""
        if self.gpus:
            return self.slots[0]
        return _named({"CPU": self.num_cpus, "GPU": self.num_gpus, "memory": float(self.memory or 0)})


STUDENT = Share(1.0, 0.0, None, 1)
"""A student of a short evaluation on a CPU."""


@dataclass(frozen=True)
class Ask:
    """The resources that a stage's workers request, and how many of them may run at once."""

    key: str
    """The setting that changes the request."""
    share: Share
    together: bool = False
    """True if all workers must run at once; otherwise ``share`` is that of a single worker."""
    units: int | None = None
    """The largest number of units of work for such single workers; ``None`` if it is not known in advance."""
    least: int = 1
    """The number of single workers without which the stage cannot run: 1, or 0 for work that it can leave out."""

    @property
    def placed(self) -> Iterator[Mapping[str, float]]:
        """Yield the resources that the stage needs at the same time, per unit of placement."""
        if not self.together:
            yield self.share.needs
        elif self.share.gpus:
            yield from self.share.slots
        else:
            yield from (self.share.needs for _ in range(self.share.at_once))


def spread(asked: Resources, have: Capacity, *, units: int, gpu: bool = True, fill: bool = False) -> Share:
    """The share for ``units`` independent units of work: every GPU is used before any is shared, by at most
    :data:`SHARED` workers; without GPUs, or for work that cannot use one (``gpu``), a CPU each.

    With ``fill``, a GPU is shared only by as many workers as there are units for all GPUs: for callers that let Ray
    place the workers.
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
    at_once, gpus = min(wanted, count * sharing), min(count, wanted)
    return Share(
        num_cpus, num_gpus, asked.memory, at_once, gpus=gpus, part=_part(asked, have, sharing * num_gpus)
    )


def alone(asked: Resources, have: Capacity) -> Share:
    """The share for one worker with a whole node: a GPU with at most :data:`GPU_CPUS` CPUs, else all CPUs."""
    return together(asked, have, workers=1)


def together(asked: Resources, have: Capacity, *, workers: int, beside: bool = False) -> Share:
    """The share for ``workers`` that must all run until the end: every GPU is used before any is shared.

    ``beside`` reserves a share of the first GPU, or a CPU, for short evaluations. Without GPUs a single worker gets all
    CPUs of a node; several workers get one each, or less if these do not fit.
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
    free = 1 - BESIDE if beside and per_gpu <= 1 else 1.0
    most_gpus = _rounded(free / sharing)
    num_gpus = most_gpus if asked.num_gpus is None else min(per_gpu, most_gpus) if per_gpu <= 1 else per_gpu
    part = _part(asked, have, sharing * num_gpus + 1 - free)
    room = _cpus_beside(have, each, slots) * part
    kept = min(1.0, _rounded(room / 2)) if beside else 0.0
    num_cpus = asked.num_cpus or _whole(_rounded((room - kept) / sharing))
    return Share(num_cpus, num_gpus, asked.memory, workers, gpus=slots, beside=kept, part=part)


def team(asked: Resources, have: Capacity, *, workers: int, least: int | None = None) -> Share:
    """The share of each of ``workers`` that train one network together: a whole GPU with at most :data:`GPU_CPUS` CPUs;
    without GPUs the largest equal part of the nodes' CPUs, in whole CPUs.

    A part of a GPU is rounded up: processes that exchange gradients cannot share one. With ``least``, as many of the
    workers as fit, and at least so many.
    """
    gpus = math.ceil(_gpu_of(asked, have))
    if gpus:
        cpus = _whole(_cpus_beside(have, gpus, workers))
    else:
        cpus = max(1.0, float(math.floor(have.part("CPU", workers, have.largest("CPU")))))
    share = Share(asked.num_cpus or cpus, float(gpus), asked.memory, workers, team=True)
    if least is None:
        return share
    fit = min(workers, max(least, have.fits(share.needs)))
    return replace(share, at_once=fit, range=(least, workers))


def streamed(asked: Resources, decoders: Resources, have: Capacity) -> tuple[Share, Share | None]:
    """The shares for a stream of images: one scoring worker per GPU, and decoding workers on the remaining CPUs of the
    cluster. Without GPUs the second share is ``None``, and scoring workers decode too.

    On a node of one CPU and one GPU each worker gets half of the CPU: with a whole CPU, one would block the other.
    """
    per_gpu = _gpu_of(asked, have)
    if not per_gpu:
        return _on_cpus(asked, have, asked.at_once or MANY, 1.0), None
    each = max(1.0, per_gpu)
    holding = _holding(have, each)
    beside = min((_beside(node, each) for node in holding), default=1.0)
    cpus = asked.num_cpus if asked.num_cpus is not None else min(1.0, _rounded(beside / 2))
    count = int(sum(node["GPU"] / per_gpu + 1e-6 for node in holding)) or 1
    judges = Share(cpus, per_gpu, asked.memory, min(count, asked.at_once or count))
    # The remaining CPUs of nodes with a scoring worker, and all CPUs of nodes without GPUs.
    left = [float(n.get("CPU", 0)) - cpus * (float(n.get("GPU", 0)) >= per_gpu) for n in have.most]
    free = decoders.num_cpus if decoders.num_cpus is not None else min(1.0, _rounded(max(left, default=1.0)))
    fits = int(sum(max(0.0, value) / free + 1e-6 for value in left)) if free > 0 else 1
    cutters = Share(free, 0.0, decoders.memory, max(1, min(fits, decoders.at_once or fits)))
    return judges, cutters


def _part(asked: Resources, have: Capacity, needed: float) -> float:
    """The share of a GPU that a slot takes: ``needed`` if a fraction is set and there is a single GPU, which other
    stages then use at the same time; else a whole one, since Ray would pack slots of a part onto the same GPU.
    """
    divided = asked.num_gpus is not None and asked.num_gpus < 1 and have.total("GPU") == 1
    return min(1.0, math.ceil(needed * 1000 - 1e-6) / 1000) if divided else 1.0


def _gpu_of(asked: Resources, have: Capacity) -> float:
    """The GPUs of one worker, by default a whole one; 0 if the cluster has none."""
    if asked.num_gpus is not None:
        return asked.num_gpus
    return 1.0 if have.total("GPU") else 0.0


def _on_cpus(asked: Resources, have: Capacity, wanted: int, cpus: float) -> Share:
    num_cpus = asked.num_cpus if asked.num_cpus is not None else cpus
    needs = _named({"CPU": num_cpus, "memory": float(asked.memory or 0)})
    return Share(num_cpus, 0.0, asked.memory, max(1, min(wanted, have.fits(needs))))


def _holding(have: Capacity, gpus: float) -> tuple[Mapping[str, float], ...]:
    """The existing or autoscalable nodes with at least ``gpus`` GPUs."""
    return tuple(node for node in have.most if float(node.get("GPU", 0)) >= gpus)


def _beside(node: Mapping[str, float], gpus: float) -> float:
    """CPUs of a node per slot of ``gpus`` GPUs."""
    return float(node.get("CPU", 0)) / (float(node["GPU"]) // max(1.0, gpus))


def _cpus_beside(have: Capacity, gpus: float, slots: int) -> float:
    """The largest number of CPUs per slot, up to :data:`GPU_CPUS`, with which ``slots`` slots fit."""
    values = sorted({_rounded(min(GPU_CPUS, _beside(n, gpus))) for n in _holding(have, gpus)}, reverse=True)
    fitting = (v for v in values if have.fits({"GPU": gpus, "CPU": v}) >= slots)
    return next(fitting, values[-1] if values else 1.0)


def _named(needs: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in needs.items() if value}


def _rounded(value: float) -> float:
    """``value`` rounded down to Ray's resolution, so that the sum of shares never exceeds the node."""
    return math.floor(value * 1000 + 1e-6) / 1000


def _whole(value: float) -> float:
    """``value`` rounded down to an integer if it is at least 1."""
    return float(math.floor(value)) if value >= 1 else value
