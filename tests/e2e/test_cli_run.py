"""``rayddl run`` as a user types it."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import warm

FAKE = Path(__file__).with_name("fake_rayddl.py")
DEFINITION = """\
name: demo
source: {name: digits}
stages:
  first: {kind: make}
  second: {kind: use, make: first}
"""

Rayddl = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def rayddl(tmp_path: Path) -> Rayddl:
    """Runs the command with fake stage kinds, in a fresh folder that has ``pipelines/demo.yaml``."""
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "pipelines" / "demo.yaml").write_text(DEFINITION)

    def command(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return warm.run(
            [sys.executable, str(FAKE), *words],
            cwd=tmp_path,
            env={**os.environ, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return command


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    """The command, as far as the stage that waits."""
    process = subprocess.Popen(
        [sys.executable, str(FAKE), *words],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert process.stderr.readline() == "now\n"
    return process


def test_piped(rayddl: Rayddl, tmp_path: Path) -> None:
    """In a pipe: the plan, a few lines, the table, where things lie; no control codes; exit code 0."""
    ended = rayddl("run", "demo")

    assert (ended.returncode, ended.stderr) == (0, "")
    assert "\x1b" not in ended.stdout
    assert "\r" not in ended.stdout
    (folder,) = (path.name for path in (tmp_path / "runs").glob("second-*"))
    assert ended.stdout.splitlines()[-9:] == [
        "second",
        "data        images   accuracy %",
        "─" * 31,
        "distilled       10   61.2 ± 0.4",
        "random          10   50.1 ± 1.2",
        "",
        f"set     runs/{folder}/set",
        f"report  runs/{folder}/report.html",
        "record  runs/demo.run.json",
    ]


def test_second_run(rayddl: Rayddl) -> None:
    """A second run does no stage again and gives the same table."""
    first, second = rayddl("run", "demo"), rayddl("run", "demo")

    assert "\nfirst: cached\nsecond: cached\n" in second.stdout
    assert second.stdout.splitlines()[-9:] == first.stdout.splitlines()[-9:]


def test_overrides_and_uri(rayddl: Rayddl, tmp_path: Path) -> None:
    """--set changes keys, and --out takes a URI."""
    ended = rayddl(
        "run", "demo", "--set", "first.count=7", "--set", "seed=2", "--out", f"file://{tmp_path}/o"
    )
    manifests = [json.loads(path.read_text()) for path in (tmp_path / "o").glob("first-*/manifest.json")]

    assert ended.returncode == 0
    assert [(m["config"]["count"], m["seed"]) for m in manifests] == [(7, 2)]


@pytest.mark.parametrize("ends", ["well", "printing"])
def test_json(rayddl: Rayddl, ends: str) -> None:
    """With --json every line on standard output is an event, whatever else prints there."""
    ended = rayddl("run", "demo", "--json", "--set", f"first.ends={ends}")
    events = [json.loads(line) for line in ended.stdout.splitlines()]

    assert ended.returncode == 0
    assert [event["event"] for event in events] == [
        "plan",
        "progress",
        "progress",
        "stage_done",
        "stage_done",
        "result",
    ]
    assert events[-1]["tables"]["second"][0]["accuracy %"] == "61.2 ± 0.4"
    assert events[-1]["stages"]["first"]["summary"] == {"count": 3, "went_on": False}
    talk = {"a library talks", "and so does C code"} if ends == "printing" else set()
    assert set(ended.stderr.splitlines()) == talk


def test_json_error(rayddl: Rayddl) -> None:
    """With --json an error is an event with its exit code, too."""
    ended = rayddl("run", "demo", "--json", "--set", "first.cuont=1")
    (event,) = (json.loads(line) for line in ended.stdout.splitlines())

    assert ended.returncode == 2
    assert (event["event"], event["error"], event["exit_code"]) == ("error", "DefinitionError", 2)
    assert "did you mean 'count'?" in event["message"]


def test_quiet(rayddl: Rayddl) -> None:
    """--quiet leaves the result."""
    ended = rayddl("run", "demo", "--quiet")

    assert ended.stdout.splitlines()[:2] == ["", "second"]


def test_wrong_definition(rayddl: Rayddl, tmp_path: Path) -> None:
    """A wrong definition ends with exit code 2, every problem, no traceback, and nothing written."""
    ended = rayddl("run", "demo", "--set", "first.count=many", "--set", "secnod.make=x")

    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr == (
        "error: 2 problems in pipelines/demo.yaml; nothing was started.\n"
        "  --set secnod.make=x: there is no stage 'secnod'; did you mean 'second'? "
        "an override starts with one of: first, second, name, seed, source, description\n"
        "  --set first.count=many: stages.first.count: 'many' is not a whole number; expected an integer\n"
    )
    assert not (tmp_path / "runs").exists()


def test_unknown_definition(rayddl: Rayddl) -> None:
    """An unknown name answers with the known ones."""
    ended = rayddl("run", "dmeo")

    assert ended.returncode == 2
    assert ended.stderr.startswith("error: no definition 'dmeo': looked for dmeo.yaml, pipelines/dmeo.yaml, ")
    assert "; did you mean 'demo.yaml'? known definitions: " in ended.stderr
    # The shipped ones are known in any folder.
    assert " demo.yaml, " in ended.stderr
    assert ", ablation-rded.yaml, " in ended.stderr
    assert re.search(r"\.yaml and \d+ more \(all are in pipelines and ", ended.stderr)


def test_crash(rayddl: Rayddl, tmp_path: Path) -> None:
    """A stage that breaks ends with exit code 1, its name, and where the traceback lies."""
    ended = rayddl("run", "demo", "--set", "first.ends=crash")
    (folder,) = (path.name for path in (tmp_path / "runs").glob("first-*"))

    assert ended.returncode == 1
    assert ended.stderr == (
        "error: stage 'first' stopped on an unexpected error: RuntimeError: the stage broke\n"
        f"  its traceback is in runs/{folder}/error.txt; "
        "what was done so far is kept, and the same command continues from there\n"
    )
    assert "RuntimeError: the stage broke" in (tmp_path / "runs" / folder / "error.txt").read_text()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted(rayddl: Rayddl, tmp_path: Path, how: signal.Signals) -> None:
    """Each signal ends with exit code 130, a record that says so, and the command line that resumes the run."""
    process = start(tmp_path, "run", "demo", "--set", "first.ends=waiting", "--out", "my runs")
    process.send_signal(how)
    stdout, stderr = process.communicate()

    assert process.returncode == 130
    assert re.search(r"\nfirst: interrupted after .*, 1/3, half-way\n$", stdout)
    assert stderr == (
        "stopped: interrupted; what was done so far is kept; resume with:\n"
        "  rayddl run demo --set first.ends=waiting --out 'my runs'\n"
    )
    assert states(tmp_path / "my runs") == {"first": "interrupted", "second": "waiting"}
    again = rayddl("run", "demo", "--set", "first.ends=waiting", "--out", "my runs", "--json")
    assert json.loads(again.stdout.splitlines()[-1])["stages"]["first"]["summary"]["went_on"]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted_side_by_side(rayddl: Rayddl, tmp_path: Path, how: signal.Signals) -> None:
    """A signal while two stages run ends both, as it ends one; the same command continues both."""
    stages = ["  first: {kind: side, ends: waiting}", "  other: {kind: side, ends: waiting}"]
    text = "\n".join([*DEFINITION.splitlines()[:3], *stages, "  second: {kind: use, make: first}", ""])
    (tmp_path / "pipelines" / "demo.yaml").write_text(text)
    process = start(tmp_path, "run", "demo")
    assert process.stderr is not None
    assert process.stderr.readline() == "now\n"
    process.send_signal(how)
    stdout, stderr = process.communicate(timeout=60)

    assert process.returncode == 130
    for stage in ("first", "other"):
        assert re.search(rf"\n{stage}: interrupted after .*, 1/3, half-way\n", stdout)
    assert "stopped: interrupted; what was done so far is kept; resume with:\n  rayddl run demo\n" in stderr
    assert "Traceback" not in stderr
    assert states(tmp_path / "runs") == {"first": "interrupted", "other": "interrupted", "second": "waiting"}
    again = rayddl("run", "demo", "--json")
    stages_ = json.loads(again.stdout.splitlines()[-1])["stages"]
    assert [stages_[name]["summary"]["went_on"] for name in ("first", "other")] == [True, True]


def test_one_stage(rayddl: Rayddl, tmp_path: Path) -> None:
    """`--stage` runs a stage and what it needs, and is part of the command that resumes."""
    ended = rayddl("run", "demo", "--stage", "first", "--quiet")
    assert ended.returncode == 0
    assert states(tmp_path / "runs") == {"first": "done", "second": "waiting"}
    wrong = rayddl("run", "demo", "--stage", "thrid")
    assert wrong.returncode == 2
    assert "--stage 'thrid' is not a stage that runs" in wrong.stderr
    waits = ["--set", "first.ends=waiting", "--stage", "second"]
    process = start(tmp_path, "run", "demo", *waits)
    process.send_signal(signal.SIGTERM)
    assert "rayddl run demo --set first.ends=waiting --stage second\n" in process.communicate()[1]


def states(out: Path) -> dict[str, str]:
    """The stages' states in the run's record."""
    record = json.loads((out / "demo.run.json").read_text())
    return {name: entry["state"] for name, entry in record["stages"].items()}


def test_terminal_closed(rayddl: Rayddl, tmp_path: Path) -> None:
    """When the terminal goes away the record is written and the exit code is 130, though nothing can be printed."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, str(FAKE), "run", "demo", "--set", "first.ends=waiting"],
        cwd=tmp_path,
        stdin=follower,
        stdout=follower,
        stderr=follower,
        start_new_session=True,
    )
    os.close(follower)
    shown = b""
    while b"now" not in shown:
        shown += os.read(leader, 4096)
    os.close(leader)
    process.send_signal(signal.SIGHUP)  # the pty is not its controlling terminal: the kernel does not send it

    assert process.wait(60) == 130
    assert states(tmp_path / "runs") == {"first": "interrupted", "second": "waiting"}


