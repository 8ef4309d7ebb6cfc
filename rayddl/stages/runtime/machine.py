"""The resources available in this machine or container. Imports neither torch nor Ray.

Ray and torch read the whole machine's resources, which is wrong in containers: a cgroup or an affinity mask may
allow far less.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from rayddl import affinity

_SYSTEM = Path("/")
# cgroup v1 writes "no limit" as the largest page-aligned 63-bit number.
_UNLIMITED = 1 << 60
_MEMORY_FILES = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))
SHARED_MEMORY = "/dev/shm"  # noqa: S108 - only its free space is read
_TEMPORARY = "/tmp"  # noqa: S108 - Ray's default, which is only reported here
SOCKET_PATH_BYTES = 103 if sys.platform == "darwin" else 107
"""The longest path of a Unix socket, in bytes."""


def cpus(root: Path = _SYSTEM) -> int:
    """Whole CPUs that this process may use: its affinity and the cgroup quota, at least 1.

    ``root`` is the folder that contains ``/proc`` and ``/sys``.
    """
    affine = len(affinity.cores() or ()) or os.cpu_count() or 1
    quotas = [quota for quota in _cpu_quotas(root) if quota > 0]
    return max(1, min([affine, *(int(quota) for quota in quotas)]))


def memory_bytes(root: Path = _SYSTEM) -> int:
    """Bytes of memory that this process may use: the machine's memory, or the cgroup's limit if that is less."""
    whole = _meminfo(root) or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([whole, *(limit for limit, _ in _memory_limits(root))])


def free_bytes(root: Path = _SYSTEM) -> int:
    """Bytes of memory that this process can still allocate: the machine's available memory, or the remainder of
    its cgroup's limit if that is less.
    """
    free = _meminfo(root, "MemAvailable") or memory_bytes(root)
    return max(0, min([free, *(left for _, left in _memory_limits(root))]))


def gpu_bytes() -> tuple[int, ...]:
    """Free bytes of each GPU that this process may use, from ``nvidia-smi``; empty without GPUs."""
    return tuple(int(value) * 2**20 for value in _gpus("memory.free") if value.isdigit())


def gpu_names() -> tuple[str, ...]:
    """The name of each GPU that this process may use, such as ``NVIDIA H100 80GB HBM3``."""
    return _gpus("name")


def busy_cpus(seconds: float = 0.1, root: Path = _SYSTEM) -> float:
    """CPUs of the machine that all processes together use, measured over ``seconds`` in which this one sleeps.

    0 where that is unknown, and in a container with fewer CPUs than its machine: the others may be used by anybody.
    """
    if cpus(root) != os.cpu_count():
        return 0.0
    before, began = _busy_seconds(root), time.monotonic()
    time.sleep(seconds)
    return max(0.0, _busy_seconds(root) - before) / (time.monotonic() - began)


def cpu_text(root: Path = _SYSTEM) -> str:
    """The kernel's description of the processors; empty where there is none."""
    return _text(root / "proc/cpuinfo")


def cpu_flags(text: str) -> set[str]:
    """The instruction sets and features named in ``text``, the kernel's description of the processors."""
    listed = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return set() if listed is None else set(re.findall(r"[\w.]+", listed[1]))


def _gpus(field: str) -> tuple[str, ...]:
    """What ``nvidia-smi`` says of each GPU that this process may use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    program = shutil.which("nvidia-smi")
    if program is None or visible == "":
        return ()
    query = [program, f"--query-gpu=index,uuid,{field}", "--format=csv,noheader,nounits"]
    try:
        output = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    rows = [[cell.strip() for cell in line.split(",")] for line in output.splitlines()]
    found = {name: row[2] for row in rows if len(row) == 3 for name in row[:2]}
    indices = [row[0] for row in rows if row[0] in found]
    names = indices if visible is None else [name.strip() for name in visible.split(",")]
    return tuple(found[name] for name in names if name in found)


def shm_bytes(path: str = SHARED_MEMORY) -> int:
    """Free bytes of shared memory, which holds Ray's object store; 0 if there is none."""
    try:
        stats = os.statvfs(path)
    except OSError:
        return 0
    return stats.f_bavail * stats.f_frsize


def temporary_folder() -> str:
    """Ray's default folder for its sessions."""
    for variable in ("RAY_TMPDIR", "TMPDIR"):
        if os.environ.get(variable):
            return os.path.join(os.environ[variable], "ray")
    return os.path.join(_TEMPORARY, "ray")


def socket_path_bytes(temporary: str) -> int:
    """The length in bytes of the longest Unix socket path that Ray creates for sessions in ``temporary``, of which
    each is in a private folder of its own next to it.
    """
    session = "-12345678/r/session_2000-01-01_00-00-00_000000_4194304/sockets/plasma_store.1"
    return len(os.fsencode(os.path.abspath(temporary) + session))


def _cpu_quotas(root: Path) -> Iterator[float]:
    for folder in _cgroup_folders(root, "cpu"):
        quota, _, period = _text(folder / "cpu.max").partition(" ")
        if quota.isdigit() and period.isdigit():
            yield int(quota) / int(period)
        quota, period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit():
            yield int(quota) / int(period)


def _memory_limits(root: Path) -> Iterator[tuple[int, int]]:
    """Pairs for each cgroup of the process: its limit, and its remainder, in bytes."""
    for folder in _cgroup_folders(root, "memory"):
        for limit_name, used_name in _MEMORY_FILES:
            limit, used = _text(folder / limit_name), _text(folder / used_name)
            if limit.isdigit() and 0 < int(limit) < _UNLIMITED:
                # Cached files count as used, but the kernel frees them on demand.
                taken = int(used) - _cached(folder) if used.isdigit() else 0
                yield int(limit), int(limit) - taken


def _cached(folder: Path) -> int:
    for line in _text(folder / "memory.stat").splitlines():
        name, _, value = line.partition(" ")
        if name in ("inactive_file", "total_inactive_file") and value.isdigit():
            return int(value)
    return 0


def _cgroup_folders(root: Path, controller: str) -> Iterator[Path]:
    """The folders of the process's cgroup and its ancestors, versions 1 and 2: each may have a limit."""
    mounts = {"": root / "sys/fs/cgroup", controller: root / "sys/fs/cgroup" / controller}
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        matching = "" if not controllers else controller if controller in controllers.split(",") else None
        if matching is None:
            continue
        parts = Path(path.lstrip("/")).parts
        for depth in range(len(parts), 0, -1):
            yield mounts[matching].joinpath(*parts[:depth])
    # In a container the path above is often the host's and not visible; the mount is the container's cgroup.
    yield from mounts.values()


def _busy_seconds(root: Path) -> float:
    """The seconds that all CPUs together have worked since the machine's start."""
    name, *ticks = [*_text(root / "proc/stat").partition("\n")[0].split(), ""]
    if name != "cpu":
        return 0.0
    # User, nice and system; behind idle and waiting, interrupts of both kinds.
    worked = sum(int(count) for count in (*ticks[:3], *ticks[5:7]) if count.isdigit())
    return worked / os.sysconf("SC_CLK_TCK")


def _meminfo(root: Path, wanted: str = "MemTotal") -> int:
    for line in _text(root / "proc/meminfo").splitlines():
        name, _, rest = line.partition(":")
        if name == wanted:
            return int(rest.split()[0]) * 1024
    return 0


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""
