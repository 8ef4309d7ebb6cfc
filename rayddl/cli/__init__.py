"""The command line: one module per command, which parses the arguments and calls one function."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

from rayddl import interrupts


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The console script ``rayddl``. Exits with 0, 1, 2 (wrong input) or 130 (Ctrl-C, SIGTERM, SIGHUP)."""
    interrupts.install()
    from rayddl.cli.app import app

    for stream in (sys.stdout, sys.stderr):
        # Characters that the terminal cannot show become "?" and do not raise.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        app(args=list(arguments) if arguments is not None else None, prog_name="rayddl")
    finally:
        if interrupts.caught():
            interrupts.leave()
        interrupts.ignore()
    sys.exit(0)