def test_kill_9(rayddl: Rayddl, tmp_path: Path) -> None:
    """A killed command is gone on with by the same command, though its lock and its time are left behind."""
    process = start(tmp_path, "run", "demo", "--set", "first.ends=waiting")
    process.kill()
    process.communicate()
    (folder,) = (tmp_path / "runs").glob("first-*")
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "half.txt", "spent.json"]
    ended = rayddl("run", "demo", "--set", "first.ends=waiting")

    assert ended.returncode == 0
    assert sorted(path.name for path in folder.iterdir()) == ["half.txt", "manifest.json"]


def test_two_commands(rayddl: Rayddl, tmp_path: Path) -> None:
    """A second command on the same folder stops at once and names the first one's process."""
    process = start(tmp_path, "run", "demo", "--set", "first.ends=waiting")
    ended = rayddl("run", "demo", "--set", "first.ends=waiting")
    process.kill()
    process.communicate()

    assert ended.returncode == 1
    assert f"is being written by process {process.pid} on " in ended.stderr


def test_out_cannot_be_written(rayddl: Rayddl, tmp_path: Path) -> None:
    """An --out that cannot be written is told before anything starts."""
    (tmp_path / "taken").write_text("x")
    ended = rayddl("run", "demo", "--out", "taken/runs")

    assert ended.returncode == 2
    assert ended.stderr.startswith("error: --out 'taken/runs' cannot be ")
    assert "first: started" not in ended.stdout


