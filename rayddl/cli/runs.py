"""``rayddl list``"""

from __future__ import annotations

from rayddl.cli.options import Json, Out
from rayddl.cli.telling import emit_json, print_table, telling


def runs(out: Out = "runs", as_json: Json = False) -> None:
    """List runs and stage folders: state, size, age."""
    from rayddl.pipeline.listing import listing

    with telling():
        found = listing(out)
        if as_json:
            emit_json(found.to_json())
        else:
            print_table(*found.parts())
