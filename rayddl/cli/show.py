"""``rayddl show``"""

from __future__ import annotations

from typing import Annotated

import typer

from rayddl.cli.errors import emit_json, print_table, reporting_errors
from rayddl.cli.options import Json, Out, Plugins


def show(
    path: Annotated[
        str, typer.Argument(metavar="PATH", help="A stage's or set's folder, a run record, or a run's name.")
    ],
    verify: Annotated[bool, typer.Option("--verify", help="Read every file and check its hash.")] = False,
    out: Out = "runs",
    plugin: Plugins = None,
    as_json: Json = False,
) -> None:
    """Show the contents of a stage, a set or a run.

    \b
    rayddl show quickstart
    rayddl show runs/experts-0123456789ab --verify
    """
    from rayddl import hosts
    from rayddl.pipeline.browse.show import inspect
    from rayddl.pipeline.plugging import use

    with reporting_errors(), hosts.only(path, out):
        use(tuple(plugin or ()))
        found = inspect(path, out, verify=verify)
        if as_json:
            emit_json(found.value)
        else:
            print_table(*found.parts())
