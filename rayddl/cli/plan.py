"""``rayddl plan``"""

from __future__ import annotations

from rayddl.cli.options import File, Json, Out, Overrides
from rayddl.cli.telling import emit_json, print_table, telling


def plan(file: File, overrides: Overrides = None, out: Out = "runs", as_json: Json = False) -> None:
    r"""Check a definition and show what a run would do.

    \b
    rayddl plan quickstart
    rayddl plan quickstart --set distill.ipc=10
    """
    from rayddl.pipeline.api import plan as plan_definition

    with telling():
        made = plan_definition(file, overrides=tuple(overrides or ()), out=out)
        if as_json:
            emit_json(made.to_json())
        else:
            print_table(made.__rich__())
