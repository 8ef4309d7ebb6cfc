"""Shared parts of all kinds' estimates: the machine, the source, and formulas for a worker's memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from rayddl.data.config import SourceConfig
from rayddl.data.sources.summary import SourceSummary, source_summary
from rayddl.nets.config import NetConfig
from rayddl.nets.work import KEPT_PRODUCTS
from rayddl.stages.runtime import machine, product_speed, sizes
from rayddl.stages.runtime.capacity import Capacity
from rayddl.stages.runtime.sizes import Resources, Share
from rayddl.stages.settings import StageConfig
from rayddl.stages.speed import COMPILING, FORWARD, GRADIENT, STAGE, Speed, compiles

Stages: TypeAlias = Mapping[str, StageConfig]
"""The settings of all stages of a definition, by name."""

FLOAT = 4
"""Bytes of a float32."""
PAGE_PROCESS = 300 * 2**20
"""Bytes of a process that renders a page; it imports neither torch nor Ray."""
PAGE = 1.0
"""Seconds in which a page is rendered."""
PROCESS = 600 * 2**20
"""Bytes of main memory of a worker that has only imported torch and Ray; its GPU memory is negligible."""

STEP = 8
"""Numbers held in a gradient step for each number that a forward pass keeps."""
JUDGED = 256
"""Held-out images in one batch of a test."""
VECTORS = 6
"""Parameter vectors in a training: parameters, gradient, momentum and the result of an update."""


@dataclass(frozen=True)
class Machine:
    """Resources of this machine."""

    cpus: int
    memory: int
    """Free bytes of main memory."""
    gpus: tuple[int, ...]
    """Free bytes of each GPU."""
    speed: Speed = field(default_factory=Speed)

    @classmethod
    def here(cls, *, timed: bool = True) -> Machine:
        """Return this machine, with its current free memory and its speed: measured if ``timed``, else as described."""
        gpus = machine.gpu_bytes()
        cpu = machine.cpu_text()
        products = product_speed.measured(cpu) if timed else None
        speed = Speed.of(cpu, machine.gpu_names() if gpus else (), products)
        return cls(machine.cpus(), machine.free_bytes(), gpus, speed)

    @property
    def have(self) -> Capacity:
        """The machine as a cluster of one node."""
        return Capacity(({"CPU": float(self.cpus), "GPU": float(len(self.gpus))},))

    def share(self, asked: Resources, units: int, *, gpu: bool = True) -> Share:
        """The resources of a worker for ``units`` independent units of work; ``gpu``: whether they can use a GPU."""
        return sizes.spread(asked, self.have, units=units, gpu=gpu)

    def room(self, share: Share) -> int:
        """Bytes available to one worker of ``share``: on its GPU, else in main memory. A definition for another
        machine may ask for GPUs that this machine lacks.
        """
        if share.num_gpus and self.gpus:
            return int(min(self.gpus) * min(1.0, share.num_gpus))
        return self.memory // share.at_once

    def to_json(self) -> dict[str, Any]:
        """The machine as JSON values."""
        return {"cpus": self.cpus, "free_memory": self.memory, "free_gpu_memory": list(self.gpus)}


@dataclass(frozen=True)
class Outlook:
    """Inputs of an estimate besides the settings."""

    source: SourceConfig
    source_summary: SourceSummary
    machine: Machine

    @property
    def resident(self) -> int:
        """Bytes of the splits that a worker keeps on its device: whitened ones in float32, others as they are. Large
        ones are in files.
        """
        each = FLOAT if self.source.space == "zca" else 1
        splits = (
            images * self.source_summary.numbers
            for images in (self.source_summary.train, self.source_summary.test)
        )
        return sum(each * size for size in splits if size <= sizes.WHOLE_BYTES)

    @property
    def space(self) -> int:
        """Bytes of the stored pixel space: two triangular matrices for ``zca``, else a few numbers."""
        side = self.source_summary.numbers
        return FLOAT * side * (side + 2) if self.source.space == "zca" else 16 * self.source_summary.shape[0]


def outlook(source: SourceConfig, *, timed: bool = True) -> Outlook:
    """The outlook for ``source`` on this machine. Reads listings and a few image headers."""
    return Outlook(source, source_summary(source), Machine.here(timed=timed))


@dataclass(frozen=True)
class Estimate:
    """The estimated resources of a stage."""

    work: str
    """Units of work, in words."""
    at_once: int
    """Workers that run at once on this machine."""
    memory: int | None = None
    """Peak bytes in one worker, on its device; ``None`` if unknown."""
    written: int | None = None
    """Bytes of the stage's output."""
    device: str = "memory"
    """``memory`` or ``GPU``: the kind of memory that ``memory`` counts."""
    measured: bool = False
    """True if ``memory`` was measured, false if it is computed by formula."""
    notes: tuple[str, ...] = ()
    """Further remarks: what does not fit, and which setting would."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Further figures, for JSON."""
    seconds: float | None = None
    """About how long the stage takes if it has the machine for itself; ``None`` if unknown."""
    busy: float = 1.0
    """The share of the machine that it keeps busy meanwhile."""
    counted: bool = True
    """True if the units that the stage's progress counts are those of the estimate, from its start to its end."""

    def to_json(self) -> dict[str, Any]:
        """The estimate as JSON values; bytes are integers."""
        return {
            "work": self.work,
            "at_once": self.at_once,
            "memory": self.memory,
            "device": self.device,
            "measured": self.measured,
            "written": self.written,
            "notes": list(self.notes),
            "seconds": None if self.seconds is None else round(self.seconds, 1),
            **self.facts,
        }


