"""What a person, a log or a machine sees of a run.

A :class:`Display` is told what happens; there is one for terminals, one for pipes and logs, one that
writes JSON lines, and one that shows nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

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


class Display:
    """Shows a run while it goes on; what a kind of display does not override is not shown."""

    def plan(self, plan: Plan) -> None:
        """Show the plan, before anything starts."""
        del plan

    def status(self, text: str) -> AbstractContextManager[None]:
        """Show ``text`` while the block runs."""
        del text
        return nullcontext()

    def note(self, text: str) -> None:
        """Show a line worth keeping."""
        del text

    def begin(self, stage: str) -> Progress:
        """Start a stage; what it reports goes through the line returned. One stage runs at a time."""
        del stage
        return Silent()

    def end(self, stage: str, ending: Ending, seconds: float, details: Mapping[str, Any]) -> None:
        """Close a stage (a cached one never began); ``details`` are JSON values for machines."""
        del stage, ending, seconds, details

    def result(self, closing: Closing) -> None:
        """Show the tables and where things lie."""
        del closing

    def error(self, error: BaseException, message: str, exit_code: int) -> bool:
        """The command ends with an error. Whether it was said here, so that nobody else has to."""
        del error, message, exit_code
        return False

    def close(self) -> None:
        """Leave the terminal as it was. May be called more than once."""


class Hidden(Display):
    """Shows nothing."""
