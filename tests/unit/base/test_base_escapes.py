"""Control characters are shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.text import Text

from rayddl.escapes import coloured, on_one_line, visible
from rayddl.pipeline.tables import SafeConsole, as_text, places_table, rows_table


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("\x9b31m", r"\x9b31m"),
        ("a\rb\x08c\x00", r"a\x0db\x08c\x00"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("line\u2028line", r"line\u2028line"),
        ("tab\tnew\nline é 漢 ±", "tab\tnew\nline é 漢 ±"),
    ],
)
def test_visible(text: str, shown: str) -> None:
    """Escapes, marks of direction and ends of lines are spelled out; text of all languages stays."""
    assert visible(text) == shown


def test_cells_are_one_line() -> None:
    """A name cannot forge a row."""
    assert on_one_line("a\nb\tc") == r"a\nb\tc"
    assert r"a\nforged" in as_text(rows_table([{"na\x1bme": "a\nforged"}], "ti\x1btle"))
    assert "\n" not in as_text(places_table({"a\nb": "c\nd"}))


def test_the_output_of_a_job_keeps_its_colours() -> None:
    """Colours change nothing but colours."""
    assert (
        coloured("\x1b[36mblue\x1b[0m \x1b]0;t\x07 \x1b[2J")
        == "\x1b[36mblue\x1b[0m " + r"\x1b]0;t\x07 \x1b[2J"
    )


@given(st.text())
def test_nothing_is_left(text: str) -> None:
    """In a terminal with colours, only the console's own sequences are sent."""
    console = SafeConsole(force_terminal=True, color_system=None, width=200)
    with console.capture() as captured:
        console.print(Text(text))
    assert not set(captured.get()) & set(map(chr, [*range(9), *range(11, 32), *range(127, 160)]))
