"""What a benchmark was measured on, and how its rows are run and printed."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

ALLOCATOR = {
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_MMAP_THRESHOLD_": "100000000000",
}
"""The settings that rayddl gives its workers."""


def parser(
    about: str | None, *, rounds: int = 0, reference: str = "", row: bool = False
) -> argparse.ArgumentParser:
    """The options that benchmarks share: ``--rounds`` with its default, ``--reference`` of a published code, and the
    ``--row`` with which a benchmark runs one of its rows in a process of its own: :func:`child`.
    """
    made = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    if rounds:
        made.add_argument("--rounds", type=int, default=rounds, help="measurements of each row, in turns")
    if reference:
        made.add_argument("--reference", help=f"a checkout of the published {reference} code")
    if row:
        made.add_argument("--row", help=argparse.SUPPRESS)
    return made


def figures() -> str:
    """The machine in a line, with what it does at its best: :func:`peak` and :func:`bandwidth`, measured now."""
    import torch

    from rayddl.stages.runtime import machine

    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    parts = [
        f"{machine.cpus()} CPUs ({model})",
        f"{machine.memory_bytes() / 2**30:.0f} GiB",
        f"torch {torch.__version__}",
        f"Python {platform.python_version()}",
    ]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name(0))
    parts += [f"peak {peak(p) / 1e9:,.0f} GFLOP/s {p}" for p in ("fp32", "bf16")]
    parts += [f"copies {bandwidth() / 1e9:.1f} GB/s"]
    return ", ".join(parts)


def peak(precision: str = "fp32") -> float:
    """Operations per second of the convolution that most of a ConvNet-3's time goes to, at its best.

    A 3 x 3 one of 128 channels on 100 images of 16 x 16 pixels, channels last, in ``fp32`` or ``bf16``. It is what this
    machine can do: times over floor relate to it.
    """
    import torch

    from rayddl.stages.runtime import machine

    torch.set_num_threads(machine.cpus())
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    x = torch.randn(100, 128, 16, 16, dtype=dtype, device=device).to(memory_format=torch.channels_last)
    weight = torch.randn(128, 128, 3, 3, dtype=dtype, device=device).to(memory_format=torch.channels_last)
    operations = 2 * weight.numel() * 100 * 16 * 16
    return operations / best(lambda: torch.conv2d(x, weight, padding=1))


def bandwidth() -> float:
    """Bytes per second, read and written, of copying 256 MiB at its best."""
    import torch

    from rayddl.stages.runtime import machine

    torch.set_num_threads(machine.cpus())
    source = torch.zeros(2**26, device="cuda" if torch.cuda.is_available() else "cpu")
    target = torch.empty_like(source)
    return 2 * source.nbytes / best(lambda: target.copy_(source))


def best(work: Callable[[], Any], times: int = 15) -> float:
    """Seconds of the fastest of ``times`` calls of ``work``."""
    import torch

    found = []
    with torch.no_grad():
        for _ in range(times):
            began = time.perf_counter()
            work()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            found.append(time.perf_counter() - began)
    return min(found)


def child(module: str, row: Mapping[str, Any], *, allocator: bool) -> dict[str, Any] | None:
    """Run ``python -m module --row ROW`` in a process of its own; the JSON it prints last.

    ``None`` when the process died, as one does that runs out of memory.
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    environment |= ALLOCATOR if allocator else {}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", module, "--row", json.dumps(row)],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        print(done.stderr[-2000:], file=sys.stderr)
        return None
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def peak_bytes() -> int:
    """The largest memory this process has had: of the GPU where there is one."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resident_peak()


def resident_peak() -> int:
    """The most bytes that this process has had resident, without its parent's, which ``getrusage`` counts; on Linux."""
    with open("/proc/self/status", encoding="ascii") as status:
        return 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows with the same keys, in aligned columns."""
    keys = list(rows[0])
    widths = {k: max(len(k), *(len(row[k]) for row in rows)) for k in keys}
    lines = ["  ".join(k.ljust(widths[k]) for k in keys)]
    lines += ["  ".join(row[k].ljust(widths[k]) for k in keys) for row in rows]
    return "\n".join(line.rstrip() for line in lines)
