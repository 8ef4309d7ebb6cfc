"""``rayddl compare``"""

from __future__ import annotations

from typing import Annotated

import typer

from rayddl.cli.errors import reporting_errors
from rayddl.cli.options import (
    Address,
    AllowRemote,
    Epochs,
    Json,
    Nets,
    NumCpus,
    Out,
    Plugins,
    Quiet,
    Root,
    Seeds,
)


def compare(
    where: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...",
            help="Runs, evaluate stages or sets; sets of other code too: .pt pairs, folders by class, Parquet.",
        ),
    ],
    *,
    net: Nets = None,
    seeds: Seeds = None,
    epochs: Epochs = None,
    root: Root = None,
    again: Annotated[
        bool,
        typer.Option("--again", help="Judge all anew by one protocol: the first one's with hard labels."),
    ] = False,
    name: Annotated[
        str | None,
        typer.Option(
            "--name", metavar="NAME", help="What to call the comparison; default: by what is compared."
        ),
    ] = None,
    out: Out = "runs",
    address: Address = None,
    num_cpus: NumCpus = None,
    plugin: Plugins = None,
    allow_remote: AllowRemote = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compare runs and sets: one table, one page.

    Sets that were judged before keep their results; the others are judged first, by the protocol of the
    first one with hard labels.

    \b
    rayddl compare quickstart cifar10-mct-ipc1
    rayddl compare quickstart ../other-code/logged_files/digits --again --seeds 3
    """
    from rayddl.pipeline.api import choose_display
    from rayddl.pipeline.comparing import compare as compare_sets

    display = choose_display(as_json=as_json, quiet=quiet)
    with reporting_errors(display):
        compare_sets(
            where,
            out=out,
            nets=tuple(net) if net else None,
            seeds=seeds,
            epochs=epochs,
            root=root,
            again=again,
            name=name,
            progress=display,
            address=address,
            num_cpus=num_cpus,
            plugins=tuple(plugin or ()),
            allow_remote=allow_remote,
        )
