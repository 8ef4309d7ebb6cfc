"""How long training takes on this machine: a small model of a processor's and a GPU's speed. Imports no torch.

A step takes its operations divided by the device's rate, and a fixed time for each layer, in which Python and torch
dispatch. The constants were fitted to steps measured on two cores of an Intel Xeon with AVX-512 and of an AMD EPYC, and
on an H100 (``docs/benchmarks.md``); estimates are meant to be right within a factor of 2.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from rayddl.data.sources.summary import SourceSummary
from rayddl.nets import work
from rayddl.nets.config import NetConfig
from rayddl.stages.runtime import machine
from rayddl.stages.runtime.sizes import Share

START = 5.0
"""Seconds in which a command imports, starts and stops Ray, and reads the source."""
STAGE = 3.0
"""Seconds in which a stage starts its workers, which import torch."""
IMAGE = 1e-3
"""Seconds of a core for reading and decoding a small image."""
PER_CYCLE = {"avx512f": 30.0, "avx2": 20.0, "asimd": 10.0, "": 5.0}
"""Operations of a core in a cycle, reached in uncompiled steps of a wide network, by its instruction set."""
OF_PRODUCTS = 0.72
"""The speed reached in these steps, relative to that of matrix products."""
WIDE = 96
"""Channels of a ``convnet`` from which a processor reaches its rate uncompiled; below, it is proportional to them."""
FINE = 16
"""Pixels a side from which it reaches its rate."""
LAYER = 0.7e-3
"""Seconds of dispatch for a layer in an uncompiled gradient step."""
THREADS = 0.85
"""The gain of t threads is t to this power."""
COMPILING = 15.0
"""Seconds of compiling a stage's steps."""
COMPILED_LAYER, GPU_COMPILED_GAIN = 0.15, 3.5
"""Of compiled steps: the share of the dispatch that is left, and how much faster operations run on a GPU. On a
processor, narrow networks run as fast as wide ones."""
BF16, BF16_GAIN, GPU_BF16_GAIN = {"avx512_bf16", "amx_bf16"}, 1.6, 1.3
"""Instruction sets with bfloat16, and how much faster steps in it run."""
GRADIENT, FORWARD, MATCHED = 3, 1, 12
"""Cost in forward passes of a gradient step, of a test, and of a matched student step."""
MATCHED_COMPILED = 8
"""The cost of a compiled matched student step on a processor, which keeps its convolutions for the way back."""
MATCHED_LAYER = 9.0
"""Dispatch of an uncompiled matched step relative to a gradient step's."""
H100 = 8.5e12
"""Operations per second in uncompiled fp32 steps on an H100."""
BANDWIDTH = {
    "B200": 8000, "GH200": 4000, "H200": 4800, "H100 PCIE": 2000, "H100": 3350, "A100": 1800, "L40S": 864, "L40": 864,
    "L4": 300, "A10G": 600, "A10": 600, "A30": 933, "V100": 900, "T4": 320, "P100": 730, "RTX 5090": 1790,
    "RTX 4090": 1010, "RTX 4080": 720, "RTX 3090": 940, "RTX 3080": 760, "RTX A6000": 770, "RTX 6000": 960,
}  # fmt: skip
"""Memory bandwidth of GPUs in GB/s, to which the speed of such steps is proportional."""
UNKNOWN_BANDWIDTH = 700


@dataclass(frozen=True)
class Speed:
    """The speed of a machine's devices."""

    core: float = 2.6e9 * PER_CYCLE["avx2"]
    """Operations per second of a core."""
    gpu: float | None = None
    """Operations per second of a GPU; ``None`` without one."""
    half: float = 1.0
    """How much faster operations are in bfloat16."""
    guess: str = ""
    """What the speed is a guess for."""

    @classmethod
    def of(cls, cpu: str, gpus: tuple[str, ...], products: float | None = None) -> Speed:
        """The speed of a processor, of which ``cpu`` is the text of ``/proc/cpuinfo``, and of GPUs by name.

        ``products``: operations per second of a core in matrix products, where they were measured; otherwise the clock
        and the instruction set count.
        """
        hertz = [float(found) for found in re.findall(r"^cpu MHz\s*:\s*([\d.]+)", cpu, re.MULTILINE)]
        flags = machine.cpu_flags(cpu)
        core = (
            1e6
            * max(hertz, default=2600.0)
            * next(rate for name, rate in PER_CYCLE.items() if not name or name in flags)
        )
        if products is not None:
            core = OF_PRODUCTS * products
        if not gpus:
            half = BF16_GAIN if flags & BF16 else 1.0
            return cls(core, None, half, "" if flags else "this processor")
        widths = [next((w for name, w in BANDWIDTH.items() if name in gpu.upper()), None) for gpu in gpus]
        slowest = min(UNKNOWN_BANDWIDTH if width is None else width for width in widths)
        unknown = next((gpu for gpu, width in zip(gpus, widths, strict=True) if width is None), "")
        return cls(core, H100 * slowest / BANDWIDTH["H100"], GPU_BF16_GAIN, unknown)

    def step(
        self,
        net: NetConfig,
        source_summary: SourceSummary,
        batch: float,
        share: Share,
        *,
        passes: float = GRADIENT,
        dispatch: float = 1.0,
        compiled: bool = False,
        precision: str = "fp32",
    ) -> float | None:
        """Seconds of a worker of ``share`` for one step of ``batch`` images; ``None`` for a network of a plugin.

        ``passes`` is its cost in forward passes, ``dispatch`` its dispatch relative to a gradient step's.
        """
        flops, layers = work.operations(net, source_summary.shape, source_summary.classes), work.layers(net)
        if flops is None or layers is None:
            return None
        reached = min(1.0, max(source_summary.shape[1:]) / FINE)
        if net.name == "convnet" and not compiled:
            reached *= min(1.0, net.width / WIDE)
        if share.num_gpus and self.gpu is not None:
            rate = self.gpu * min(1.0, share.num_gpus) * (GPU_COMPILED_GAIN if compiled else 1.0)
        else:
            rate = self.core * reached * share.threads**THREADS
        rate *= self.half if precision == "bf16" else 1.0
        fixed = LAYER * layers * dispatch * (COMPILED_LAYER if compiled else 1.0)
        return passes * flops * batch / rate + fixed


def compiles(
    net: NetConfig,
    source_summary: SourceSummary,
    wanted: bool | None,
    *,
    steps: int,
    batch: int,
    passes: int = 3,
) -> bool:
    """True if a stage compiles ``steps`` steps of ``batch`` images."""
    flops = work.operations(net, source_summary.shape, source_summary.classes)
    if wanted is not None or flops is None:
        return bool(wanted)
    return work.pays(net.name, flops, steps=steps, batch=batch, passes=passes)