def made(
    work: str,
    share: Share,
    outlook: Outlook,
    memory: int | None,
    written: int | None,
    seconds: float | None = None,
) -> Estimate:
    """An estimate, with a note if the concurrent workers need more memory than is free. ``seconds`` are those of the
    workers; their start is added.
    """
    machine, device = outlook.machine, "GPU" if share.num_gpus else "memory"
    room = machine.room(share)
    notes = (too_much(memory, room, share.at_once, device),) if memory is not None and memory > room else ()
    gpus = share.num_gpus and machine.gpus
    have, used = (len(machine.gpus), share.num_gpus) if gpus else (machine.cpus, share.num_cpus)
    busy = min(1.0, share.at_once * used / have)
    whole = None if seconds is None else STAGE + seconds
    return Estimate(work, share.at_once, memory, written, device, notes=notes, seconds=whole, busy=busy)


def in_turn(units: float, share: Share, seconds: float | None) -> float | None:
    """Seconds of ``units`` units of work of ``seconds`` each, by the workers of ``share``."""
    return None if seconds is None else -(-units // (1 if share.team else share.at_once)) * seconds


def trainings(
    net: NetConfig,
    images: int,
    batch: int,
    epochs: int,
    share: Share,
    outlook: Outlook,
    *,
    units: int = 1,
    tests: int = 1,
    wanted: bool | None = None,
    precision: str = "fp32",
    dearer: float = 1.0,
    dispatch: float = 1.0,
) -> float | None:
    """Seconds of ``units`` trainings on ``images`` images by the workers of ``share``, with ``tests`` tests each.

    ``wanted`` is the stage's ``compile``, ``dearer`` the cost of a step relative to a gradient. ``None`` for a plugin's
    network.
    """
    source_summary, speed = outlook.source_summary, outlook.machine.speed
    an_epoch, batch = max(1, -(-images // batch)), max(1, min(batch, images))
    steps = an_epoch * epochs
    compiled = compiles(net, source_summary, wanted, steps=steps * units, batch=batch)
    step = speed.step(
        net, source_summary, images / an_epoch, share,
        passes=GRADIENT * dearer, dispatch=dispatch, compiled=compiled, precision=precision,
    )  # fmt: skip
    test = speed.step(
        net,
        source_summary,
        source_summary.test,
        share,
        passes=FORWARD,
        dispatch=-(-source_summary.test // JUDGED) / 2,
    )
    if step is None or test is None:
        return None
    return (in_turn(units, share, steps * step + tests * test) or 0.0) + COMPILING * compiled


def too_much(memory: int, room: int, at_once: int, device: str) -> str:
    """The note for workers that do not fit into memory."""
    kind = "GPU memory" if device == "GPU" else "memory"
    if at_once == 1:
        return f"needs {shown(memory)}, and {shown(room)} of {kind} are free"
    fewer = f"resources.{'num_gpus' if device == 'GPU' else 'at_once'}"
    return (
        f"{at_once} workers of {shown(memory)} run at once, and each has {shown(room)} of {kind}; set {fewer}"
    )


@dataclass(frozen=True)
class Outline:
    """The size of a network for a given image shape."""

    parameters: int
    activations: int
    """Numbers that the forward pass of one image keeps."""
    convolutions: int
    """Those of long convolutions, and of their derivatives, which a matched step may keep for the way back."""


def outline(net: NetConfig, source_summary: SourceSummary) -> Outline | None:
    """The computed size of a ConvNet; ``None`` for other networks, whose size is known only once they are built."""
    if net.name != "convnet":
        return None
    channels, *sides = source_summary.shape
    height, width = (32, 32) if sides == [28, 28] else sides
    parameters = activations = convolutions = 0
    for _ in range(net.depth):
        parameters += channels * net.width * 9 + net.width
        parameters += 0 if net.norm == "none" else 2 * net.width
        activations += height * width * net.width
        # The derivative by a layer's inputs, and the layer itself.
        convolutions += height * width * (channels + net.width) * (9 * channels >= KEPT_PRODUCTS)
        channels, height, width = net.width, height // 2, width // 2
    parameters += (channels * height * width + 1) * source_summary.classes
    return Outline(parameters, activations + source_summary.numbers, convolutions)


def training(nets: Sequence[NetConfig], batch: int, share: Share, outlook: Outlook) -> int | None:
    """Peak bytes of a worker that trains any of ``nets`` on the source: both splits, and a training step or a test
    batch. ``None`` if the size of a network is unknown.
    """
    outlines = [outline(net, outlook.source_summary) for net in nets]
    if None in outlines:
        return None
    step = max(
        (max(batch * STEP, JUDGED * 2) * size.activations + VECTORS * size.parameters) * FLOAT
        for size in outlines
        if size is not None
    )
    return step + outlook.resident + (0 if share.num_gpus else PROCESS)


def net_of(stages: Stages, config: StageConfig | None) -> NetConfig:
    """The network that a stage trains or makes its set with; the default network if its settings name none."""
    return (config.network(stages) if config else None) or NetConfig()


def of_set(stages: Stages, config: StageConfig | None, setting: str) -> int | None:
    """``ipc`` or ``factor`` of the stage that makes a set, or of the one whose set it changes or searches; ``None`` if
    no stage says it.
    """
    while config is not None and not hasattr(config, setting):
        config = stages.get(str(getattr(config, "set", "") or getattr(config, "of", "")))
    return None if config is None else int(getattr(config, setting))


def shown(count: int) -> str:
    """``count`` bytes as text: ``1.3 GiB``."""
    value = float(count)
    for unit in ("B", "KiB", "MiB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 10 else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"
