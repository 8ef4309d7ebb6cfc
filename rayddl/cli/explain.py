"""``rayddl explain``"""

from __future__ import annotations

import shutil
from typing import Annotated

import typer

from rayddl.cli.errors import reporting_errors
from rayddl.cli.options import Plugins


def _names(typed: str) -> list[str]:
    from rayddl.pipeline.definition.explaining import names

    return [name for name in names() if name.startswith(typed)]


def explain(
    what: Annotated[
        str,
        typer.Argument(
            metavar="[NAME[.KEY]]", help="A kind, source, net …, or one key.", autocompletion=_names
        ),
    ] = "",
    plugin: Plugins = None,
) -> None:
    """Explain the keys of a definition.

    Those of a stage kind, of the source or of a group of settings, or a single one.

    \b
    rayddl explain
    rayddl explain match
    rayddl explain source.holdout
    """
    from rayddl.pipeline.definition.explaining import explain as explained
    from rayddl.pipeline.plugging import use

    with reporting_errors():
        use(tuple(plugin or ()))
        typer.echo(explained(what, width=min(110, shutil.get_terminal_size((100, 24)).columns)))
