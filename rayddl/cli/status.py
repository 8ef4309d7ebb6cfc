"""``rayddl status``"""

from __future__ import annotations

from typing import Annotated

import typer

from rayddl.cli.errors import emit_json, print_table, reporting_errors
from rayddl.cli.options import JobsAddress, Json, Out


def status(
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="[RUN|JOB]",
            help="A run's name or record, or a job; default: all jobs, without a cluster the newest run.",
        ),
    ] = None,
    out: Out = "runs",
    address: JobsAddress = None,
    as_json: Json = False,
) -> None:
    """Show the progress of a run or a job.

    The status of a run is read from its artifacts under --out only, that of a job from the cluster at --address.

    \b
    rayddl status quickstart --out s3://bucket/runs
    rayddl status quickstart-1a2b3c4d --address http://127.0.0.1:8265
    """
    from rayddl.jobs.status import status_of

    with reporting_errors():
        found = status_of(what, out, address)
        if as_json:
            emit_json(found.to_json())
        else:
            print_table(*found.parts())
