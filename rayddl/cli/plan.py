"""``rayddl plan``"""

from __future__ import annotations

from typing import Annotated

import typer

from rayddl.cli.errors import emit_json, print_table, reporting_errors, waiting
from rayddl.cli.options import AllowRemote, File, Json, Out, Overrides, Plugins, Strict

Measure = Annotated[
    bool,
    typer.Option(
        "--measure", help="Try one matching step: its peak memory, and the largest batch_syn that fits."
    ),
]
Price = Annotated[
    float | None,
    typer.Option(
        "--price",
        metavar="X",
        min=0,
        help="Money for an hour of a GPU, or of this machine if it has none: adds what the run costs.",
    ),
]


def plan(
    file: File,
    overrides: Overrides = None,
    out: Out = "runs",
    measure: Measure = False,
    price: Price = None,
    plugin: Plugins = None,
    strict: Strict = False,
    allow_remote: AllowRemote = False,
    as_json: Json = False,
) -> None:
    """Check a definition: what would run, how long, and what it takes.

    \b
    rayddl plan quickstart
    rayddl plan quickstart --set distill.ipc=10
    rayddl plan cifar10-mtt-ipc10 --set source.root=PATH --measure
    rayddl plan cifar10-mtt-ipc10 --set source.download=true --price 2.5
    """
    from contextlib import nullcontext

    from rayddl import hosts
    from rayddl.pipeline.api import estimate
    from rayddl.pipeline.api import plan as plan_definition
    from rayddl.pipeline.cautions import refuse_before

    with reporting_errors():
        given = tuple(overrides or ())
        made = plan_definition(
            file, overrides=given, out=out, plugins=tuple(plugin or ()), allow_remote=allow_remote
        )
        with (
            hosts.only(file, out, *given, allow=allow_remote),
            waiting("trying one matching step, in a process of its own") if measure else nullcontext(),
        ):
            expected = estimate(made, measure=measure, price=price)
        if as_json:
            emit_json(expected.to_json(made))
        else:
            known = any(expected.stages.values())
            print_table(made.__rich__(), *([expected.__rich__()] if known else []))
        if strict:
            refuse_before(expected.warnings)
