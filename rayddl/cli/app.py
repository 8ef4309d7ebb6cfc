"""The commands of the command line."""

from __future__ import annotations

from typing import Annotated

import typer

import rayddl
from rayddl.cli import (
    compare,
    doctor,
    evaluate,
    explain,
    export,
    init,
    logs,
    plan,
    run,
    runs,
    schema,
    show,
    status,
    stop,
    submit,
)

app = typer.Typer(
    help="Distil an image dataset into a few images per class, on a laptop or on a Ray cluster.",
    epilog="Start with: rayddl run quickstart",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    # Plain help looks the same in a terminal and in a log, and is fast.
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("init")(init.init)
app.command("run")(run.run)
app.command("plan")(plan.plan)
app.command("show")(show.show)
app.command("list")(runs.runs)
app.command("evaluate")(evaluate.evaluate)
app.command("compare")(compare.compare)
app.command("export")(export.export)
app.command("explain")(explain.explain)
app.command("schema")(schema.schema)
app.command("doctor")(doctor.doctor)
app.command("submit")(submit.submit)
app.command("status")(status.status)
app.command("logs")(logs.logs)
app.command("stop")(stop.stop)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"rayddl {rayddl.__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    del version
