"""What a person, a log or a machine sees of a run.

A :class:`Display` is told what happens; there is one for terminals, one for pipes and logs, one that
writes JSON lines, and one that shows nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

from rayddl.pipeline.plan import Plan
from rayddl.stages.context import Progress, Silent

Ending: TypeAlias = Literal["done", "cached", "failed", "interrupted"]


@dataclass(frozen=True)
class Closing:
    """What stands at the end of a command."""

    tables: Mapping[str, Sequence[Mapping[str, str]]]
    """Rows to show, under the name of the stage they come from."""
    places: Mapping[str, str]
    """What lies where: ``{"set": path, "report": path}``."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Everything a machine may want, as JSON values."""


class Display(Protocol):
    """Shows a run while it goes on."""

    def plan(self, plan: Plan) -> None:
        """The plan, before anything starts."""

    def status(self, text: str) -> AbstractContextManager[None]:
        """``text`` stands on the screen while the block runs."""

    def note(self, text: str) -> None:
        """A line worth keeping on the screen."""

    def begin(self, stage: str) -> Progress:
        """``stage`` starts; its live line is the one returned. One stage runs at a time."""

    def end(self, stage: str, ending: Ending, seconds: float, details: Mapping[str, Any]) -> None:
        """``stage`` is over (a cached one never began); ``details`` are JSON values for machines."""

    def result(self, closing: Closing) -> None:
        """The tables and where things lie."""

    def error(self, error: BaseException, message: str, exit_code: int) -> bool:
        """The command ends with an error. Whether it was said here, so that nobody else has to."""

    def close(self) -> None:
        """Leave the terminal as it was. May be called more than once."""


class Hidden:
    """A :class:`Display` that shows nothing."""

    def plan(self, plan: Plan) -> None:
        """Show the plan."""
        del plan

    def status(self, text: str) -> AbstractContextManager[None]:
        """Show ``text`` while the block runs."""
        del text
        return nullcontext()

    def note(self, text: str) -> None:
        """Show a line worth keeping."""
        del text

    def begin(self, stage: str) -> Progress:
        """Start a stage; what it reports goes through the line returned."""
        del stage
        return Silent()

    def end(self, stage: str, ending: Ending, seconds: float, details: Mapping[str, Any]) -> None:
        """Close a stage."""
        del stage, ending, seconds, details

    def result(self, closing: Closing) -> None:
        """Show the tables and where things lie."""
        del closing

    def error(self, error: BaseException, message: str, exit_code: int) -> bool:
        """Take an error in; whether it was told here."""
        del error, message, exit_code
        return False

    def close(self) -> None:
        """Leave the stream as it was."""


def choose(*, as_json: bool = False, quiet: bool = False) -> Display:
    """The display that fits what standard output is: a terminal, a pipe, or asked for as JSON."""
    if as_json:
        from rayddl.pipeline.display.jsonl import JsonLines, private_stdout

        return JsonLines(private_stdout())
    from rich.console import Console

    from rayddl.pipeline.display.live import Terminal
    from rayddl.pipeline.display.plain import Plain

    console = Console(highlight=False)
    if not quiet and console.is_terminal and not console.is_dumb_terminal:
        return Terminal(console)
    return Plain(quiet=quiet)
