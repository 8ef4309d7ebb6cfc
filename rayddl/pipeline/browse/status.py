"""``rayddl status``: the progress of a run, read from its artifacts only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from rayddl.credentials import scrub
from rayddl.errors import UserError
from rayddl.pipeline import artifacts, records
from rayddl.pipeline.browse.listing import age
from rayddl.pipeline.display import pace
from rayddl.pipeline.sets import find_record
from rayddl.pipeline.tables import rows_table
from rayddl.storage import Folder


@dataclass(frozen=True)
class StageStatus:
    """One stage of a run."""

    stage: str
    kind: str
    state: str
    """``done``, ``running``, ``silent`` (recorded as running, without a recent report), ``failed``,
    ``interrupted``, ``waiting``."""
    folder: str
    seconds: float | None
    """Duration of a finished stage in seconds."""
    heard: datetime | None
    """Time of the last report of a stage."""
    progress: Mapping[str, Any]
    """``done``, ``total``, ``rate``, ``left`` and ``metric`` at that time; empty before the first report."""
    error: str

    def row(self, now: datetime) -> dict[str, str]:
        """A row of the table."""
        state = f"{self.state} for {age(self.heard, now)}" if self.state == "silent" else self.state
        return {
            "stage": self.stage,
            "kind": self.kind,
            "state": state,
            "progress": ", ".join(self._figures(now)),
        }

    def _figures(self, now: datetime) -> Iterator[str]:
        if self.seconds is not None:
            yield pace.duration(self.seconds)
        if not self.progress or self.state in ("done", "waiting"):
            return
        yield pace.count(self.progress["done"], self.progress["total"])
        if self.progress.get("rate") and self.state == "running":
            yield pace.speed(self.progress["rate"])
        left = self.progress.get("left")
        if left is not None and self.state == "running" and self.heard is not None:
            yield f"{pace.duration(max(0.0, left - (now - self.heard).total_seconds()))} left"
        if self.progress.get("metric"):
            yield str(self.progress["metric"])


@dataclass(frozen=True)
class RunStatus:
    """A run and its stages, in the order they run."""

    name: str
    record: str
    stages: tuple[StageStatus, ...]

    @property
    def state(self) -> str:
        """``done``, ``running``, ``silent``, ``failed``, ``interrupted``, or ``partial`` if no command runs it."""
        found = {stage.state for stage in self.stages}
        if found <= {"done"}:
            return "done"
        by_priority = ("failed", "interrupted", "running", "silent")
        return next((state for state in by_priority if state in found), "partial")

    def parts(self) -> list[RenderableType]:
        """Return a line about the run, a table of stages, and the errors."""
        now = datetime.now(timezone.utc)
        head = Text.assemble((self.name, "bold"), (f"  {self.state}  {self.record}", "dim"))
        parts: list[RenderableType] = [head, rows_table([stage.row(now) for stage in self.stages])]
        parts += [
            Text(f"\n{stage.error}") for stage in self.stages if stage.error and stage.state == "failed"
        ]
        if self.state == "silent":
            parts.append(
                Text(
                    "\nno sign of life for a while: the run is in a long step, or was killed; then run it again"
                )
            )
        return parts

    def to_json(self) -> dict[str, Any]:
        """Return the status as JSON values."""
        stages = [
            {**stage.__dict__, "heard": stage.heard.isoformat() if stage.heard else None}
            for stage in self.stages
        ]
        return {"name": self.name, "state": self.state, "record": self.record, "stages": stages}


def run_status(where: str, out: str, now: datetime | None = None) -> RunStatus | None:
    """Return the status of the run that ``where`` names by its record's path or its name in ``out``; ``None`` if
    there is no such run.

    Reads only the record, and whether each stage has a manifest. Raises :class:`ArtifactError` for an unreadable
    record and :class:`UserError` for an unreadable folder.
    """
    try:
        found = find_record(where, out)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{scrub(where)!r} in {scrub(out)!r} cannot be looked for: {scrub(str(error))}",
            code="run-lookup-failed",
        ) from error
    if found is None:
        return None
    folder, file = found
    record = records.read(folder, file)
    now = now or datetime.now(timezone.utc)
    order = record.get("order", record["stages"])
    stages = tuple(_stage(name, record["stages"][name], folder, now) for name in order)
    return RunStatus(str(record.get("name", file)), scrub(folder.path(file)), stages)


def newest_run(out: str) -> str | None:
    """The name of the run under ``out`` whose record was written last; ``None`` if there is none."""
    folder = Folder(out)
    try:
        written = {file: folder.modified(file) for file in records.names(folder)}
    except (OSError, ValueError):
        return None
    known = {file: when for file, when in written.items() if when is not None}
    return max(known, key=known.__getitem__).removesuffix(records.SUFFIX) if known else None


def _stage(name: str, entry: Mapping[str, Any], out: Folder, now: datetime) -> StageStatus:
    folder = out.child(entry["folder"])
    # The manifest decides: the record may be older, or of a command that was killed.
    done = folder.has(artifacts.MANIFEST)
    state = "done" if done else records.state(entry, out, now)
    if not done and state in ("done", "cached"):
        state = "waiting"  # its folder was deleted
    return StageStatus(
        name,
        str(entry["kind"]),
        state,
        str(entry["folder"]),
        float(entry["seconds"]) if done and "seconds" in entry else None,
        records.heard(entry),
        dict(entry.get("progress", {})),
        str(entry.get("error", "")),
    )
