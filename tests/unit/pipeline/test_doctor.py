"""``rayddl doctor``: the problems of a machine, and what to do about them."""

from __future__ import annotations

import importlib.util
import os
import py_compile
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rayddl.pipeline.tables import as_text
from rayddl.stages import doctor_nodes
from rayddl.stages.runtime import doctor
from rayddl.stages.runtime.doctor import Finding
from rayddl.stages.runtime.nodes import Answer, Node

FINE = {"torch": "2.15.0", "torchvision": "0.29", "built_for": "13.2", "gpus": [], "nms": True}


def examined(name: str, out: str, **torch: Any) -> Finding:
    """The finding about ``name``, with torch found as given."""
    findings = doctor.examine(out, lambda: {**FINE, **torch})
    return next(finding for finding in findings if finding.name.startswith(name))


@pytest.fixture
def out(tmp_path: Path) -> str:
    """A folder to write into."""
    return str(tmp_path / "runs")


class TestByteCode:
    """Whether processes compile torch's sources again and again."""

    @pytest.fixture
    def finding(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], Finding]:
        """What the doctor says of a module in a folder of its own."""
        (tmp_path / "library").mkdir()
        (tmp_path / "library" / "slow_start.py").write_text("value = 1\n")
        monkeypatch.syspath_prepend(str(tmp_path / "library"))
        return lambda: doctor._byte_code("slow_start")

    def test_kept(self, finding: Callable[[], Finding], monkeypatch: pytest.MonkeyPatch) -> None:
        """It is fine before and after the first import, and while nothing is written anew."""
        monkeypatch.setattr(sys, "dont_write_bytecode", False)
        before = finding()
        py_compile.compile(str(importlib.util.find_spec("slow_start").origin))
        monkeypatch.setattr(sys, "dont_write_bytecode", True)

        assert (before.state, before.found) == ("fine", "will be kept after the first import")
        assert (finding().state, finding().found) == ("fine", "kept")

    def test_forbidden(self, finding: Callable[[], Finding], monkeypatch: pytest.MonkeyPatch) -> None:
        """Where it is not written, the doctor says what that costs, and the command that mends it."""
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        found = finding()

        assert (found.state, found.found) == ("worse", "not kept")
        assert found.advice.startswith("PYTHONDONTWRITEBYTECODE is set: each process compiles the sources")

    def test_folder_of_somebody_else(
        self, finding: Callable[[], Finding], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """So it is where an administrator installed the library."""
        monkeypatch.setattr(sys, "dont_write_bytecode", False)
        monkeypatch.setattr(os, "access", lambda path, mode: False)

        assert finding().advice.startswith(f"{tmp_path / 'library'} is not writable: ")


class TestTorch:
    def test_fits(self, out: str) -> None:
        """A pair that works is fine."""
        assert examined("torch with", out).state == "fine"

    def test_misfit(self, out: str) -> None:
        """A torchvision from another build is named, with what to do."""
        text = "RuntimeError: operator torchvision::nms does not exist"
        found = examined("torch with", out, nms=None, torchvision_error=text)

        assert (found.state, found.found) == ("fails", text)
        assert "are not from the same build" in found.advice
        assert "uv sync" in found.advice

    def test_wrong_results(self, out: str) -> None:
        """Operators that give wrong results fail, too."""
        found = examined("torch with", out, nms=False)

        assert (found.state, found.found) == ("fails", "torchvision's operators give wrong results")

    def test_no_torch(self, out: str) -> None:
        """A torch that cannot be imported is reported with its error."""
        found = examined("torch with", out, torch_error="ImportError: libcudart.so.12")

        assert (found.state, found.found) == ("fails", "ImportError: libcudart.so.12")

    def test_a_process_that_dies(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A library that ends its process does not end the doctor's."""
        dead = subprocess.CompletedProcess([], -11, stdout="", stderr="warning\nSegmentation fault\n")
        monkeypatch.setattr(subprocess, "run", lambda *args, **options: dead)

        assert doctor.try_torch() == {"torch_error": "the process ended with -11: Segmentation fault"}


class TestGpus:
    def test_seen(self) -> None:
        """Each GPU is listed with its memory."""
        found = list(doctor._gpus({"gpus": [["H200", 141 << 30]]}, ["H200"]))

        assert [(f.state, f.found) for f in found] == [("fine", "H200, 141 GiB")]

    def test_cpu_build(self) -> None:
        """A GPU that torch's build cannot use is pointed out."""
        (found,) = doctor._gpus({"gpus": [], "built_for": None}, ["H200", "H200"])

        assert (found.state, found.found) == ("worse", "2 x H200")
        assert "built for CPUs only" in found.advice

    def test_none(self) -> None:
        """No GPU is no fault."""
        (found,) = doctor._gpus({}, [])

        assert (found.state, found.found) == ("fine", "none; the CPU is used")


class TestMachine:
    @pytest.mark.parametrize(("gib", "state"), [(1.0, "fails"), (3.0, "worse"), (8.0, "fine")])
    def test_memory(self, gib: float, state: str) -> None:
        """Too little memory for Ray and a worker fails; little is pointed out."""
        assert doctor._memory(int(gib * 2**30)).state == state

    def test_shared_memory(self) -> None:
        """A container's 64 MB are pointed out with the option that raises them."""
        found = doctor._shared_memory(64 << 20)

        assert found.state == "worse"
        assert "--shm-size" in found.advice
        assert doctor._shared_memory(1 << 30).state == "fine"

    def test_sockets(self, out: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """A temporary folder whose path is too long for sockets fails."""
        monkeypatch.setenv("RAY_TMPDIR", "/scratch/" + "x" * 60)
        found = examined("temporary folder", out)

        assert found.state == "fails"
        assert found.advice == "too long for Ray's Unix sockets; export TMPDIR=/tmp"

    def test_ray_address(self, out: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """A RAY_ADDRESS is mentioned, because it is not used by itself."""
        monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")

        assert "add --address auto" in examined("RAY_ADDRESS", out).advice


class TestCompiler:
    def test_none(self, out: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without a compiler steps run uncompiled."""
        monkeypatch.setenv("PATH", "")
        monkeypatch.delenv("CXX", raising=False)
        found = examined("compiler", out)

        assert (found.state, found.found) == ("worse", "g++ not found")
        assert found.advice == "steps run uncompiled, up to twice as long; install g++"

    def test_another(self, out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A compiler that torch.compile would not take by itself is named with the variable to set."""
        other = tmp_path / "clang++"
        other.write_text("#!/bin/sh\n")
        other.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.delenv("CXX", raising=False)

        assert examined("compiler", out).advice.endswith(f"export CXX={other}")

    def test_broken(self, out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A compiler that lacks headers is reported with the first error."""
        broken = tmp_path / "g++"
        broken.write_text("#!/bin/sh\necho 'fatal error: Python.h: No such file' >&2\nexit 1\n")
        broken.chmod(0o755)
        monkeypatch.setenv("CXX", str(broken))
        found = examined("compiler", out)

        assert (found.state, found.found) == ("worse", f"{broken}: fatal error: Python.h: No such file")


class TestOut:
    def test_free(self, out: str) -> None:
        """A folder that does not exist yet is judged by where it will lie."""
        assert examined("--out", out).found.endswith("GiB free")

    def test_full(self, out: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """A full disk fails."""
        monkeypatch.setattr("shutil.disk_usage", lambda path: _Usage(1 << 20))

        assert examined("--out", out).state == "fails"

    def test_a_file_in_the_way(self, tmp_path: Path) -> None:
        """A path through a file cannot be written."""
        (tmp_path / "taken").write_text("x")
        found = examined("--out", str(tmp_path / "taken" / "runs"))

        assert (found.state, found.found) == ("fails", f"{tmp_path}/taken cannot be written")

    def test_unknown_scheme(self) -> None:
        """A URI that no filesystem opens fails."""
        assert examined("--out", "ftp://x").state == "fails"


class _Usage:
    """What shutil says about a disk."""

    def __init__(self, free: int) -> None:
        self.free = free


def test_table() -> None:
    """In the table, advice is shown under each finding."""
    text = as_text(doctor.table([Finding("memory", "1.0 GiB", "fails", "allow more"), Finding("CPUs", "2")]))

    assert text.splitlines()[2:] == [
        "fails   memory      1.0 GiB",
        "                    allow more",
        "fine    CPUs        2",
    ]


HERE = {"python": "3.11.7", "ray": "2.60.0", "torch": "2.15.0", "torchvision": "0.29", "rayddl": "0.1.0"}
NODE = Node(
    "1", "10.0.0.7", "worker", {"CPU": 4.0, "GPU": 1.0, "memory": 8 * 2.0**30, "object_store_memory": 2.0**30}
)


class TestNode:
    def row(self, node: Node = NODE, probe: Any = None, **told: Any) -> Finding:
        """The row of a node that answers as given, else what is fine."""
        gpus = [["H200", 141 << 30]]
        fine = {
            **HERE,
            "cpus": 4,
            "memory": 8 << 30,
            "shm": 1 << 30,
            "authentication": "token",
            "driver_gpus": [],
            "probe": {**FINE, "gpus": gpus, **(probe or {})},
        }
        return doctor_nodes.row(node, Answer({**fine, **told}), HERE)

    def test_fine(self) -> None:
        """For a node with the same versions as here, only its resources are shown."""
        found = self.row()

        assert (found.name, found.state, found.advice) == ("node 10.0.0.7 (worker)", "fine", "")
        assert found.found == "4 CPU, 1 GPU, 8.0 GiB, object store 1.0 GiB, 1.0 GiB free in /dev/shm"

    def test_too_few_gpus(self) -> None:
        """GPUs that torch does not see fail; with a driver that lists them torch's build is the reason."""
        found = self.row(probe={"gpus": [], "built_for": None}, driver_gpus=["H200"])

        assert found.state == "fails"
        assert "Ray was started with 1 GPUs, torch sees 0" in found.advice
        assert "the driver lists 1, torch is built for CPUs only" in found.advice

    def test_unused_gpus(self) -> None:
        """GPUs that are not registered with Ray are not used."""
        found = self.row(probe={"gpus": [["H200", 1], ["H200", 1]]})

        assert found.state == "worse"
        assert "--num-gpus=2" in found.advice

    def test_versions(self) -> None:
        """Only versions that differ from here are shown; a node needs no rayddl of its own."""
        found = self.row(torch="2.14.0", rayddl=None)

        assert found.found.endswith("; torch 2.14.0 (here 2.15.0)")
        assert found.state == "worse"

    def test_misfit(self) -> None:
        """A torch and a torchvision that do not fit fail there as they do here."""
        found = self.row(probe={"nms": None, "torchvision_error": "RuntimeError: no nms"})

        assert found.state == "fails"
        assert "RuntimeError: no nms" in found.advice

    def test_too_many_cpus(self) -> None:
        """CPUs that a container does not grant are reported, and a small /dev/shm."""
        found = self.row(cpus=2, shm=64 << 20)

        assert found.state == "worse"
        assert "--num-cpus=2" in found.advice
        assert "--shm-size" in found.advice

    def test_no_answer(self) -> None:
        """A node on which nothing runs is a row with the reason."""
        found = doctor_nodes.row(NODE, Answer(error="ModuleNotFoundError: No module named 'yaml'"), HERE)

        assert found.state == "fails"
        assert "a task cannot run there: ModuleNotFoundError: No module named 'yaml'" in found.advice

    def test_no_token(self) -> None:
        """A cluster that asks for no token is open to everybody who reaches it."""
        answers = {NODE: Answer({"authentication": ""})}
        (found,) = doctor_nodes._authentication(answers)

        assert found.state == "worse"
        assert "RAY_AUTH_MODE=token" in found.advice
