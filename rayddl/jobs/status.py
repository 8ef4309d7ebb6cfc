"""The status of a run or a job, read from artifacts, from the cluster, or from both."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from rayddl.credentials import scrub
from rayddl.errors import UserError
from rayddl.jobs import views
from rayddl.jobs.client import VARIABLES, Job, Jobs
from rayddl.pipeline.browse.status import RunStatus, newest_run, run_status


@dataclass(frozen=True)
class Status:
    """Jobs, a run, or a job with its run."""

    jobs: tuple[Job, ...]
    run: RunStatus | None

    def parts(self) -> list[RenderableType]:
        """Return the tables and texts for a terminal."""
        parts: list[RenderableType] = [] if self.run and not self.jobs else [views.table(self.jobs)]
        parts += [Text(job.message) for job in self.jobs if len(self.jobs) == 1 and job.state == "FAILED"]
        return [*parts, *([Text()] if parts and self.run else []), *(self.run.parts() if self.run else [])]

    def to_json(self) -> dict[str, Any]:
        """Return the status as JSON values."""
        found: dict[str, Any] = {"jobs": [scrub(job.to_json()) for job in self.jobs]}
        return {**found, "run": self.run.to_json() if self.run else None}


def status_of(what: str | None, out: str, address: str | None) -> Status:
    """Return the status of ``what``: a run under ``out``, else a job at ``address``. If it is ``None``: of all jobs,
    or, where no cluster is named and none answers, of the newest run under ``out``.

    For a named run, no cluster is contacted. Raises :class:`UserError` if nothing is found.
    """
    if what is None:
        newest = None if address or any(map(os.environ.get, VARIABLES)) else newest_run(out)
        try:
            return Status(tuple(Jobs(address).all()), None)
        except UserError:
            if newest is None:
                raise
            what = newest
    run = run_status(what, out)
    if run is not None:
        return Status((), run)
    try:
        job = Jobs(address).job(what)
    except UserError as error:
        raise UserError(
            f"there is no run {what!r} under {scrub(out)!r}, and {error}", code="no-such-run"
        ) from error
    return Status((job,), _run_of(job))


def _run_of(job: Job) -> RunStatus | None:
    """Return the status of a job's run; ``None`` if its results cannot be read from this machine."""
    try:
        return run_status(job.run, job.out) if job.run else None
    except UserError:
        return None
