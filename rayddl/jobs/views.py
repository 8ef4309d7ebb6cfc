"""Texts and tables about jobs."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone

from rich.console import RenderableType
from rich.text import Text

from rayddl.credentials import scrub
from rayddl.errors import StageError
from rayddl.jobs.client import Job, command
from rayddl.pipeline.browse.listing import age
from rayddl.pipeline.display import pace
from rayddl.pipeline.tables import rows_table


def submitted(job: str, out: str, address: str | None) -> str:
    """Return the message after a job was submitted."""
    lines = [f"job {job}, results under {scrub(out)}; it continues without this command"]
    lines += [f"  {command(verb, job, address)}" for verb in ("status", "logs", "stop")]
    return "\n".join(lines)


def refuse_failed(job: Job, address: str | None) -> None:
    """Raise :class:`StageError` for a job that did not succeed, of the cluster at ``address``."""
    if job.state == "STOPPED":
        raise StageError(f"the job {job.id} was stopped; what it did so far is kept", code="job-stopped")
    if job.state != "SUCCEEDED":
        raise StageError(
            f"the job {job.id} failed: {_last_line(job.message)} Its log says more: "
            f"{command('logs', job.id, address)}",
            code="job-failed",
        )


def table(jobs: Sequence[Job]) -> RenderableType:
    """Return a table with a row for each job, or a text if there is none."""
    now = datetime.now(timezone.utc)
    if not jobs:
        return Text("no jobs there; submit one with: rayddl submit DEFINITION --out PATH")
    return rows_table([_row(job, now) for job in jobs])


def _row(job: Job, now: datetime) -> dict[str, str]:
    took = ((job.ended or now) - job.started).total_seconds() if job.started else None
    return {
        "job": job.id,
        "state": job.state.lower(),
        "run": job.run,
        "out": scrub(job.out),
        "started": f"{age(job.started, now)} ago" if job.started else "",
        "took": "" if took is None else pace.duration(took),
    }


def _last_line(message: str) -> str:
    return f"{scrub(message)[-300:].rstrip('.')}."
