"""The device of a worker: what Ray assigned to it, and nothing else.

``RAYDDL_LOGICAL_GPUS=FILE`` is the switch of the tests: nodes that were started with ``num_gpus`` on machines without
any have *logical* GPUs. A worker with one then computes on the CPU, and appends a JSON line with node, GPU, process and
unit of work to FILE. ``RAYDDL_LOGICAL_GPU_BYTES`` is what each of them is taken to hold. Both are set where the run is
started, and travel to its workers.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayddl.errors import StageError

if TYPE_CHECKING:
    import torch

LOGICAL = "RAYDDL_LOGICAL_GPUS"
LOGICAL_BYTES = "RAYDDL_LOGICAL_GPU_BYTES"
CONTEXT_BYTES = 512 * 2**20
"""Of a GPU, what a process takes beside torch's own memory: CUDA's context and its libraries."""
MEMORY_SHARE = 0.9
"""Share of a GPU's free memory that further workers may fill."""


def switches() -> dict[str, str]:
    """The switch of the tests as it stands here, for workers on other nodes."""
    return {name: os.environ[name] for name in (LOGICAL, LOGICAL_BYTES) if name in os.environ}


def assigned() -> tuple[str, ...]:
    """The GPUs that Ray assigned to this worker, by its node's numbers."""
    import ray

    return tuple(str(i) for i in ray.get_runtime_context().get_accelerator_ids().get("GPU", []))


def enter(threads: int, precision: str = "fp32", unit: str = "") -> torch.device:
    """Set up this worker process for a unit of work; the device that Ray assigned to it.

    Raises :class:`StageError` where Ray assigned a GPU that torch cannot see: the work would run on a CPU unnoticed.
    """
    import torch

    torch.set_num_threads(threads)
    gpus = assigned()
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
    return torch.device("cuda", 0)


def repeatable() -> None:
    """Have CUDA give the same bits for the same work: a resumed run is then one that was never interrupted.

    Sums by atomic additions and some of cuDNN's algorithms differ from call to call. What torch has no repeatable
    version of still runs, with a warning in the worker's log.
    """
    import torch

    # Read by cuBLAS when it starts.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Only of use to find reads of memory that was never written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def record(gpu: str, unit: str) -> None:
    """Write down where a unit of work begins on a logical GPU."""
    line = json.dumps({"node": _node(), "gpu": gpu, "process": os.getpid(), "unit": unit})
    # A line at once: several processes append to the same file.
    with open(os.environ[LOGICAL], "a", encoding="utf-8") as file:
        file.write(line + "\n")


def taken(function: Callable[..., Any], *args: Any) -> tuple[int, int]:
    """Bytes that ``function(*args)`` takes of this worker's GPU at most, and bytes that were free there before."""
    import torch

    if LOGICAL in os.environ:
        before = _status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # begins the high-water mark anew
        function(*args)
        need = _status("VmHWM") - before
        # Of what is not there nothing can be measured: whoever works there already takes as much.
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
