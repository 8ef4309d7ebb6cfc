"""``rayddl stop``"""

from __future__ import annotations

import typer

from rayddl.cli.errors import reporting_errors
from rayddl.cli.options import JobId, JobsAddress


def stop(job: JobId, address: JobsAddress = None) -> None:
    """Stop a job. What it did so far is kept; submitted again, it continues.

    \b
    rayddl stop quickstart-1a2b3c4d
    """
    from rayddl.jobs.client import Jobs

    with reporting_errors():
        running = Jobs(address).stop(job)
        typer.echo(f"{job} is being stopped; what it did is kept" if running else f"{job} had ended already")
