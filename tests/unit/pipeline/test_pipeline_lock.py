"""Two commands on one folder."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rayddl.errors import StageError
from rayddl.pipeline import artifacts
from rayddl.storage import Folder
from tests.raising import raises

HOLDER = """
import sys
from rayddl.pipeline import artifacts
from rayddl.storage import Folder
with artifacts.locked(Folder(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def other_process(folder: Path) -> subprocess.Popen[str]:
    """A process that holds the folder until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_second_holder_is_refused(tmp_path: Path) -> None:
    """While one process writes a folder, another is refused with the first one's id and host."""
    with other_process(tmp_path) as process:
        with pytest.raises(StageError) as error, artifacts.locked(Folder(str(tmp_path))):
            pass
        process.communicate()

    assert str(error.value) == (
        f"{tmp_path} is being written by process {process.pid} on {socket.gethostname()}; "
        "wait until it is done, or stop it, and run the same command again"
    )


def test_dead_holder(tmp_path: Path) -> None:
    """The lock file of a killed process blocks no other process."""
    with other_process(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == process.pid

        with artifacts.locked(Folder(str(tmp_path))):
            assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()


def test_released(tmp_path: Path) -> None:
    """The lock is gone after the block, also after an error in it, and can be taken again."""

    def fail() -> None:
        with artifacts.locked(Folder(str(tmp_path))):
            assert (tmp_path / ".lock").exists()
            raise KeyError

    for _ in range(2):
        with pytest.raises(KeyError):
            fail()
        assert not (tmp_path / ".lock").exists()


def test_other_folders(tmp_path: Path) -> None:
    """Locks of different folders are independent."""
    with artifacts.locked(Folder(str(tmp_path / "a"))), artifacts.locked(Folder(f"file://{tmp_path}/b")):
        assert (tmp_path / "a" / ".lock").exists()
        assert (tmp_path / "b" / ".lock").exists()


def test_remote(tmp_path: Path) -> None:
    """A folder on a remote filesystem is not guarded, and nothing is written there."""

    class Remote(Folder):
        local = None

    with artifacts.locked(Remote(str(tmp_path / "x"))):
        assert not (tmp_path / "x").exists()


def test_run(lab: Any, three: dict[str, Any]) -> None:
    """A run whose stage is locked by another command stops with its process id; run later, it continues."""
    folder = lab.plan(three).stages[1].folder
    with other_process(folder.local) as process:
        with raises("folder-locked"):
            lab.run(three)
        process.communicate()
    lab.run(three)

    assert lab.calls == ["first", "second", "page"]
