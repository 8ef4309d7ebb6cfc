"""The device of a worker: only what Ray assigned to it.

``RAYDDL_LOGICAL_GPUS=FILE`` is for tests: nodes that were started with ``num_gpus`` on machines without GPUs have
*logical* GPUs. A worker with one computes on the CPU, and appends a JSON line with node, GPU, process and unit of work
to FILE. ``RAYDDL_LOGICAL_GPU_BYTES`` is the assumed memory of each. Both are set for the driver, which passes them to
its workers.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayddl.errors import StageError
from rayddl.stages.runtime import cores

if TYPE_CHECKING:
    import torch

LOGICAL = "RAYDDL_LOGICAL_GPUS"
LOGICAL_BYTES = "RAYDDL_LOGICAL_GPU_BYTES"
CONTEXT_BYTES = 512 * 2**20
"""Bytes of GPU memory of a process besides torch's allocations: CUDA's context and libraries."""
MEMORY_SHARE = 0.9
"""Share of a GPU's free memory available to further workers."""


def switches() -> dict[str, str]:
    """The test variables of this process, for workers on other nodes."""
    return {name: os.environ[name] for name in (LOGICAL, LOGICAL_BYTES) if name in os.environ}


def assigned() -> tuple[str, ...]:
    """The GPUs that Ray assigned to this worker, as indices on its node; none in a process without Ray."""
    import ray

    if not ray.is_initialized():  # asking would start Ray
        return ()
    return tuple(str(i) for i in ray.get_runtime_context().get_accelerator_ids().get("GPU", []))


def enter(threads: int, precision: str = "fp32", unit: str = "") -> torch.device:
    """Set up this worker process for a unit of work, and return the device that Ray assigned to it.

    Raises :class:`StageError` if torch cannot see the assigned GPU: the work would silently run on a CPU.
    """
    import torch

    torch.set_num_threads(threads)
    gpus = assigned()
    cores.watch(1 if gpus else threads)
    if not gpus:
        return torch.device("cpu")
    if LOGICAL in os.environ:
        record(gpus[0], unit)
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise StageError(
            f"Ray assigned GPU {gpus[0]} of node {_node()} to {unit or 'a worker'}, and torch sees no GPU there (torch "
            f"{torch.__version__}, built for {torch.version.cuda or 'CPUs only'}). Install a torch that fits the "
            "node's driver, or start the node with --num-gpus 0.",
            code="torch-sees-no-gpu",
        )
    tf32 = precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    repeatable()
    # Ray shows a worker its own GPUs; Ray Train shows it those of its team on the node, and has chosen one of them.
    return torch.device("cuda", torch.cuda.current_device() if torch.distributed.is_initialized() else 0)


def repeatable() -> None:
    """Make CUDA's results bit-identical between calls, so that a resumed run equals an uninterrupted one.

    Atomic additions and some of cuDNN's algorithms differ between calls. Operations without a deterministic version
    still run, with a warning in the worker's log.
    """
    import torch

    # cuBLAS reads this at its start.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Needed only to detect reads of uninitialised memory.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def record(gpu: str, unit: str) -> None:
    """Append the start of a unit of work on a logical GPU to the file of ``RAYDDL_LOGICAL_GPUS``."""
    line = json.dumps({"node": _node(), "gpu": gpu, "process": os.getpid(), "unit": unit})
    # One write per line: several processes append to the same file.
    with open(os.environ[LOGICAL], "a", encoding="utf-8") as file:
        file.write(line + "\n")


def taken(function: Callable[..., Any], *args: Any) -> tuple[int, int]:
    """Peak bytes that ``function(*args)`` uses on this worker's GPU, and bytes that were free before."""
    import torch

    if LOGICAL in os.environ:
        before = _status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the high-water mark
        function(*args)
        need = _status("VmHWM") - before
        # A logical GPU has no memory to measure: the first worker is assumed to use as much.
        return need, int(os.environ.get(LOGICAL_BYTES) or 2**40) - need
    free = int(torch.cuda.mem_get_info()[0] * MEMORY_SHARE)
    torch.cuda.reset_peak_memory_stats()
    function(*args)
    return int(torch.cuda.max_memory_reserved()) + CONTEXT_BYTES, free


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return 0


def _node() -> str:
    import ray

    return str(ray.get_runtime_context().get_node_id())[:12]
