"""``rayddl init``"""

from __future__ import annotations

from typing import Annotated

import typer

from rayddl.cli.errors import reporting_errors, waiting


def _methods(typed: str) -> list[str]:
    from rayddl.drafts.draft import methods

    return [name for name in methods() if name.startswith(typed)]


def init(
    path: Annotated[
        str,
        typer.Argument(
            metavar="PATH", help="Class folders, a Parquet file, a tar file, or a folder of these."
        ),
    ],
    to: Annotated[
        str | None,
        typer.Option("--to", metavar="FILE", help="The definition to write; default: PATH's name here."),
    ] = None,
    ipc: Annotated[int | None, typer.Option("--ipc", metavar="N", min=1, help="Images per class.")] = None,
    size: Annotated[
        int | None, typer.Option("--size", metavar="N", min=4, max=8192, help="Side in pixels.")
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            "--method", metavar="KIND", help="The stage kind that makes the set.", autocompletion=_methods
        ),
    ] = None,
    follow_links: Annotated[
        bool, typer.Option("--follow-links", help="Use images outside PATH to which links inside it lead.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite FILE.")] = False,
) -> None:
    """Look at images and write a definition that suits them.

    Chooses method, image size, batches, epochs and windows by the number of images and their resolution, holds out a
    share where there is no held-out split, and says why in comments. Nothing is trained.

    \b
    rayddl init photos
    rayddl init photos --ipc 10 --method rded --to photos-rded.yaml
    """
    from rayddl.drafts.draft import draft

    with reporting_errors():
        with waiting("looking at the images"):
            made = draft(path, to, ipc=ipc, size=size, method=method, force=force, follow_links=follow_links)
        for line in made.contents.lines():
            typer.echo(line)
        typer.echo(f"{made.method}: {made.reason}; {made.draft.ipc} per class at {made.draft.size} pixels")
        if made.takes:
            typer.echo(f"on this machine about {made.takes}")
        for line in made.warnings:
            typer.echo(f"warning: {line}")
        typer.echo(f"\nwrote {made.file}; change it as you like, then\n  {made.command}")
