"""The local Ray: where it listens, whom it lets in, and what becomes of a start that fails."""

from __future__ import annotations

import ast
import importlib
import ipaddress
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rayddl.errors import StageError
from rayddl.stages.runtime import driver, local

pytestmark = pytest.mark.ray

PATIENCE = 240.0
ATTACH = """
import logging, sys, ray
try:
    ray.init(address=sys.argv[1], log_to_driver=False, logging_level=logging.ERROR)
    print("attached", int(ray.cluster_resources()["CPU"]))
except Exception as error:
    print("refused", type(error).__name__)
"""
TWICE = """
import json, os, socket, time
os.environ.pop("RAY_USAGE_STATS_ENABLED", None)
from rayddl.stages.runtime import cluster, driver, local
local.store_bytes = lambda: 100 * 2**20
cluster.configure(num_cpus=1)
seen = []
ports = {}
free_ports = local._free_ports
local._free_ports = lambda names: ports.update(free_ports(names)) or ports
def reached(port):
    with socket.socket() as knocking:
        return knocking.connect_ex(("127.0.0.1", port)) == 0
class Restarted:
    def __init__(self, data):
        pass
    def ready(self):
        pass
for _ in range(2):
    before = dict(os.environ)
    cluster.start()
    import psutil, ray
    mark = local._running.mark
    from ray._common.usage import usage_lib
    work = ray.get(ray.remote(lambda: os.environ["MALLOC_TRIM_THRESHOLD_"]).remote())
    reports = [usage_lib.usage_stats_enabled(), ray.get(ray.remote(usage_lib.usage_stats_enabled).remote())]
    # Ray's C++ library warns of such an actor on standard error.
    actor = ray.remote(num_cpus=0, max_restarts=1)(Restarted).remote(ray.put(bytes(10**6)))
    ray.get(actor.ready.remote())
    while not all(reached(port) for name, port in ports.items() if name != "metrics_export_port"):
        time.sleep(0.1)
    below = psutil.Process().children(recursive=True)
    marked = {process.pid for process in driver.marked(mark)}
    seen.append({
        "processes": [process.name() for process in below],
        "unmarked": [process.name() for process in below if process.pid not in marked],
        "listening": sorted(
            f"{process.name()} {connection.laddr.ip}"
            for process in [psutil.Process(), *below]
            for connection in process.net_connections(kind="inet")
            if connection.status == "LISTEN"
        ),
        "token": os.environ["RAY_AUTH_TOKEN"],
        "mode": os.environ["RAY_AUTH_MODE"],
        "work": work,
        "lower priority": ray.get(ray.remote(lambda: os.nice(0)).remote()) - os.nice(0),
        "reports": reports,
        "log": os.path.exists(local._running.log),
        "folder": oct(os.stat(local._running.private).st_mode)[-3:],
        "in it": ray._private.worker._global_node.get_session_dir_path().startswith(local._running.private + "/"),
    })
    private = local._running.private
    cluster.stop()
    seen[-1]["gone"] = not os.path.exists(private)
    seen[-1]["left"] = [process.name() for process in driver.marked(mark)]
    seen[-1]["changed"] = sorted(
        name for name in {*before, *os.environ}
        if before.get(name) != os.environ.get(name)
        and name.startswith(("RAY_AUTH", "RAY_ENABLE_W", "RAY_USAGE", "RAYDDL", "MALLOC", "SPT"))
    )
print(json.dumps(seen))
"""
TOKENS = """
import os
from rayddl.stages.runtime import local
names = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
undo = local._asks_for_token()
print([os.environ.get(name, "-") for name in names])
undo()
print([os.environ.get(name, "-") for name in names])
"""


