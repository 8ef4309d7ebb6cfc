"""Tables for a terminal or a log."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping, Sequence

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from rayddl.escapes import on_one_line, visible

PIPED_WIDTH = 240
"""Width in characters outside a terminal, so that a log keeps complete folder names."""

_WHOLE = 40
"""Characters of a column of numbers up to which it is not wrapped."""
_NUMBER = re.compile(r"[-+±~]?\d")
_WORD = re.compile(r"[^\W\d_]{5,}")
"""What makes a cell that begins with a number a text; units are shorter."""
_STATE_STYLES = {
    "done": "green",
    "cached": "green",
    "partial": "yellow",
    "new": "",
    "failed": "red",
    "interrupted": "yellow",
    "waiting": "dim",
    "altered": "red",
}


class SafeConsole(Console):
    """Rich's console, which also shows the control characters of texts instead of sending them."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            shown = segment.text if segment.control else visible(segment.text)
            yield segment if shown == segment.text else Segment(shown, segment.style)


def rows_table(rows: Sequence[Mapping[str, str]], title: str = "") -> Table:
    """Return a table of ``rows``, one column for each key; columns of numbers are aligned right, and keep their width
    where texts have to be wrapped.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = Table(
        box=box.SIMPLE_HEAD,
        title=Text(title, style="bold") if title else None,
        title_justify="left",
        header_style="dim",
        show_edge=False,
        pad_edge=False,
        padding=(0, 1),
    )
    for name in columns:
        cells = [str(row.get(name, "")) for row in rows]
        figures = all(map(_is_figure, cells))
        whole = figures and max(map(len, [name, *cells])) <= _WHOLE
        table.add_column(
            Text(on_one_line(name)), justify="right" if figures else "left", overflow="fold", no_wrap=whole
        )
    for row in rows:
        table.add_row(*(_cell(name, str(row.get(name, ""))) for name in columns))
    return table


def places_table(places: Mapping[str, str]) -> Table:
    """Return a table of names and paths; long paths are wrapped, not cut, so that they can be copied."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, path in places.items():
        table.add_row(Text(on_one_line(name)), Text(on_one_line(path)))
    return table


def as_text(renderable: RenderableType, width: int = PIPED_WIDTH) -> str:
    """Return the drawn text without colours and trailing blanks."""
    stream = io.StringIO()
    SafeConsole(file=stream, width=width, color_system=None, force_terminal=False).print(renderable)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines())


def _cell(column: str, value: str) -> Text:
    return Text(on_one_line(value), style=_STATE_STYLES.get(value, "") if column == "state" else "")


def _is_figure(text: str) -> bool:
    """True for a number with its unit, an estimate (``~3 min``), what is unknown (``?``), and nothing."""
    return not text or text == "?" or (_NUMBER.match(text) is not None and _WORD.search(text) is None)
