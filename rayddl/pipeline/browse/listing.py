"""``rayddl list``: the runs and stage folders under ``--out``, read from the artifacts only."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from rayddl.credentials import scrub
from rayddl.errors import RayddlError, UserError
from rayddl.pipeline import artifacts, records, stopwatch
from rayddl.pipeline.display import pace
from rayddl.pipeline.fingerprints import SHOWN_DIGITS
from rayddl.pipeline.tables import rows_table
from rayddl.storage import Folder

_STAGE_FOLDER = re.compile(rf"(?P<stage>[a-z][a-z0-9_-]*)-[0-9a-f]{{{SHOWN_DIGITS}}}")


@dataclass(frozen=True)
class FoundStage:
    """A stage's folder under ``--out``."""

    folder: str
    kind: str
    state: str
    """``done``, ``running``, ``partial``, ``failed`` (on an unexpected error), ``altered`` (files differ from the
    manifest), ``empty``."""
    bytes: int
    written: datetime | None

    def row(self, now: datetime) -> dict[str, str]:
        """A row of the table."""
        return {
            "folder": self.folder,
            "kind": self.kind,
            "state": self.state,
            "size": pace.size(self.bytes),
            "age": age(self.written, now),
        }


@dataclass(frozen=True)
class Run:
    """A run with a record under ``--out``."""

    name: str
    state: str
    """``done``, ``running``, ``partial``, ``failed``, ``interrupted`` or ``unreadable``."""
    stages: str
    written: datetime | None

    def row(self, now: datetime) -> dict[str, str]:
        """A row of the table."""
        return {
            "run": self.name,
            "state": self.state,
            "stages done": self.stages,
            "age": age(self.written, now),
        }


@dataclass(frozen=True)
class Listing:
    """Runs and stage folders."""

    out: str
    runs: tuple[Run, ...]
    folders: tuple[FoundStage, ...]
    evaluations: int = 0
    """Results that `rayddl evaluate` kept."""

    def parts(self) -> list[RenderableType]:
        """Return the tables of runs and folders, or a text if there are none."""
        now = datetime.now(timezone.utc)
        if not (self.runs or self.folders or self.evaluations):
            return [Text(f"nothing under {scrub(self.out)}; start with: rayddl run quickstart")]
        tables: list[RenderableType] = []
        if self.runs:
            tables += [rows_table([run.row(now) for run in self.runs]), Text()]
        tables.append(rows_table([found.row(now) for found in self.folders]))
        if self.evaluations:
            kept = Folder(self.out).child(artifacts.EVALUATIONS)
            tables += [Text(), Text(f"{self.evaluations} kept by `rayddl evaluate` in {scrub(str(kept))}")]
        return tables

    def to_json(self) -> dict[str, Any]:
        """Return the listing as JSON values."""

        def plain(entry: Run | FoundStage) -> dict[str, Any]:
            written = entry.written.isoformat() if entry.written else None
            return {**entry.__dict__, "written": written}

        return {
            "out": scrub(self.out),
            "runs": [plain(run) for run in self.runs],
            "folders": [plain(found) for found in self.folders],
            "evaluations": self.evaluations,
        }


def listing(out: str) -> Listing:
    """Return the runs and stage folders under ``out``. Raises :class:`UserError` if it cannot be read."""
    folder = Folder(out)
    try:
        names = [name for name in folder.folders() if _STAGE_FOLDER.fullmatch(name)]
        files = list(records.names(folder))
    except (OSError, ValueError) as error:
        raise UserError(
            f"--out {scrub(out)!r} cannot be read: {scrub(str(error))}", code="out-unreadable"
        ) from error
    found = {name: _found(folder, name) for name in names}
    read = {file: _record(folder, file) for file in files}
    now = datetime.now(timezone.utc)
    entries = {
        entry["folder"]: entry
        for record in read.values()
        for entry in (record["stages"].values() if record else ())
    }
    for name, entry in entries.items():
        stage = found.get(name)
        if stage is not None and stage.state in ("partial", "empty", "failed"):
            running = stage.state != "failed" and records.state(entry, folder, now) == "running"
            found[name] = replace(stage, kind=str(entry["kind"]), state="running" if running else stage.state)
    return Listing(
        out,
        tuple(_run(folder, file, record, found) for file, record in read.items()),
        tuple(found.values()),
        len(folder.child(artifacts.EVALUATIONS).names()),
    )


def age(written: datetime | None, now: datetime) -> str:
    """Return the time since ``written`` as ``40 s``, ``3 min``, ``5 h`` or ``12 days``; empty for ``None``."""
    if written is None:
        return ""
    seconds = max(0, int((now - written).total_seconds()))
    for unit, length, limit in (("s", 1, 90), ("min", 60, 90 * 60), ("h", 3600, 48 * 3600)):
        if seconds < limit:
            return f"{seconds // length} {unit}"
    return f"{seconds // 86400} days"


def _found(out: Folder, name: str) -> FoundStage:
    folder = out.child(name)
    files = folder.files()
    state: str = artifacts.state(folder)
    kind = ""
    if state == "done":
        try:
            kind = artifacts.open_artifact(folder).kind
        except (RayddlError, OSError):
            state = "altered"
    elif state == "new":
        state = "empty"
    if artifacts.ERROR in files:
        state = "failed"
    # The last is as old as its attempt.
    names = (artifacts.MANIFEST, stopwatch.FILE, *(name for name in files if name != artifacts.LOCK), *files)
    newest = next((name for name in names if name in files), None)
    written = folder.modified(newest) if newest else None
    return FoundStage(name, kind, state, sum(files.values()), written)


def _record(out: Folder, file: str) -> Mapping[str, Any] | None:
    """The record ``file`` in ``out``; ``None`` if it cannot be read."""
    try:
        return records.read(out, file)
    except (RayddlError, OSError):
        return None


def _run(out: Folder, file: str, record: Mapping[str, Any] | None, found: Mapping[str, FoundStage]) -> Run:
    written = out.modified(file)
    if record is None:
        return Run(file.removesuffix(records.SUFFIX), "unreadable", "", written)
    stages: Mapping[str, Any] = record["stages"]
    states = {name: found[s["folder"]].state if s["folder"] in found else "" for name, s in stages.items()}
    done = sum(state == "done" for state in states.values())
    now = datetime.now(timezone.utc)
    recorded = {records.state(entry, out, now) for name, entry in stages.items() if states[name] != "done"}
    # A stage that was not heard of for a while may have been killed.
    state = (
        "done"
        if done == len(stages)
        else next((s for s in ("failed", "interrupted", "running") if s in recorded), "partial")
    )
    return Run(str(record["name"]), state, f"{done} of {len(stages)}", written)
