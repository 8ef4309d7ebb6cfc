"""Shows a run in a terminal: a live line for each running stage, a dim line for each finished one."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.measure import Measurement
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from rayddl.credentials import scrub
from rayddl.pipeline.display import pace
from rayddl.pipeline.display.base import Closing, Display, Ending, unsaid
from rayddl.pipeline.display.pace import Clock, Pace
from rayddl.pipeline.plan import Plan
from rayddl.pipeline.tables import places_table, rows_table
from rayddl.stages.context import Progress

_FRAMES_A_SECOND = 4
_BAR_WIDTHS = (20, 8)
_LONG_SECONDS = 10.0
"""Seconds without a speed after which a line shows how long its stage has run."""
_NAME, _BAR, _METRIC = 0, 1, 5
"""The positions in a live line of the cells that are no figures."""
_GAP = 2
_SHORT_NAME = 12
"""Columns to which names are shortened, if the figures need the rest."""
_SHORT_WORD = 3
"""Characters to which words are shortened before parts of the text are left out; then words are shortened further."""
_BETWEEN = "  "
"""Between the parts of a text, of which the first ones matter most."""
_WORD = re.compile(r"[^\W\d][\w-]*")
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
        self._lines = _Lines()
        # Not held while a frame is drawn, for which the console has its own lock.
        self._lock = threading.RLock()
        self._order: dict[str, int] = {}
        """The position of each stage in the plan."""
        self._name_width = 0
        self._last: list[str] = []
        """The notes since the last stage that ended."""

    def plan(self, plan: Plan) -> None:
        self._order = {stage.name: k for k, stage in enumerate(plan.chosen)}
        self._name_width = max(map(len, self._order), default=0)
        self._console.print(plan)
        self._console.print()

    def status(self, text: str) -> AbstractContextManager[None]:
        return self._waiting(text)

    @contextmanager
    def _waiting(self, text: str) -> Iterator[None]:
        line = _Line(self, scrub(text), Pace(self._clock), self._spinner(), 0)
        with self._live_display(_Lines({text: line})):
            yield

    def note(self, text: str) -> None:
        self._console.print(Padding.indent(Text(scrub(text), style="dim"), 2))
        self._last.append(text)

    def begin(self, stage: str) -> Progress:
        line = _Line(self, stage, Pace(self._clock), self._spinner(), self._name_width)
        with self._lock:
            lines = {**self._lines.running, stage: line}
            self._lines.running = dict(sorted(lines.items(), key=lambda entry: self._order.get(entry[0], 0)))
            if self._live is None:
                self._live = self._live_display(self._lines)
                self._live.start()
        return line

    def end(self, stage: str, ending: Ending, seconds: float, details: Mapping[str, Any]) -> None:
        del details
        self._last = []
        with self._lock:
            ended = self._lines.running.pop(stage, None)
            if not self._lines.running:
                self.close()
        metric = ended.metric if ended else ""
        mark, style = _MARKS[ending]
        if self._console.options.ascii_only:
            mark = _ASCII_MARKS[ending]
        outcome = pace.duration(seconds) if ending == "done" else f"{ending} after {pace.duration(seconds)}"
        line = Text.assemble(
            (mark, style),
            f" {stage:<{self._name_width}}  ",
            ("cached" if ending == "cached" else f"{outcome:<12}", "dim"),
        )
        cells = Table.grid(padding=(0, 2, 0, 0))
        cells.add_column(no_wrap=True, overflow="ellipsis")
        cells.add_row(line, *([Squeezed(metric, "dim")] if metric else []))
        self._console.print(cells)

    def missing(self, stage: str, needs: Sequence[str]) -> None:
        mark = "-" if self._console.options.ascii_only else "–"
        line = Text(f"{mark:<2}{stage:<{self._name_width}}  not run, needs {', '.join(needs)}", style="dim")
        self._console.print(line, no_wrap=True, overflow="ellipsis")

    def result(self, closing: Closing) -> None:
        self.close()
        for stage, rows in closing.tables.items():
            self._console.print()
            self._console.print(rows_table(rows, stage))
        for line in unsaid(closing, self._last):
            self._console.print(Text(f"warning: {scrub(line)}", "yellow"))
        if closing.places:
            self._console.print()
            self._console.print(places_table(closing.places))

    def error(self, error: BaseException, message: str, exit_code: int) -> bool:
        del error, message, exit_code
        self.close()
        return False

    def close(self) -> None:
        with self._lock:
            if self._live is not None:
                self._live.stop()
            self._live = None
            self._lines.running.clear()

    def _live_display(self, lines: _Lines) -> Live:
        return Live(lines, console=self._console, refresh_per_second=_FRAMES_A_SECOND, transient=True)

    def _spinner(self) -> Spinner:
        return Spinner("line" if self._console.options.ascii_only else "dots", style="cyan")


class _Line:
    """The live line of a stage, drawn from the current values in every frame."""

    def __init__(self, out: Terminal, name: str, pace_: Pace, spinner: Spinner, width: int) -> None:
        self._out, self._name, self._pace, self._spinner, self.width = out, name, pace_, spinner, width
        self.metric = ""

    def update(self, done: float, total: float, metric: str = "") -> None:
        """Report ``done`` of ``total`` units."""
        self.metric = scrub(metric) or self.metric
        self._pace.update(done, total)

    def note(self, text: str) -> None:
        """Show a line that stays above the live line."""
        self._out.note(text)

    def cells(self) -> list[Text | ProgressBar | Squeezed | None]:
        """Name, bar, count or elapsed time, rate or elapsed time, time left, metric; ``None`` for what is unknown."""
        pace_ = self._pace
        name = Text.assemble(self._frame(), " ", (self._name, "bold"))
        metric = Squeezed(self.metric) if self.metric else None
        if pace_.total <= 0:
            return [name, None, Text(pace.duration(pace_.elapsed), style="dim"), None, None, metric]
        bar = ProgressBar(total=pace_.total, completed=min(pace_.done, pace_.total), width=_BAR_WIDTHS[0])
        # A first step may compile for a minute, in which nothing else moves.
        waited = pace.duration(pace_.elapsed) if pace_.elapsed >= _LONG_SECONDS else ""
        rate = Text(pace.speed(pace_.rate) if pace_.rate else waited, style="dim")
        left = Text(f"{pace.duration(pace_.left)} left", style="dim") if pace_.left else None
        return [name, bar, Text(pace.count(pace_.done, pace_.total)), rate or None, left, metric]

    def _frame(self) -> Text:
        frame = self._spinner.render(self._pace.elapsed)
        return frame if isinstance(frame, Text) else Text(" ")


@dataclass
class _Lines:
    """The live lines of the running stages, in one table so that their columns align."""

    running: dict[str, _Line] = field(default_factory=dict)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = list(self.running.values())
        if not lines:
            return
        rows = [line.cells() for line in lines]
        natural = [
            max((console.measure(cell).maximum for cell in column if cell is not None), default=0)
            for column in zip(*rows, strict=True)
        ]
        natural[_NAME] = max(natural[_NAME], *(len("- ") + line.width for line in lines))
        figures = max(
            (least(cell.text) for row in rows if isinstance(cell := row[_METRIC], Squeezed)), default=0
        )
        widths = _fitted(natural, figures, options.max_width)
        table = Table.grid(padding=(0, _GAP, 0, 0))
        for width in filter(None, widths):
            table.add_column(no_wrap=True, overflow="ellipsis", max_width=width)
        for row in rows:
            cells = ("" if cell is None else cell for cell, width in zip(row, widths, strict=True) if width)
            table.add_row(*cells)
        yield table


def _fitted(natural: Sequence[int], figures: int, width: int) -> list[int]:
    """The widths of the cells, from the ``natural`` ones: texts are shortened, and then the bar is left out, before
    figures are cut. ``figures``: what the metric needs for its own.
    """
    found = list(natural)
    others = [n for k, n in enumerate(natural) if k not in (_NAME, _BAR, _METRIC)]
    room = width - sum(n + _GAP for n in others if n) - (_GAP if natural[_METRIC] else 0)
    if natural[_BAR]:
        free = room - _GAP - min(natural[_NAME], _SHORT_NAME) - figures
        found[_BAR] = next((n for n in _BAR_WIDTHS if n <= free), 0)
        room -= found[_BAR] + _GAP if found[_BAR] else 0
    found[_NAME] = min(natural[_NAME], max(_SHORT_NAME, room - figures))
    found[_METRIC] = min(natural[_METRIC], max(1, room - found[_NAME]))
    return found


@dataclass(frozen=True)
class Squeezed:
    """``text`` on one line of the available width."""

    text: str
    style: str = ""

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(1, max(1, cell_len(self.text)))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        dots = "..." if options.ascii_only else "…"
        text = squeezed(self.text, options.max_width, dots)
        yield Text(text, self.style, no_wrap=True, overflow="ellipsis")


def squeezed(text: str, width: int, dots: str = "…") -> str:
    """Return ``text`` with its longest words cut, such that it has at most ``width`` columns and all its figures; if
    there are too many of them, without its last parts. A first part that is too wide alone is returned as short as
    words get.
    """
    parts = text.split(_BETWEEN)
    tries = [_BETWEEN.join(parts[:kept]) for kept in range(len(parts), 0, -1)]
    for whole, shortest in [*((whole, _SHORT_WORD) for whole in tries), (parts[0], 1)]:
        longest = max(map(len, _WORD.findall(whole)), default=1)
        for most in range(max(longest, shortest), shortest - 1, -1):
            text = _cut(whole, most, dots)
            if cell_len(text) <= width:
                return text
    return text


def least(text: str) -> int:
    """Return the columns of the first part of ``text`` with short words."""
    return cell_len(_cut(text.split(_BETWEEN, maxsplit=1)[0], _SHORT_WORD, "…"))


def _cut(text: str, most: int, dots: str) -> str:
    return _WORD.sub(
        lambda word: word.group() if len(word.group()) <= most + len(dots) else word.group()[:most] + dots,
        text,
    )
