"""Shows a run in a terminal: a live line for the running stage, a dim line for each finished one."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from rayddl.pipeline.display import pace
from rayddl.pipeline.display.base import Closing, Display, Ending
from rayddl.pipeline.display.pace import Clock, Pace
from rayddl.pipeline.plan import Plan
from rayddl.pipeline.tables import places_table, rows_table
from rayddl.stages.context import Progress

_FRAMES_A_SECOND = 4
_BAR_WIDTH = 20
_WIDTH_FOR_BAR = 76
_MARKS = {
    "done": ("✓", "green"),
    "cached": ("✓", "dim"),
    "failed": ("✗", "red"),
    "interrupted": ("■", "yellow"),
}
_ASCII_MARKS = {"done": "ok", "cached": "ok", "failed": "!!", "interrupted": "--"}


class Terminal(Display):
    """The display for a terminal."""

    def __init__(self, console: Console, clock: Clock = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._live: Live | None = None
        self._line: _Line | None = None
        self._name_width = 0

    def plan(self, plan: Plan) -> None:
        self._name_width = max((len(stage.name) for stage in plan.stages), default=0)
        self._console.print(plan)
        self._console.print()

    def status(self, text: str) -> AbstractContextManager[None]:
        return self._waiting(text)

    @contextmanager
    def _waiting(self, text: str) -> Iterator[None]:
        with self._live_display(_Line(self, text, Pace(self._clock), self._spinner(), 0)):
            yield

    def note(self, text: str) -> None:
        self._console.print(Text(f"  {text}", style="dim"))

    def begin(self, stage: str) -> Progress:
        self.close()
        self._line = _Line(self, stage, Pace(self._clock), self._spinner(), self._name_width)
        self._live = self._live_display(self._line)
        self._live.start()
        return self._line

    def end(self, stage: str, ending: Ending, seconds: float, details: Mapping[str, Any]) -> None:
        del details
        metric = self._line.metric if self._line and ending != "cached" else ""
        self.close()
        mark, style = _MARKS[ending]
        if self._console.options.ascii_only:
            mark = _ASCII_MARKS[ending]
        outcome = pace.duration(seconds) if ending == "done" else f"{ending} after {pace.duration(seconds)}"
        line = Text.assemble(
            (mark, style),
            f" {stage:<{self._name_width}}  ",
            ("cached" if ending == "cached" else f"{outcome:<12}", "dim"),
            (f"  {metric}" if metric else "", "dim"),
        )
        self._console.print(line, no_wrap=True, overflow="ellipsis")

    def result(self, closing: Closing) -> None:
        self.close()
        for stage, rows in closing.tables.items():
            self._console.print()
            self._console.print(rows_table(rows, stage))
        for line in closing.warnings:
            self._console.print(Text(f"warning: {line}", "yellow"))
        if closing.places:
            self._console.print()
            self._console.print(places_table(closing.places))

    def error(self, error: BaseException, message: str, exit_code: int) -> bool:
        del error, message, exit_code
        self.close()
        return False

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
        self._live = self._line = None

    def _live_display(self, line: _Line) -> Live:
        return Live(line, console=self._console, refresh_per_second=_FRAMES_A_SECOND, transient=True)

    def _spinner(self) -> Spinner:
        return Spinner("line" if self._console.options.ascii_only else "dots", style="cyan")


class _Line:
    """The live line of a stage, drawn from the current values in every frame."""

    def __init__(self, out: Terminal, name: str, pace_: Pace, spinner: Spinner, width: int) -> None:
        self._out, self._name, self._pace, self._spinner, self._width = out, name, pace_, spinner, width
        self.metric = ""

    def update(self, done: float, total: float, metric: str = "") -> None:
        """Report ``done`` of ``total`` units."""
        self.metric = metric or self.metric
        self._pace.update(done, total)

    def note(self, text: str) -> None:
        """Show a line that stays above the live line."""
        self._out.note(text)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        del console
        table = Table.grid(padding=(0, 2, 0, 0))
        cells: list[RenderableType] = [
            Text.assemble(self._frame(), " ", (f"{self._name:<{self._width}}", "bold"))
        ]
        if self._pace.total > 0:
            if options.max_width >= _WIDTH_FOR_BAR:
                done = min(self._pace.done, self._pace.total)
                cells.append(ProgressBar(total=self._pace.total, completed=done, width=_BAR_WIDTH))
            cells.append(Text(pace.count(self._pace.done, self._pace.total)))
            cells += [Text(text, style="dim") for text in self._estimates()]
        else:
            cells.append(Text(pace.duration(self._pace.elapsed), style="dim"))
        for _ in cells:
            table.add_column(no_wrap=True)
        table.add_column(no_wrap=True, overflow="ellipsis")
        table.add_row(*cells, Text(self.metric))
        yield table

    def _frame(self) -> Text:
        frame = self._spinner.render(self._pace.elapsed)
        return frame if isinstance(frame, Text) else Text(" ")

    def _estimates(self) -> list[str]:
        rate = pace.speed(self._pace.rate) if self._pace.rate else ""
        left = f"{pace.duration(self._pace.left)} left" if self._pace.left else ""
        return [text for text in (rate, left) if text]
