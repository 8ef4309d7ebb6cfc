"""Nodes started one by one with `ray start`, each with what sets it apart: an interpreter, a hidden folder, a lie."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests import warm

PATIENCE = 240.0
RAY = """
import sys
from ray._private.node import Node
from ray.scripts.scripts import main

# Four processes of a head that no test asks for anything: each imports Ray for seconds.
for needless in ("start_monitor", "start_log_monitor", "start_api_server", "start_ray_client_server"):
    setattr(Node, needless, lambda node, *args, **more: None)
sys.exit(main())
"""
RAYDDL = "import sys; sys.path.remove(''); from rayddl.cli import main; main()"
"""The command as a console script runs it: the folder it is typed in is no place to import from."""
PORTS = (
    "metrics-export-port",
    "runtime-env-agent-port",
    "dashboard-agent-grpc-port",
    "dashboard-agent-listen-port",
)
HIDE = 'mount -t tmpfs none "$0" && exec "$@"'
CHECKOUT = Path(__file__).parents[3]
MOMENT = 0.1


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("", 0))
        return [int(one.getsockname()[1]) for one in sockets]


@dataclass
class Cluster:
    """A head without CPUs, and nodes on the same machine."""

    folder: Path
    token: str = field(default_factory=lambda: secrets.token_hex(32))
    address: str = ""
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        """Of nodes, which find rayddl only where it is installed."""
        kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "RAY_ADDRESS")}
        return {
            **kept,
            "PYTHONPATH": warm.python_path(),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        }

    def head(self) -> None:
        """Start the head."""
        (port,) = free_ports(1)
        words = ["--head", "--num-cpus=0", f"--port={port}", "--include-dashboard=false"]
        self._start([*words, f"--temp-dir={self.folder / 't'}"], sys.executable)
        self.address = f"127.0.0.1:{port}"

    def node(
        self, *words: str, python: str = sys.executable, hidden: Path | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a node of one CPU, run by ``python``, which does not see what is in the folder ``hidden``."""
        return self._start([f"--address={self.address}", "--num-cpus=1", *words], python, hidden)

    def _start(
        self, words: list[str], python: str, hidden: Path | None = None, times: int = 6
    ) -> subprocess.Popen[bytes]:
        given = [f"--{name}={port}" for name, port in zip(PORTS, free_ports(len(PORTS)), strict=True)]
        command = [python, "-c", RAY, "start", "--block", "--object-store-memory=90000000"]
        command += ["--disable-usage-stats", *given, *words]
        if hidden is not None:
            command = ["unshare", "-m", "sh", "-c", HIDE, str(hidden), *command]
        log = self.folder / f"node{len(self.started)}.txt"
        with log.open("w") as printed:
            process = warm.Popen(
                command, env=self.environment, cwd=self.folder, stdout=printed, stderr=printed,
                start_new_session=True,
            )  # fmt: skip
        self.started.append(process)
        deadline = time.monotonic() + PATIENCE
        while "Ray runtime started" not in log.read_text():
            if process.poll() is not None and times > 1:
                # A port taken in between, or a machine too busy for Ray's patience.
                return self._start(words, python, hidden, times - 1)
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(MOMENT)
        return process

    def rayddl(self, *words: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
        """A command attached to the cluster."""
        path = warm.python_path(str(CHECKOUT), *os.environ.get("PYTHONPATH", "").split(os.pathsep))
        return warm.run(
            [sys.executable, "-c", RAYDDL, *words, "--address", self.address],
            cwd=cwd, env={**self.environment, "PYTHONPATH": path, **variables},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=PATIENCE,
        )  # fmt: skip

    def stop(self) -> None:
        """Stop all nodes, the head last."""
        for process in reversed(self.started):
            self.kill(process)

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """End a node at once, with all that it started."""
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(60)


@pytest.fixture(scope="module")
def make_cluster() -> Iterator[Callable[[], Cluster]]:
    """Starts clusters, and stops them after the module's tests."""
    with ExitStack() as made:

        def make() -> Cluster:
            # Ray's sockets lie below, and their paths must be short.
            folder = Path("/tmp") / f"ra{secrets.token_hex(3)}"
            folder.mkdir()
            made.callback(shutil.rmtree, folder, ignore_errors=True)
            cluster = Cluster(folder)
            made.callback(cluster.stop)
            cluster.head()
            return cluster

        yield make


@pytest.fixture
def bare_python(tmp_path: Path) -> str:
    """A Python with every installed package but rayddl."""
    folder = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    ours = subprocess.run(
        [sys.executable, "-c", "import ray; print(ray.__path__[0])"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    for entry in Path(ours).parent.iterdir():
        if "rayddl" not in entry.name:
            (site / entry.name).symlink_to(entry)
    return str(folder / "bin" / "python")


@pytest.fixture(scope="module")
def unshared() -> None:
    """Skips where a process may not have mounts of its own."""
    tried = (
        subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False)
        if shutil.which("unshare")
        else None
    )
    if tried is None or tried.returncode:
        pytest.skip("unshare -m is not permitted here, so no node can be kept from seeing a folder")
