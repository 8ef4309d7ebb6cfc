"""Checks this machine before a run: its resources, problems, and advice.

Torch and torchvision are imported in a child process, because incompatible versions can crash the process.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

from rich import box
from rich.table import Table
from rich.text import Text

from rayddl.stages.runtime import machine
from rayddl.storage import Folder
from rayddl.version import installed

State: TypeAlias = Literal["fine", "worse", "fails"]
"""``worse``: works, but slower or with fewer features. ``fails``: something will not work."""

_GIB = 1 << 30
SMALL_SHM = _GIB // 4
"""Bytes of shared memory below which Ray's object store falls back to files."""
_PYTHONS = ((3, 10), (3, 13))
_LIBRARIES = ("torch", "torchvision", "ray", "pyarrow")
_TORCH_PROBE = """
import json
found = {}
try:
    import torch
    found["torch"] = torch.__version__
    found["built_for"] = torch.version.cuda or torch.version.hip
    found["gpus"] = [
        [torch.cuda.get_device_name(i), torch.cuda.get_device_properties(i).total_memory]
        for i in range(torch.cuda.device_count())
    ]
except Exception as error:
    found["torch_error"] = f"{type(error).__name__}: {error}"
else:
    try:
        import torchvision
        boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 2.1]])
        kept = torchvision.ops.nms(boxes, torch.tensor([0.9, 0.8]), 0.5)
        found["torchvision"] = torchvision.__version__
        found["nms"] = kept.tolist() == [0]
    except Exception as error:
        found["torchvision_error"] = f"{type(error).__name__}: {error}"
print(json.dumps(found))
"""
_CXX_PROBE = """
#include <Python.h>
#include <cmath>
#include <omp.h>
int main() { return omp_get_max_threads() > 0; }
"""


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    name: str
    found: str
    state: State = "fine"
    advice: str = ""
    """The problem and its remedy."""

    def to_json(self) -> dict[str, str]:
        """The finding as JSON values."""
        return asdict(self)


Probe: TypeAlias = Callable[[], dict[str, Any]]


def examine(out: str = "runs", probe: Probe | None = None) -> list[Finding]:
    """The findings of all checks, in the order a run needs them. ``probe`` imports torch and torchvision."""
    torch = (probe or try_torch)()
    return [
        _python(),
        *(_library(name) for name in _LIBRARIES),
        _fit(torch),
        _byte_code("torch"),
        _cpus(),
        _memory(machine.memory_bytes()),
        _shared_memory(machine.shm_bytes()),
        *_gpus(torch, driver_gpus()),
        _compiler(),
        _out(out),
        _sockets(machine.temporary_folder()),
        *_ray_address(),
    ]


def table(findings: list[Finding]) -> Table:
    """The findings as a table; problems are below their row."""
    styles = {"fine": "green", "worse": "yellow", "fails": "red"}
    drawn = Table(box=box.SIMPLE_HEAD, header_style="dim", show_edge=False, pad_edge=False, padding=(0, 1))
    for column in ("", "looked at", "found"):
        drawn.add_column(column, overflow="fold")
    for finding in findings:
        cell = Text(finding.found)
        if finding.advice:
            cell.append(f"\n{finding.advice}", style=styles[finding.state])
        drawn.add_row(Text(finding.state, style=styles[finding.state]), finding.name, cell)
    return drawn


def _python() -> Finding:
    version = sys.version_info[:2]
    if _PYTHONS[0] <= version <= _PYTHONS[1]:
        return Finding("Python", platform.python_version())
    low, high = (".".join(map(str, v)) for v in _PYTHONS)
    return Finding("Python", platform.python_version(), "fails", f"rayddl supports Python {low} to {high}")


def _library(name: str) -> Finding:
    found = installed(name)
    if found is None:
        return Finding(name, "not installed", "fails", "nothing can run without it: uv sync")
    return Finding(name, found)


def try_torch() -> dict[str, Any]:
    """Properties of torch and torchvision, read in a child process; or the reason why they cannot be imported."""
    try:
        ended = subprocess.run(
            [sys.executable, "-c", _TORCH_PROBE], capture_output=True, text=True, timeout=180, check=False
        )
        found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        return {"torch_error": "importing torch took longer than 3 minutes"}
    except (IndexError, ValueError):
        last = (ended.stderr.strip().splitlines() or ["no message"])[-1]
        return {"torch_error": f"the process ended with {ended.returncode}: {last}"}
    return found


def _fit(torch: dict[str, Any]) -> Finding:
    name = "torch with torchvision"
    if "torch_error" in torch:
        return Finding(
            name, torch["torch_error"], "fails", "torch cannot be imported: uv sync installs it anew"
        )
    if torch.get("nms"):
        return Finding(name, f"{torch['torch']} with {torch['torchvision']}, fit each other")
    return Finding(
        name,
        torch.get("torchvision_error", "torchvision's operators give wrong results"),
        "fails",
        f"torch {torch['torch']} and the installed torchvision are not from the same build (a CPU-only torch "
        "beside a CUDA torchvision is the usual case); uv sync installs a pair that fits",
    )


