"""``rayddl export``"""

from __future__ import annotations

import shlex
from enum import Enum
from typing import Annotated

import typer

from rayddl.cli.errors import reporting_errors
from rayddl.cli.options import AllowRemote, Out, Plugins, Set, SetStage


class Format(str, Enum):
    """The formats that a set can be exported to."""

    imagefolder = "imagefolder"
    parquet = "parquet"
    webdataset = "webdataset"
    pt = "pt"
    hf = "hf"


def export(
    where: Set,
    to: Annotated[
        str | None, typer.Option("--to", metavar="DIR", help="A folder or URI to write into.")
    ] = None,
    format_: Annotated[
        Format,
        typer.Option(
            "--format",
            help="imagefolder: PNG files. parquet: one table. webdataset: tar files. pt: torch tensors, exact. "
            "hf: a folder with a card, for datasets.load_dataset.",
        ),
    ] = Format.imagefolder,
    stage: SetStage = None,
    observer: Annotated[
        str | None,
        typer.Option(
            "--observer",
            metavar="PATH",
            help="hf: the teacher stage's folder, if the set has no labels of its own.",
        ),
    ] = None,
    with_test: Annotated[
        bool,
        typer.Option("--with-test", help="hf: bring the held-out images too, if their terms allow it."),
    ] = False,
    push: Annotated[
        str | None,
        typer.Option("--push", metavar="OWNER/NAME", help="hf: upload it to the Hugging Face Hub, too."),
    ] = None,
    out: Out = "runs",
    allow_remote: AllowRemote = False,
    plugin: Plugins = None,
) -> None:
    """Write a set in a format that other programs read.

    \b
    rayddl export quickstart --format pt --to exported
    rayddl export quickstart --format hf --to shared    # with train.py, and what it needs
    rayddl export photos --format hf --with-test --to shared    # and the images that it tests on
    rayddl export quickstart --format hf --push me/digits-1
    """
    from rayddl import hosts
    from rayddl.credentials import scrub
    from rayddl.escapes import visible
    from rayddl.pipeline.exporting import export_to
    from rayddl.pipeline.plugging import use

    with reporting_errors(), hosts.only(where, out, to, observer, allow=allow_remote):
        use(tuple(plugin or ()))
        exported = export_to(
            where,
            to,
            format_.value,
            out=out,
            stage=stage,
            observer=observer,
            with_test=with_test,
            push=push,
        )
        if exported.folder is not None:
            typer.echo(visible(f"wrote {len(exported.files)} files into {scrub(exported.folder)}"))
        if exported.address is not None:
            typer.echo(visible(f"wrote {scrub(exported.address)}"))
        for note in exported.notes:
            typer.echo(visible(f"note: {note}"))
        if exported.then:
            typer.echo(visible(f"next: {shlex.join(exported.then)}"))