def run(code: str, *words: str, **variables: str) -> subprocess.Popen[str]:
    """A Python program without this process's token, with ``variables``."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    kept |= local.LOCAL_ONLY
    return subprocess.Popen(
        [sys.executable, "-c", code, *words],
        env={**kept, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def last_line(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=PATIENCE)

    assert out.strip(), err[-2000:]
    return out.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def two() -> list[dict[str, Any]]:
    """What a program saw of two local Rays after each other, whose processes are all its own, and what it printed."""
    out, err = run(TWICE, RAYDDL_TEST_WARM="0").communicate(timeout=PATIENCE)
    assert out.strip(), err[-2000:]
    return [{**each, "printed": err} for each in json.loads(out.strip().splitlines()[-1])]


def test_every_socket_is_on_loopback(two: list[dict[str, Any]]) -> None:
    """Nothing of a local Ray, its driver included, listens where another machine could reach it."""
    for each in two:
        addresses = [ipaddress.ip_address(socket.rpartition(" ")[2]) for socket in each["listening"]]

        # The driver, the GCS, the raylet, both agents and a worker; the dashboard's agent is at two ports.
        assert len(addresses) >= 8
        assert [s for s, at in zip(each["listening"], addresses, strict=True) if not loopback(at)] == []


def loopback(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def test_ray_writes_nothing_to_the_terminal(two: list[dict[str, Any]]) -> None:
    """Neither its processes nor its C++ library in this one."""
    assert [each["printed"] for each in two] == ["", ""]


def test_every_process_can_be_found_again(two: list[dict[str, Any]]) -> None:
    """Each process of a local Ray carries its mark, also those that rename themselves; nobody else does. The shell that
    reports a sudden end needs none: it ends with the process that started it.
    """
    for each in two:
        assert each["unmarked"] == ["sh"]
        assert any(name.startswith("ray::DashboardAg") for name in each["processes"])
    assert driver.marked("another") == []


def test_its_token_is_asked_for(local_ray: None) -> None:
    """A process with the token attaches; one with another token, or none, does not."""
    ray = importlib.import_module("ray")
    address = ray.get_runtime_context().gcs_address
    soon = {"RAY_py_gcs_connect_timeout_s": "2", "RAY_gcs_rpc_server_reconnect_timeout_s": "2"}
    mine = run(ATTACH, address, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=os.environ["RAY_AUTH_TOKEN"], **soon)
    other = run(ATTACH, address, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="0" * 64, **soon)
    none = run(ATTACH, address, RAY_AUTH_MODE="disabled", **soon)

    assert [last_line(each) for each in (mine, other, none)] == [
        "attached 2",
        "refused ConnectionError",
        "refused ConnectionError",
    ]


def test_two_after_each_other_in_one_process(two: list[dict[str, Any]]) -> None:
    """Each has a token of its own and reports nothing to Ray's makers; after each the environment is as it was, and no
    process is left.
    """
    first, second = two

    assert first["token"] != second["token"]
    assert len(first["token"]) >= 32
    for each in two:
        names = (
            "mode",
            "work",
            "lower priority",
            "reports",
            "log",
            "folder",
            "in it",
            "gone",
            "left",
            "changed",
        )
        assert {name: each[name] for name in names} == {
            "mode": "token",
            "work": "100000000000",
            "lower priority": 0,
            "reports": [False, False],
            "log": True,
            "folder": "700",
            "in it": True,
            "gone": True,
            "left": [],
            "changed": [],
        }


@pytest.mark.parametrize(
    ("given", "during"),
    [
        ({}, ["token", "new", "-"]),
        ({"RAY_AUTH_MODE": "token"}, ["token", "new", "-"]),
        ({"RAY_AUTH_TOKEN": "mine"}, ["token", "mine", "-"]),
        ({"RAY_AUTH_TOKEN_PATH": "/there"}, ["token", "-", "/there"]),
        ({"RAY_AUTH_MODE": "disabled"}, ["disabled", "-", "-"]),
    ],
)
def test_the_users_token_stays(given: dict[str, str], during: list[str]) -> None:
    """A token that the user has set is the one asked for, and one who turned it off has none; undone afterwards."""
    process = run(TOKENS, **given)
    out, err = process.communicate(timeout=PATIENCE)

    assert out, err
    found, after = (ast.literal_eval(line) for line in out.splitlines())
    assert [*found[:1], "new" if len(found[1]) == 64 else found[1], *found[2:]] == during
    assert after == [
        given.get(name, "-") for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    ]


class Starting:
    """In place of Ray's start and end: fails so many times, and remembers what was done."""

    def __init__(self, failures: int) -> None:
        self.failures, self.done = failures, []

    def start(self, folder: str, num_cpus: int, num_gpus: int | None) -> None:
        """Print as Ray does, and fail as Ray does."""
        self.done.append("start")
        os.write(2, b"[2026-01-01 00:00:00 C 1 1] (raylet) node_manager.cc:3576: Check failed\n")
        if self.done.count("start") <= self.failures:
            raise Exception("The current node timed out during startup. This could happen because")  # noqa: TRY002

    def clear(self, mark: str) -> None:
        """Remember it."""
        self.done.append("clear")


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[int], Starting]:
    """Makes :func:`local.start` fail a number of times; no Ray is touched."""

    def make(failures: int) -> Starting:
        fake = Starting(failures)
        monkeypatch.setattr(local, "_running", None)
        monkeypatch.setattr(local, "_init", fake.start)
        monkeypatch.setattr(local, "_clear", fake.clear)
        monkeypatch.setattr(local, "_asks_for_token", lambda: lambda: None)
        monkeypatch.setattr(local, "_forget_token", lambda: None)
        monkeypatch.setattr(local, "_short_folder", lambda: str(tmp_path / "ray"))
        return fake

    return make