def on_terminal(folder: Path, *words: str) -> str:
    """What the command writes to a terminal of 100 columns."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, str(FAKE), *words],
        cwd=folder,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30"},
    )
    os.close(theirs)
    chunks: list[bytes] = []
    while True:
        try:
            chunk = os.read(ours, 65536)
        except OSError:
            break
        if not chunk:
            break
        chunks.append(chunk)
    process.wait()
    os.close(ours)
    return b"".join(chunks).decode()


def test_terminal(rayddl: Rayddl, tmp_path: Path) -> None:
    """On a terminal a finished stage leaves one quiet line, and the cursor comes back."""
    del rayddl
    raw = on_terminal(tmp_path, "run", "demo")
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", raw)

    assert re.search(r"✓ first   [\d.]+ s +ready", text)
    assert re.search(r"✓ second  [\d.]+ s", text)
    assert raw.rfind("\x1b[?25h") > raw.rfind("\x1b[?25l")
    assert "record  runs/demo.run.json" in text


@pytest.mark.parametrize("variables", [{"TERM": "dumb"}, {"PYTHONIOENCODING": "ascii"}])
def test_poor_surroundings(rayddl: Rayddl, variables: dict[str, Any]) -> None:
    """Where little can be shown, the run goes through all the same."""
    ended = rayddl("run", "demo", **variables)

    assert ended.returncode == 0
    assert "record" in ended.stdout
