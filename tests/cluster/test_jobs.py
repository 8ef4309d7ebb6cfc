"""`rayddl submit` against a head that was started as docs/cluster.md says, with a token."""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from rayddl.stages.runtime.metrics import DESCRIPTIONS
from tests import warm

pytestmark = pytest.mark.ray

PATIENCE = 240.0
DEFINITION = """
extends: base.yaml
stages: {experts: {count: 3}}
"""
BASE = """
name: job
source: {name: digits}
stages:
  experts:
    {kind: experts, net: {name: convnet, depth: 1, width: 8}, count: 1, epochs: 40, batch: 64, lr: 0.05,
     augment: flip_color, compile: false}
"""


@dataclass
class Head:
    """A Ray head on loopback, and commands against it."""

    folder: Path
    ports: tuple[int, ...]
    environment: dict[str, str]

    @property
    def address(self) -> str:
        """The dashboard's."""
        return f"http://127.0.0.1:{self.ports[1]}"

    def start(self) -> subprocess.Popen[bytes]:
        """Start it; it ends with its process."""
        names = (
            "port",
            "dashboard-port",
            "metrics-export-port",
            "runtime-env-agent-port",
            "dashboard-agent-grpc-port",
            "dashboard-agent-listen-port",
        )
        given = [f"--{name}={port}" for name, port in zip(names, self.ports, strict=True)]
        ray = "import sys; from ray.scripts.scripts import main; sys.exit(main())"
        command = [sys.executable, "-c", ray, "start", "--head", "--block", "--num-cpus=1", *given]
        more = ["--dashboard-host=127.0.0.1", "--object-store-memory=90000000", "--disable-usage-stats"]
        with (self.folder / "head.txt").open("w") as log:
            return warm.Popen(
                [*command, *more, "--node-ip-address=127.0.0.1", f"--temp-dir={self.folder}"],
                env=self.environment, stdout=log, stderr=log,
            )  # fmt: skip

    def metrics(self) -> set[str]:
        """Names of the metrics that Ray exports of the run ``job``'s experts."""
        url = f"http://127.0.0.1:{self.ports[2]}/metrics"
        with urllib.request.urlopen(url, timeout=10) as answer:
            text = answer.read().decode()
        return {
            name
            for name, tags in re.findall(r"^ray_(rayddl_\w+)\{([^}]*)\}", text, re.MULTILINE)
            if {'run="job"', 'stage="experts"'} <= set(tags.split(","))
        }

    def rayddl(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A command against it."""
        return warm.run(
            [sys.executable, "-m", "rayddl", *words, "--address", self.address],
            cwd=self.folder, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip


def until(condition: Callable[[], bool], told: Callable[[], str]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, told()
        time.sleep(0.1)


@pytest.fixture
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """A head with one CPU and a token of its own."""
    # Ray's sockets lie below, and their paths must be short.
    folder = Path("/tmp") / f"rj{secrets.token_hex(3)}"
    folder.mkdir()
    held = [socket.socket() for _ in range(6)]
    for one in held:
        one.bind(("127.0.0.1", 0))
    ports = tuple(one.getsockname()[1] for one in held)
    for one in held:
        one.close()
    (folder / "token").write_text(secrets.token_hex(32))
    # The shipped package is what counts: nothing else of rayddl is to be found by the job.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    ours = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token"), "PATH": path}
    # Jobs and metrics are served by the real agent.
    ours |= {"RAYDDL_TEST_AGENT": "1", "RAY_enable_metrics_collection": "1"}
    made = Head(folder, ports, {**os.environ, **ours, "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"})
    process = made.start()
    until(lambda: made.rayddl("status").returncode == 0, lambda: (folder / "head.txt").read_text()[-2000:])
    yield made
    process.send_signal(signal.SIGTERM)
    process.wait(60)
    subprocess.run(["rm", "-rf", str(folder)], check=False)


def test_a_job_outlives_who_submitted_it(head: Head) -> None:
    """Submitted, the client killed: the run goes on, can be looked at from outside, and ends well."""
    (head.folder / "base.yaml").write_text(BASE)
    (head.folder / "job.yaml").write_text(DEFINITION)
    out = head.folder / "out"
    words = ["submit", "job.yaml", "--out", str(out), "--address", head.address, "--set", "experts.epochs=30"]
    with (head.folder / "client.txt").open("w") as log:
        client = warm.Popen(
            [sys.executable, "-m", "rayddl", *words],
            cwd=head.folder, env=head.environment, stdout=log, stderr=log,
        )  # fmt: skip
    read = (head.folder / "client.txt").read_text
    until(lambda: "experts: started" in read(), read)
    client.kill()
    (job,) = re.findall(r"job (job-\w{8}), results under", read())
    until(lambda: head.metrics() == set(DESCRIPTIONS), lambda: str(head.metrics()))
    running = json.loads(head.rayddl("status", job, "--json").stdout)
    watched = head.rayddl("logs", job, "--follow")
    ended = json.loads(head.rayddl("status", job, "--json").stdout)
    alone = head.rayddl("status", "job", "--out", str(out))

    assert running["jobs"][0]["state"] in ("RUNNING", "SUCCEEDED")
    assert watched.returncode == 0, watched.stderr
    assert "90/90" in watched.stdout
    assert (ended["jobs"][0]["state"], ended["run"]["state"]) == ("SUCCEEDED", "done")
    assert "done" in alone.stdout
    assert len(list(out.glob("experts-*/expert-*.safetensors"))) == 3
    record = json.loads((out / "job.run.json").read_text())
    assert record["definition"]["stages"]["experts"]["count"] == 3
    assert head.rayddl("stop", job).stdout == f"{job} had ended already\n"