def test_a_start_that_fails_is_tried_again(
    failing: Callable[[int], Starting], capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The second attempt, after everything of the first is gone, is all that a user notices."""
    fake = failing(1)
    local.start({}, num_cpus=1)
    during = [path.read_text() for path in tmp_path.glob("rayddl-ray-*.log")]
    local.stop()

    assert fake.done == ["start", "clear", "start", "clear"]
    assert capfd.readouterr() == ("", "")
    assert "Check failed" in during[0]
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_ray_ends_is_reported(tmp_path: Path) -> None:
    """Ray's C++ library may end the process while it connects; a sentence names the logs, and Ctrl-C reports none."""
    ended, stopped = (
        run(
            "from rayddl.stages.runtime import local\n"
            "import contextlib, os, signal\n"
            "local._started_with = lambda mark: contextlib.nullcontext()\n"
            f"local._init = lambda *args: {action}\n"
            "local.start({})",
            TMPDIR=str(tmp_path),
        )
        for action in ("os._exit(1)", "signal.raise_signal(signal.SIGINT)")
    )
    said, written = ended.communicate(timeout=PATIENCE)
    assert (ended.returncode, said, written.count("\n")) == (1, "", 1)
    assert written.startswith("error: Ray ended this process while it was starting.")
    log, logs = written.split(" is in ")[1].strip().rstrip(".").split(" and ")
    assert os.path.exists(log)
    assert logs.startswith(log.split("rayddl-ray")[0])
    assert "Ray ended" not in stopped.communicate(timeout=PATIENCE)[1]
    assert stopped.returncode != 0


def test_a_process_that_is_ended_while_it_runs_is_reported(tmp_path: Path) -> None:
    """Once Ray's own processes are killed, its library ends this one without a word; a stop is not reported."""
    begin = (
        "from rayddl.stages.runtime import driver, local\n"
        "import ray, signal, time\n"
        "local.store_bytes = lambda: 100 * 2**20\n"
        "driver.quiet()\n"
        "local.start({}, num_cpus=1)\n"
    )
    lost = run(
        begin + "for process in driver.processes().Process().children():\n"
        "    if process.name() in ('raylet', 'gcs_server'):\n"
        "        process.kill()\n"
        "time.sleep(600)",
        TMPDIR=str(tmp_path),
        RAY_gcs_rpc_server_reconnect_timeout_s="2",  # Ray's default is a minute
    )
    said, written = lost.communicate(timeout=PATIENCE)
    assert lost.returncode == 1
    assert said == ""
    assert written.startswith("error: this process was ended while it ran: ")
    assert "the same command continues" in written
    assert written.count("\n") == 1

    stopped = run(begin + "local.stop()\nlocal.driver.os._exit(3)", TMPDIR=str(tmp_path))
    assert stopped.communicate(timeout=PATIENCE) == ("", "")
    assert stopped.returncode == 3


def test_agents_get_ports_that_no_outgoing_connection_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection could take such a port between the draw and the start of the agent. Taken ones are left."""
    found = local._free_ports(local.AGENT_PORTS)
    assert len(set(found.values())) == len(local.AGENT_PORTS)
    assert all(port in local.PORTS for port in found.values())
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setattr(local, "PORTS", [taken.getsockname()[1]])
        assert local._free_ports(["one"])["one"] != taken.getsockname()[1]


def test_workers_that_end_at_once_end_the_start(tmp_path: Path) -> None:
    """Ray starts others in their place for ever; the start of a run ends in time with a sentence that says so."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\nif any('default_worker.py' in word for word in sys.orig_argv): os._exit(1)\n"
    )
    process = run(
        "from rayddl.stages.runtime import driver, local\n"
        "from rayddl.errors import StageError\n"
        "local.WORKER_SECONDS, local.ATTEMPTS, local.store_bytes = 2.0, 1, lambda: 100 * 2**20\n"
        "driver.quiet()\n"
        "try:\n"
        "    local.start({}, num_cpus=1)\n"
        "except StageError as error:\n"
        "    print(error.code, 'none of its workers has started within 2 s' in str(error))\n",
        PYTHONPATH=os.pathsep.join([str(tmp_path), *sys.path]),
        RAYDDL_TEST_WARM="0",
    )
    try:
        assert last_line(process) == "ray-not-started True"
    finally:
        process.kill()


