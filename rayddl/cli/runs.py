"""``rayddl list``"""

from __future__ import annotations

from rayddl.cli.errors import emit_json, print_table, reporting_errors
from rayddl.cli.options import Json, Out


def runs(out: Out = "runs", as_json: Json = False) -> None:
    """List runs and stage folders: state, size, age."""
    from rayddl import hosts
    from rayddl.pipeline.browse.listing import listing

    with reporting_errors(), hosts.only(out):
        found = listing(out)
        if as_json:
            emit_json(found.to_json())
        else:
            print_table(*found.parts())
