"""Chooses the display for standard output."""

from __future__ import annotations

from rayddl.pipeline.display.base import Display


def choose(*, as_json: bool = False, quiet: bool = False) -> Display:
    """Return the display for JSON if asked for, else for standard output: a terminal, or a pipe or file."""
    if as_json:
        from rayddl.pipeline.display.jsonl import JsonLines, private_stdout

        return JsonLines(private_stdout())
    from rayddl.pipeline.display.live import Terminal
    from rayddl.pipeline.display.plain import Plain
    from rayddl.pipeline.tables import SafeConsole

    console = SafeConsole(highlight=False)
    if not quiet and console.is_terminal and not console.is_dumb_terminal:
        return Terminal(console)
    return Plain(quiet=quiet)
