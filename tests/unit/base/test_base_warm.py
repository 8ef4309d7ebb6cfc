"""What test programs are forked from."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import warm

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or os.environ.get(warm.SWITCH) == "0", reason="programs are not forked here"
)
SHOWN = """
import json, os, sys
loaded = ["torch" in sys.modules, "rayddl.cli" in sys.modules]
from ray._raylet import Config, ObjectRef
with open("/proc/self/environ") as file:
    seen = dict(line.split("=", 1) for line in file.read().split("\\0") if line)
print(json.dumps({
    "loaded": loaded, "drawn": ObjectRef.from_random().hex(), "words": sys.argv[1:], "seen": seen["SEEN"],
    "own": os.environ["SEEN"], "folder": os.getcwd(), "first": sys.path[0], "limit": Config.py_gcs_connect_timeout_s(),
    "more": sorted(os.environ.keys() - seen.keys()), "left": os.environ.get("RAYDDL_TEST_PADDING"),
}))
sys.exit("the last word")
"""


def shown(folder: Path, **variables: str) -> tuple[dict[str, object], subprocess.CompletedProcess[str]]:
    """What a forked program shows of itself, and how it ended."""
    ended = warm.run(
        [sys.executable, "-c", SHOWN, "one", "two words"],
        cwd=folder, env={**os.environ, "SEEN": str(folder), **variables},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=200,
    )  # fmt: skip
    return json.loads(ended.stdout), ended


def test_a_forked_program_is_what_a_new_one_would_be(tmp_path: Path) -> None:
    """Its environment, which other processes see, words, folder, path and exit code; what Ray reads is read again."""
    found, ended = shown(tmp_path, RAY_py_gcs_connect_timeout_s="77")

    assert (ended.returncode, ended.stderr) == (1, "the last word\n")
    assert found.pop("drawn")
    assert found == {
        "loaded": [True, True], "words": ["one", "two words"], "seen": str(tmp_path), "own": str(tmp_path),
        "folder": str(tmp_path), "first": "", "limit": 77, "more": [], "left": None,
    }  # fmt: skip


def test_forked_programs_draw_different_ids(tmp_path: Path) -> None:
    """Some of Ray's modules draw an id when they are imported, which seeds what all forked processes draw from. One to
    which the package is sent has not imported it yet.
    """
    sent = {"PYTHONPATH": warm.python_path(f"{tmp_path}/py_modules_files/one")}
    found = [shown(tmp_path, **more)[0] for more in ({}, {}, sent, sent)]

    assert len({str(each["drawn"]) for each in found}) == 4
    assert [each["loaded"] for each in found] == [[True, True]] * 2 + [[True, False]] * 2


@pytest.mark.parametrize(
    ("given", "loaded"), [({}, "True"), ({"OMP_NUM_THREADS": "7"}, "False")], ids=["equal", "other threads"]
)
def test_what_differs_in_what_imports_read_is_not_forked(
    given: dict[str, str], loaded: str, tmp_path: Path
) -> None:
    """A variable that torch reads at its import has the program started anew."""
    code = "import sys; print('torch' in sys.modules)"
    ended = warm.run(
        [sys.executable, "-c", code], env={**os.environ, **given}, stdout=subprocess.PIPE, text=True
    )
    assert (ended.stdout, ended.returncode) == (f"{loaded}\n", 0)


def test_one_that_is_killed_while_it_asks_ends_no_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A node that ends kills the processes that were to become its workers. Their files are closed, too."""

    class Killed(socket.socket):
        def recv(self, *_: int) -> bytes:
            raise ConnectionError

    with warm.Popen([sys.executable, "-c", "import time; time.sleep(300)"]) as running:
        name = os.environ[warm.SWITCH] + warm.client.WITH_OURS
        reads, writes = os.pipe()
        for said in (b"\0", (100).to_bytes(4, "big"), (100).to_bytes(4, "big") + b"{}"):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as there:
                there.connect(f"\0{name}")
                socket.send_fds(there, [said], [writes])
        os.close(writes)
        with open(reads, "rb") as pipe:
            assert select.select([pipe], [], [], 60)[0]  # it ends once no process could write
        with monkeypatch.context() as killed:
            killed.setattr(warm.client.socket, "socket", Killed)
            for _ in range(3):
                words = ["-c", "pass"]
                assert warm.client.ask(os.environ[warm.SWITCH], words, dict(os.environ)) is None
        assert shown(tmp_path)[0]["loaded"] == [True, True]
        assert running.poll() is None
        running.kill()


def test_it_can_be_killed_and_ends_with_its_node(tmp_path: Path) -> None:
    """A worker, which has its node's process id, ends as soon as that process does."""
    with subprocess.Popen(["sleep", "300"]) as node:
        line = [sys.executable, "-c", "import time; time.sleep(300)"]
        worker = warm.Popen(line, env={**os.environ, "RAY_RAYLET_PID": str(node.pid)})
        other = warm.Popen(line)
        time.sleep(0.2)
        assert (worker.poll(), other.poll()) == (None, None)
        node.kill()
        assert worker.wait(60) == -signal.SIGKILL
        assert other.poll() is None
        other.terminate()
        assert other.wait(60) == -signal.SIGTERM
