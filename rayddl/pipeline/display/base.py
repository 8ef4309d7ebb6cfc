"""The interface of displays, which show a run.

A :class:`Display` receives the events of a run. There is one for terminals, one for pipes and logs, one that
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
    """What is shown at the end of a command."""

    tables: Mapping[str, Sequence[Mapping[str, str]]]
    """Rows of tables, by the name of their stage."""
    places: Mapping[str, str]
    """Paths of results: ``{"set": path, "report": path}``."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Further results for programs, as JSON values."""
    warnings: Sequence[str] = ()
    """What disappoints in the results, and what to change."""


def unsaid(closing: Closing, last: Sequence[str]) -> list[str]:
    """The warnings of ``closing`` without those among the ``last`` notes, which stand directly above if it has no
    tables.
    """
    return [line for line in closing.warnings if closing.tables or f"warning: {line}" not in last]


class Display:
    """Shows a run while it runs; events whose method a subclass does not override are not shown.

    Stages run in threads, several at the same time: :meth:`note`, :meth:`begin`, :meth:`end` and the progress
    reporters may be called from any of them.
    """

    def plan(self, plan: Plan) -> None:
        """Show the plan, before anything starts."""
        del plan

    def status(self, text: str) -> AbstractContextManager[None]:
        """Show ``text`` while the block runs."""
        del text
        return nullcontext()

    def note(self, text: str) -> None:
        """Show a line that stays on the display."""
        del text

    def begin(self, stage: str) -> Progress:
        """Show the start of a stage and return its progress reporter."""
        del stage
        return Silent()

    def end(self, stage: str, ending: Ending, seconds: float, details: Mapping[str, Any]) -> None:
        """Show the end of a stage; cached ones have no start. ``details`` are JSON values for programs."""
        del stage, ending, seconds, details

    def missing(self, stage: str, needs: Sequence[str]) -> None:
        """Show that a stage did not run, because it ``needs`` stages that failed or did not run themselves."""
        del stage, needs

    def result(self, closing: Closing) -> None:
        """Show the tables and the paths of results."""
        del closing

    def error(self, error: BaseException, message: str, exit_code: int) -> bool:
        """Show an error that ends the command; return False if the caller has to show it."""
        del error, message, exit_code
        return False

    def close(self) -> None:
        """Restore the terminal. May be called more than once."""


class Hidden(Display):
    """Shows nothing."""
