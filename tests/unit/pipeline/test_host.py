"""The CPUs, memory and folders that a container has."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rayddl.stages.runtime import machine

UNLIMITED_V1 = "9223372036854771712"


def system(root: Path, files: dict[str, str]) -> Path:
    """A root folder with the files of /proc and /sys that matter."""
    for name, text in {"proc/meminfo": "MemTotal:  1000 kB\nMemFree: 1 kB\n", **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture
def eight_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose affinity mask has eight CPUs."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)


@pytest.mark.usefixtures("eight_cpus")
class TestCpus:
    @pytest.mark.parametrize(
        ("files", "expected"),
        [
            ({}, 8),
            ({"sys/fs/cgroup/cpu.max": "max 100000\n"}, 8),
            ({"sys/fs/cgroup/cpu.max": "300000 100000\n"}, 3),
            ({"sys/fs/cgroup/cpu.max": "250000 100000\n"}, 2),
            ({"sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
            ({"sys/fs/cgroup/cpu.max": "6400000 100000\n"}, 8),
            (
                {"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "200000 100000\n"},
                2,
            ),
            (
                {
                    "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "400000\n",
                    "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
                },
                4,
            ),
            (
                {
                    "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                    "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
                },
                8,
            ),
            (
                {
                    "proc/self/cgroup": "4:cpuacct,cpu:/docker/x\n3:memory:/y\n",
                    "sys/fs/cgroup/cpu/docker/x/cpu.cfs_quota_us": "500000\n",
                    "sys/fs/cgroup/cpu/docker/x/cpu.cfs_period_us": "100000\n",
                },
                5,
            ),
            ({"proc/self/cgroup": "nonsense\n", "sys/fs/cgroup/cpu.max": "what 1"}, 8),
        ],
    )
    def test_limits(self, tmp_path: Path, files: dict[str, str], expected: int) -> None:
        """The smallest of affinity and every cgroup limit on the way up counts, in whole CPUs."""
        assert machine.cpus(system(tmp_path, files)) == expected


class TestMemory:
    @pytest.mark.parametrize(
        ("files", "expected"),
        [
            ({}, 1000 * 1024),
            ({"sys/fs/cgroup/memory.max": "max\n"}, 1000 * 1024),
            ({"sys/fs/cgroup/memory.max": "4096\n"}, 4096),
            ({"sys/fs/cgroup/memory/memory.limit_in_bytes": "8192\n"}, 8192),
            ({"sys/fs/cgroup/memory/memory.limit_in_bytes": f"{UNLIMITED_V1}\n"}, 1000 * 1024),
            (
                {
                    "proc/self/cgroup": "0::/a/b\n",
                    "sys/fs/cgroup/a/b/memory.max": "max\n",
                    "sys/fs/cgroup/a/memory.max": "2048\n",
                },
                2048,
            ),
        ],
    )
    def test_limits(self, tmp_path: Path, files: dict[str, str], expected: int) -> None:
        """The machine's memory, or the cgroup's limit if that is less."""
        assert machine.memory_bytes(system(tmp_path, files)) == expected


def test_this_machine() -> None:
    """On a real machine the figures make sense together."""
    assert 1 <= machine.cpus() <= (os.cpu_count() or 1)
    assert machine.memory_bytes() > 1 << 28


def test_shared_memory(tmp_path: Path) -> None:
    """Where there is no shared memory there are no bytes of it."""
    assert machine.shm_bytes(str(tmp_path)) > 0
    assert machine.shm_bytes(str(tmp_path / "none")) == 0


def test_temporary_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's sessions go where its environment variables say, and otherwise below /tmp."""
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.delenv("TMPDIR", raising=False)
    assert machine.temporary_folder() == "/tmp/ray"
    monkeypatch.setenv("TMPDIR", "/scratch/job")
    assert machine.temporary_folder() == "/scratch/job/ray"
    monkeypatch.setenv("RAY_TMPDIR", "/short")
    assert machine.temporary_folder() == "/short/ray"


def test_socket_path() -> None:
    """A socket's path grows with the folder byte by byte, also where a character has two."""
    short = machine.socket_path_bytes("/tmp/ray")

    assert short < machine.SOCKET_PATH_BYTES
    assert machine.socket_path_bytes("/tmp/ray/é") == short + 3


class TestFree:
    def test_what_is_available(self, tmp_path: Path) -> None:
        """Without a limit it is what the machine could give."""
        root = system(tmp_path, {"proc/meminfo": "MemTotal: 1000 kB\nMemAvailable: 600 kB\n"})

        assert machine.free_bytes(root) == 600 * 1024

    def test_what_the_cgroup_has_left(self, tmp_path: Path) -> None:
        """A limit, less what is used, without what is only cached."""
        root = system(
            tmp_path,
            {
                "proc/meminfo": "MemTotal: 1000 kB\nMemAvailable: 600 kB\n",
                "sys/fs/cgroup/memory.max": "400000\n",
                "sys/fs/cgroup/memory.current": "350000\n",
                "sys/fs/cgroup/memory.stat": "anon 100\ninactive_file 50000\n",
            },
        )

        assert machine.free_bytes(root) == 100_000

    @pytest.mark.parametrize(
        ("visible", "expected"),
        [(None, (100, 50)), ("1", (50,)), ("GPU-b,GPU-a", (50, 100)), ("", ()), ("7", ())],
    )
    def test_gpus(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, expected: tuple[int, ...]
    ) -> None:
        """Free bytes of those that this process may see, in its order."""
        program = tmp_path / "nvidia-smi"
        program.write_text("#!/bin/sh\necho '0, GPU-a, 100'\necho '1, GPU-b, 50'\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
        if visible is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

        assert machine.gpu_bytes() == tuple(mib * 2**20 for mib in expected)

    def test_no_gpu(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """A machine without the driver has none."""
        monkeypatch.setenv("PATH", str(tmp_path))

        assert machine.gpu_bytes() == ()