def _byte_code(module: str) -> Finding:
    """Whether the byte code of an installed module is kept, so that not every process compiles its sources again."""
    name = f"byte code of {module}"
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        return Finding(name, "no sources")
    if os.path.exists(importlib.util.cache_from_source(spec.origin)):
        return Finding(name, "kept")
    folder = os.path.dirname(spec.origin)
    if not sys.dont_write_bytecode and os.access(folder, os.W_OK):
        return Finding(name, "will be kept after the first import")
    why = "PYTHONDONTWRITEBYTECODE is set" if sys.dont_write_bytecode else f"{folder} is not writable"
    advice = (
        f"{why}: each process compiles the sources that it imports, and a short run takes about a third longer; "
        f"run once, as who installed them: python -m compileall -q {os.path.dirname(folder)}"
    )
    return Finding(name, "not kept", "worse", advice)


def _cpus() -> Finding:
    count, whole = machine.cpus(), os.cpu_count() or 1
    found = f"{count}" if count == whole else f"{count} of the machine's {whole} (affinity or cgroup)"
    return Finding("CPUs", found)


def _memory(available: int) -> Finding:
    found = f"{available / _GIB:.1f} GiB"
    if available < 1.5 * _GIB:
        return Finding(
            "memory", found, "fails", "Ray and one worker with torch need about 1.5 GiB; allow more"
        )
    if available < 4 * _GIB:
        return Finding("memory", found, "worse", "little for several workers; keep resources.at_once at 1")
    return Finding("memory", found)


def _shared_memory(free: int) -> Finding:
    found = f"{free / _GIB:.2f} GiB free in /dev/shm"
    if free < SMALL_SHM:
        advice = "Ray keeps shared images there and falls back to slower files: docker run --shm-size=2g"
        return Finding("shared memory", found, "worse", advice)
    return Finding("shared memory", found)


def driver_gpus() -> list[str]:
    """The names of the GPUs that NVIDIA's driver lists."""
    try:
        asked = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        ended = subprocess.run(asked, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return (
        [line.strip() for line in ended.stdout.splitlines() if line.strip()] if ended.returncode == 0 else []
    )


def _gpus(torch: dict[str, Any], driver: list[str]) -> Iterator[Finding]:
    seen = torch.get("gpus", [])
    for name, memory in seen:
        yield Finding("GPU", f"{name}, {memory / _GIB:.0f} GiB")
    if not seen and driver:
        built = torch.get("built_for") or "CPUs only"
        advice = (
            f"torch does not see it (built for {built}), so the CPU is used; uv sync installs the CUDA build"
        )
        yield Finding("GPU", f"{len(driver)} x {driver[0]}", "worse", advice)
    elif not seen:
        yield Finding("GPU", "none; the CPU is used")


def _compiler() -> Finding:
    name = "compiler (torch.compile)"
    wanted = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    path = shutil.which(wanted.split()[0])
    if path is None:
        other = shutil.which("clang++") or shutil.which("c++")
        hint = f"export CXX={other}" if other else "install g++"
        return Finding(
            name, f"{wanted} not found", "worse", f"steps run uncompiled, up to twice as long; {hint}"
        )
    try:
        ended = subprocess.run(
            [
                path,
                "-x",
                "c++",
                "-std=c++17",
                "-fopenmp",
                "-fsyntax-only",
                f"-I{sysconfig.get_path('include')}",
                "-",
            ],
            input=_CXX_PROBE,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding(name, f"{path}: {error}", "worse", "steps run uncompiled, up to twice as long")
    if ended.returncode:
        why = next((line for line in ended.stderr.splitlines() if "error" in line), "it does not compile")
        return Finding(
            name,
            f"{path}: {why.strip()}",
            "worse",
            "steps run uncompiled; install the headers of Python and OpenMP",
        )
    return Finding(name, path)


def _out(out: str) -> Finding:
    name = f"--out {out.split('?', 1)[0].rsplit('@', 1)[-1]}"
    try:
        folder = Folder(out)
        local = folder.local
    except (OSError, ValueError) as error:
        return Finding(name, str(error), "fails", "give a folder, or a URI such as s3://bucket/runs")
    if local is None:
        return _writable(name, folder, "on a remote filesystem")
    existing = next(path for path in (local, *local.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    found = f"{free / _GIB:.1f} GiB free"
    if not os.access(existing, os.W_OK) or not existing.is_dir():
        return Finding(name, f"{existing} cannot be written", "fails", "choose another folder with --out")
    if free < _GIB // 4:
        return Finding(
            name, found, "fails", "experts and checkpoints will fill it; free some, or choose another"
        )
    if free < 5 * _GIB:
        return Finding(
            name, found, "worse", "many experts may fill it; 'rayddl plan' shows what a run writes"
        )
    return Finding(name, found)


def _writable(name: str, folder: Folder, found: str) -> Finding:
    probe = f".rayddl-doctor-{uuid.uuid4().hex[:8]}"
    try:
        folder.write(probe, b"")
        folder.delete(probe)
    except OSError as error:
        return Finding(
            name, f"cannot be written: {error}", "fails", "check the credentials and the bucket's name"
        )
    return Finding(name, f"{found}, writable")


def _sockets(temporary: str) -> Finding:
    name, length = "temporary folder", machine.socket_path_bytes(temporary)
    found = f"{temporary} (sockets' paths {length} of {machine.SOCKET_PATH_BYTES} bytes)"
    if length <= machine.SOCKET_PATH_BYTES:
        return Finding(name, found)
    return Finding(name, found, "fails", "too long for Ray's Unix sockets; export TMPDIR=/tmp")


def _ray_address() -> Iterator[Finding]:
    address = os.environ.get("RAY_ADDRESS")
    if address:
        yield Finding(
            "RAY_ADDRESS",
            address,
            "fine",
            "not used by itself: rayddl starts a local Ray; to use that cluster add --address auto",
        )
