"""``rayddl evaluate``"""

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
    Set,
    SetStage,
)


def evaluate(
    where: Set,
    *,
    stage: SetStage = None,
    net: Nets = None,
    seeds: Seeds = None,
    epochs: Epochs = None,
    root: Root = None,
    observer: Annotated[
        list[str] | None,
        typer.Option(
            "--observer",
            metavar="PATH",
            help="The teacher stage's folder, for soft labels; repeatable: the mean.",
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
    """Judge a set: train students on it and on random images.

    Uses the protocol that is stored with the set; options replace single settings of it. The result is kept as JSON in
    evaluations/ under --out. `rayddl compare` makes a page of finished evaluations; with --again it evaluates anew, by
    hard labels.

    \b
    rayddl evaluate runs/evaluate-0123456789ab/set
    rayddl evaluate quickstart --seeds 10
    rayddl evaluate hf://owner/name
    """
    from rayddl.pipeline.api import choose_display
    from rayddl.pipeline.judging import judge_set

    display = choose_display(as_json=as_json, quiet=quiet)
    with reporting_errors(display, left="nothing is kept, and the same command starts anew"):
        judge_set(
            where,
            out=out,
            stage=stage,
            nets=tuple(net) if net else None,
            seeds=seeds,
            epochs=epochs,
            root=root,
            observer=tuple(observer or ()),
            display=display,
            address=address,
            num_cpus=num_cpus,
            plugins=tuple(plugin or ()),
            allow_remote=allow_remote,
        )
