"""What a benchmark was measured on, and how its rows are run and printed."""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

ALLOCATOR = {
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_MMAP_THRESHOLD_": "100000000000",
}
"""The settings that rayddl gives its workers."""


def figures() -> str:
    """The machine in a line."""
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
    return ", ".join(parts)


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
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows with the same keys, in aligned columns."""
    keys = list(rows[0])
    widths = {k: max(len(k), *(len(row[k]) for row in rows)) for k in keys}
    lines = ["  ".join(k.ljust(widths[k]) for k in keys)]
    lines += ["  ".join(row[k].ljust(widths[k]) for k in keys) for row in rows]
    return "\n".join(line.rstrip() for line in lines)
