"""``<name>.run.json``: a run's definition, states and results, for ``rayddl list``, ``show`` and ``status``."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, Literal, TypeAlias

from rayddl import documents, localfiles
from rayddl.credentials import scrub
from rayddl.errors import ArtifactError
from rayddl.pipeline import artifacts
from rayddl.pipeline.artifacts import FORMAT, Artifact, ordered_json
from rayddl.pipeline.display.pace import Clock, Pace
from rayddl.pipeline.plan import Plan
from rayddl.stages.context import Progress
from rayddl.storage import Folder
from rayddl.version import __version__

SUFFIX = artifacts.RECORD
BEAT_SECONDS = 10.0
"""Seconds between two records of one stage; few enough writes for object storage."""
SILENT_SECONDS = 120.0
"""Seconds without progress reports after which a running stage may have been killed."""

Beat: TypeAlias = Callable[[dict[str, Any]], None]
"""Receives ``{"done", "total", "rate", "left", "metric"}``: units, units, units/s, s, text; ``None`` if unknown."""

Outcome: TypeAlias = Literal["done", "cached", "failed", "interrupted", "waiting", "running"]


@dataclass
class Record:
    """The record of one run, updated during the run."""

    plan: Plan
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    warnings: dict[str, list[str]] = field(default_factory=dict)
    """By stage, what will or did disappoint, and what to change."""

    def __post_init__(self) -> None:
        for planned in self.plan.stages:
            self.stages[planned.name] = {
                "kind": planned.stage.kind.name,
                "folder": planned.folder_name,
                "fingerprint": planned.fingerprint,
                "state": "waiting",
            }

    @property
    def file(self) -> str:
        """The record's name inside ``--out``."""
        return f"{self.plan.definition.name}{SUFFIX}"

    def note(self, stage: str, outcome: Outcome, artifact: Artifact | None = None, error: str = "") -> None:
        """Record the state of a stage, with its results or its error."""
        entry = self.stages[stage]
        entry["state"] = outcome
        entry["heard"] = _now()
        if artifact is not None:
            entry |= {
                "seconds": artifact.seconds,
                "summary": dict(artifact.summary),
                "table": [dict(row) for row in artifact.table],
            }
        if error:
            entry["error"] = error

    def note_progress(self, stage: str, progress: Mapping[str, Any]) -> None:
        """Record the progress of a running stage."""
        self.stages[stage] |= {"heard": _now(), "progress": dict(progress)}

    def replaced(self) -> list[str]:
        """The folders of finished stages in the record of the same name that this one will replace, if it ends with
        others.
        """
        with suppress(ArtifactError, OSError):
            earlier = read(self.plan.out, self.file)["stages"]
            ours = {entry["fingerprint"] for entry in self.stages.values()}
            return [
                str(entry["folder"])
                for entry in earlier.values()
                if entry.get("state") in ("done", "cached") and entry.get("fingerprint") not in ours
            ]
        return []

    def write(self) -> None:
        """Write the record atomically, without credentials."""
        definition = self.plan.definition
        value = {
            "format": FORMAT,
            "rayddl": __version__,
            "name": definition.name,
            "file": None if definition.file is None else localfiles.shown(definition.file),
            "overrides": list(definition.overrides),
            "definition": definition.to_json(),
            "source_fingerprint": self.plan.source_fingerprint,
            "order": [planned.name for planned in self.plan.stages],
            "stages": self.stages,
            "warnings": self.warnings,
        }
        self.plan.out.write(self.file, ordered_json(scrub(value)))


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def read(out: Folder, file: str) -> Mapping[str, Any]:
    """Return the record ``file`` in ``out``. Raises :class:`ArtifactError` if it is missing or unreadable."""
    where, again = scrub(out.path(file)), "run its definition again"
    try:
        value: dict[str, Any] = out.read_document(file, documents.Format, again)
    except FileNotFoundError:
        raise ArtifactError(f"there is no run record {where}", code="no-run-record") from None
    if value["format"] > FORMAT:
        raise ArtifactError(
            f"{where} has format {value['format']}; this rayddl reads formats up to {FORMAT}: upgrade rayddl",
            code="run-record-too-new",
        )
    documents.checked(value, documents.RunRecord, where, again)
    return value


def names(out: Folder) -> Iterator[str]:
    """Yield the file names of all run records in ``out``."""
    return (name for name in out.names() if name.endswith(SUFFIX))


def heard(entry: Mapping[str, Any]) -> datetime | None:
    """Return the time of the last report of a stage's entry in a record, in UTC where the record names no zone."""
    try:
        found = datetime.fromisoformat(str(entry["heard"])) if entry.get("heard") else None
    except ValueError:
        return None
    return found if found is None or found.tzinfo else found.replace(tzinfo=timezone.utc)


def state(entry: Mapping[str, Any], out: Folder, now: datetime) -> str:
    """Return the recorded state of a stage of a run in ``out``.

    One that is recorded as running is ``interrupted`` if its process was killed, ``silent`` without a recent report.
    """
    recorded = str(entry.get("state", ""))
    if recorded != "running":
        return recorded
    if artifacts.abandoned(out.child(entry["folder"])):
        return "interrupted"
    last = heard(entry)
    late = last is not None and (now - last).total_seconds() > SILENT_SECONDS
    return "silent" if late else recorded


class Heartbeat:
    """A :class:`Progress` that forwards reports to ``inner`` and, at most every 10 s, calls ``beat``."""

    def __init__(self, inner: Progress, beat: Beat, clock: Clock = time.monotonic) -> None:
        self._inner, self._beat, self._clock = inner, beat, clock
        self._pace = Pace(clock)
        self._last: float | None = None

    def update(self, done: float, total: float, metric: str = "") -> None:
        """Report ``done`` of ``total`` units."""
        self._inner.update(done, total, metric)
        self._pace.update(done, total)
        now = self._clock()
        if self._last is None or now - self._last >= BEAT_SECONDS:
            self._last = now
            self._beat(
                {
                    "done": done,
                    "total": total,
                    "rate": self._pace.rate,
                    "left": self._pace.left,
                    "metric": metric,
                }
            )

    def note(self, text: str) -> None:
        """Forward a line."""
        self._inner.note(text)