def test_two_failed_starts_are_refused_in_a_sentence(
    failing: Callable[[int], Starting], capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The refusal says what happened and what to do; what Ray printed is in the file that it names."""
    fake = failing(2)
    environment = dict(os.environ)
    with pytest.raises(StageError) as caught:
        local.start({"RAYDDL_TEST": "1"}, num_cpus=1)
    (log,) = tmp_path.glob("rayddl-ray-*.log")

    assert str(caught.value) == (
        "Ray did not start on this machine, 2 times (The current node timed out during startup. This could happen "
        f"because). The usual causes are a machine under heavy load and a temporary folder ({tmp_path}/ray) that is "
        "full or slow: run the same command again when the machine is less busy, or set RAY_TMPDIR to another short "
        f"path. What Ray printed is in {log}."
    )
    assert fake.done == ["start", "clear", "start", "clear", "clear"]
    assert log.read_text().count("Check failed") == 2
    assert log.read_text().count("Traceback") == 2
    assert capfd.readouterr() == ("", "")
    assert dict(os.environ) == environment


def test_a_start_without_memory_is_explained_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The refusal says how much memory is free, and nothing of a busy machine or a full folder."""
    monkeypatch.setattr(local.machine, "free_bytes", lambda: 2**30)
    monkeypatch.setattr(local.machine, "memory_bytes", lambda: 8 * 2**30)
    monkeypatch.setattr(local, "store_bytes", lambda: 2 * 2**30)
    said = (
        "After taking into account object store and redis memory usage, the amount of memory on this node available "
        "for tasks and actors (-0.43 GB) is less than -5% of total. You can adjust these settings with ray.init()."
    )
    text = local._refusal(ValueError(said), "/tmp/ray", "ray.log")

    assert text.startswith(
        "Ray did not start on this machine: too little memory is free, 1.0 GiB of 8.0 GiB, and its object store alone "
        "takes 2.0 GiB (After taking"
    )
    assert "End other programs that use memory, or give this machine or container more" in text
    assert "heavy load" not in text
    late = local._refusal(
        ValueError(f"{'a line of the log ' * 30}Cannot allocate memory"), "/tmp/ray", "ray.log"
    )
    assert "too little memory is free" in late


@pytest.mark.parametrize(("alive", "asked"), [(True, 4), (False, 1)])
def test_a_slow_node_is_waited_for(monkeypatch: pytest.MonkeyPatch, alive: bool, asked: int) -> None:
    """While the raylet lives Ray's question whether the node is there is repeated; once it is gone, not."""
    answers = iter([RuntimeError("not yet")] * 3 + [{"node": 1}])
    count = []

    def ask(address: str) -> dict[str, int]:
        count.append(address)
        answer = next(answers)
        if isinstance(answer, RuntimeError):
            raise answer
        return answer

    monkeypatch.setattr(local, "_raylet_runs", lambda: alive)
    if alive:
        assert local._patient(ask)("here") == {"node": 1}
    else:
        with pytest.raises(RuntimeError, match="not yet"):
            local._patient(ask)("here")
    assert count == ["here"] * asked
