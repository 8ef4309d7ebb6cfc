"""``rayddl doctor``"""

from __future__ import annotations

import typer

from rayddl.cli.errors import emit_json, print_table, reporting_errors, waiting
from rayddl.cli.options import Address, Json, Out


def doctor(out: Out = "runs", address: Address = None, as_json: Json = False) -> None:
    """Check what would go wrong on this machine.

    Checks versions, CPUs, memory, GPUs, the compiler and folders, and says what to do; with --address, also on
    every node of that cluster. Exits with 1 if something will fail.

    \b
    rayddl doctor
    rayddl doctor --address auto --out s3://bucket/runs
    """
    from rayddl.stages import doctor_nodes
    from rayddl.stages.runtime.doctor import examine, table

    with reporting_errors():
        with waiting("looking at this machine; importing torch takes a while"):
            findings = examine(out)
        if address:
            with waiting(f"looking at every node of the cluster at {address}"):
                findings += doctor_nodes.examine(address, out)
        if as_json:
            emit_json([finding.to_json() for finding in findings])
        else:
            print_table(table(findings))
    if any(finding.state == "fails" for finding in findings):
        raise typer.Exit(1)
