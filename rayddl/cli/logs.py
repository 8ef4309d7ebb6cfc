"""``rayddl logs``"""

from __future__ import annotations

from typing import Annotated

import typer

from rayddl.cli.errors import INTERRUPTED, reporting_errors
from rayddl.cli.options import JobId, JobsAddress
from rayddl.escapes import coloured


def logs(
    job: JobId,
    address: JobsAddress = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Continue until the job ends.")] = False,
) -> None:
    """Show what a job has printed.

    \b
    rayddl logs quickstart-1a2b3c4d --follow
    """
    from rayddl.jobs import views
    from rayddl.jobs.client import Jobs

    with reporting_errors():
        jobs = Jobs(address)
        if not follow:
            typer.echo(coloured(jobs.log(job)), nl=False)
            return
        try:
            ended = jobs.follow(job, lambda text: typer.echo(coloured(text), nl=False))
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
        views.refuse_failed(ended, address)
