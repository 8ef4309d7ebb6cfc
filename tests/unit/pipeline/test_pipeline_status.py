"""The status of a run from its artifacts: while it runs, after it was killed, after it ended."""

from __future__ import annotations

import os
import socket
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from rayddl.cli.app import app
from rayddl.errors import StageError
from rayddl.jobs import client
from rayddl.jobs.status import status_of
from rayddl.pipeline import records
from rayddl.pipeline.browse.listing import listing
from rayddl.pipeline.browse.status import RunStatus, run_status
from rayddl.pipeline.records import BEAT_SECONDS, Heartbeat
from rayddl.stages.context import Context, Result, Silent
from tests.raising import raises


def status(lab: Any, seconds: float = 0.0) -> RunStatus:
    """The status of the run ``three`` at a time so many seconds from now."""
    found = run_status("three", str(lab.out), datetime.now(timezone.utc) + timedelta(seconds=seconds))
    assert found is not None
    return found


def test_a_run_in_the_making_is_seen_from_outside(lab, three) -> None:
    """While a stage runs, the record says how far it is; stages after it wait; those before are done."""
    seen: list[RunStatus] = []
    listed: list[str] = []
    folders: list[tuple[str, str]] = []

    def work(config: Any, context: Context) -> Result:
        context.progress.update(3, 8, "loss 0.5")
        seen.extend((status(lab), status(lab, seconds=600)))
        found = listing(str(lab.out))
        listed.append(found.runs[0].state)
        folders.extend((folder.kind, folder.state) for folder in found.folders)
        return Result({})

    lab.works["second"] = work
    lab.run(three)
    now, later = seen
    assert [stage.state for stage in now.stages] == ["done", "running", "waiting"]
    assert now.stages[1].progress["metric"] == "loss 0.5"
    row = now.stages[1].row(datetime.now(timezone.utc))
    assert (row["state"], row["progress"]) == ("running", "3/8, loss 0.5")
    assert (now.state, later.state) == ("running", "silent")
    assert listed == ["running"]
    assert folders == [("make", "done"), ("use", "running")]
    assert (
        later.stages[1].row(datetime.now(timezone.utc) + timedelta(minutes=10))["state"]
        == "silent for 10 min"
    )
    assert status(lab, seconds=600).state == "done"


def test_a_killed_run_is_not_running(lab, three) -> None:
    """Once its process is gone, a stage that is recorded as running is interrupted; one of another machine may run."""
    kept: dict[str, bytes] = {}

    def work(config: Any, context: Context) -> Result:
        context.out.write("thing.part", b"1")
        kept["record"] = lab.out.joinpath("three.run.json").read_bytes()
        kept["lock"] = next(lab.out.glob("second-*/.lock")).read_bytes()
        return Result({})

    lab.works["second"] = work
    folder = Path(lab.run(three).folders["second"])
    # What a killed process leaves behind: the record as it was, no manifest, and a lock file that nobody holds.
    (folder / "manifest.json").unlink()
    lab.out.joinpath("three.run.json").write_bytes(kept["record"])
    states = []
    for lock in (kept["lock"], kept["lock"].replace(socket.gethostname().encode(), b"elsewhere")):
        (folder / ".lock").write_bytes(lock)
        found = listing(str(lab.out))
        second = next(stage for stage in found.folders if stage.folder == folder.name)
        states.append((status(lab).state, found.runs[0].state, second.kind, second.state))
    assert states == [
        ("interrupted", "interrupted", "use", "partial"),
        ("running", "running", "use", "running"),
    ]


def test_a_failed_run_says_why(lab, three) -> None:
    """The error of the stage that failed is in the status, and nothing counts as running."""

    def work(config: Any, context: Context) -> Result:
        raise StageError("the disk is full", code="for-a-test")

    lab.works["second"] = work
    with pytest.raises(StageError):
        lab.run(three)
    found = status(lab)
    assert [stage.state for stage in found.stages] == ["done", "failed", "waiting"]
    assert found.state == "failed"
    assert found.stages[1].error == "stage 'second': the disk is full"


def test_a_folder_that_was_deleted_is_not_done(lab, three) -> None:
    """The manifests count, not the record."""
    result = lab.run(three)
    assert status(lab).state == "done"
    (lab.out / result.plan.stages[1].folder_name / "manifest.json").unlink()
    assert [stage.state for stage in status(lab).stages] == ["done", "waiting", "done"]
    assert status(lab).state == "partial"


def test_the_verb_needs_no_cluster(lab, three) -> None:
    """`rayddl status RUN` is a table, with --json everything."""
    lab.run(three)
    shown = CliRunner().invoke(app, ["status", "three", "--out", str(lab.out)])
    told = CliRunner().invoke(app, ["status", "three", "--out", str(lab.out), "--json"])
    assert shown.exit_code == 0
    assert all(name in shown.stdout for name in ("first", "second", "page", "done"))
    assert '"state": "done"' in told.stdout


def test_without_a_name_or_a_cluster_it_is_the_newest_run(
    lab: Any, three: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a cluster answers or is named, the jobs; without runs, the refusal of the cluster."""
    for variable in client.VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"
        monkeypatch.setattr(client, "DEFAULT_ADDRESS", nobody)
        with raises("no-cluster-answers"):
            status_of(None, str(lab.out), None)
        lab.run({**three, "name": "older"})
        lab.run(three)
        os.utime(lab.out / "older.run.json", (1, 1))
        found = status_of(None, str(lab.out), None).run
        assert found is not None
        assert found.name == "three"
        with raises("no-cluster-answers"):
            status_of(None, str(lab.out), nobody)
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", nobody)
        with raises("no-cluster-answers"):
            status_of(None, str(lab.out), None)
    monkeypatch.setattr("rayddl.jobs.status.Jobs", lambda address: SimpleNamespace(all=list))
    assert status_of(None, str(lab.out), None).run is None


def test_a_record_that_is_none_is_refused(lab) -> None:
    """A damaged record is refused with the file's name."""
    lab.out.mkdir()
    (lab.out / "three.run.json").write_text('{"format": 1, "stages": {"first": {}}}')
    with raises("document-malformed"):
        status(lab)


def test_beats_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first report of a stage is recorded, and then at most one per interval."""
    now, beats, told = [0.0], [], []

    class Inner(Silent):
        def update(self, done: float, total: float, metric: str = "") -> None:
            told.append(done)

    beating = Heartbeat(Inner(), beats.append, clock=lambda: now[0])
    for step in range(100):
        now[0] = step * BEAT_SECONDS / 10
        beating.update(step, 100)
    assert told == list(range(100))
    assert [beat["done"] for beat in beats] == list(range(0, 100, 10))
    assert beats[-1]["rate"] == pytest.approx(10 / BEAT_SECONDS)


def test_a_time_without_a_zone_is_utc() -> None:
    """As a record from elsewhere may have it; what is no time counts as none."""
    assert records.heard({"heard": "2026-01-01"}) == datetime(2026, 1, 1, tzinfo=timezone.utc)
    assert records.heard({"heard": "2026-01-01T02:00:00+02:00"}) == datetime(2026, 1, 1, tzinfo=timezone.utc)
    assert records.heard({"heard": "soon"}) is records.heard({}) is None
