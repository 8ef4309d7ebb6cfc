"""``rayddl export``"""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer

from rayddl.cli.errors import reporting_errors
from rayddl.cli.options import Out, Plugins, Set


class Format(str, Enum):
    """The formats that a set can be exported to."""

    imagefolder = "imagefolder"
    parquet = "parquet"
    webdataset = "webdataset"
    pt = "pt"
    hf = "hf"


def export(
    where: Set,
    to: Annotated[str, typer.Option("--to", metavar="DIR", help="A folder or URI to write into.")],
    format_: Annotated[
        Format,
        typer.Option(
            "--format",
            help="imagefolder: PNG files. parquet: one table. webdataset: tar files. pt: torch tensors, exact. "
            "hf: a folder with a card, for datasets.load_dataset.",
        ),
    ] = Format.imagefolder,
    out: Out = "runs",
    plugin: Plugins = None,
) -> None:
    """Write a set in a format that other programs read.

    \b
    rayddl export quickstart --format pt --to exported
    rayddl export quickstart --format hf --to shared
    """
    from rayddl import hosts
    from rayddl.credentials import scrub
    from rayddl.data.formats.export import export_set, foreign_space
    from rayddl.escapes import visible
    from rayddl.pipeline.plugging import use
    from rayddl.pipeline.sets import find_set
    from rayddl.storage import Folder

    with reporting_errors(), hosts.only(where, out, to):
        use(tuple(plugin or ()))
        found = find_set(where, out)
        written = export_set(found, format_.value, Folder(to))
        more = f" and {len(written) - 1} more" if len(written) > 1 else ""
        typer.echo(visible(f"wrote {scrub(written[0])}{more}"))
        if format_ is Format.pt and (note := foreign_space(found)):
            typer.echo(visible(f"note: {note}"))
