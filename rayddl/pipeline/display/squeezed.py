"""Text that is shortened to the width it is given: words first, figures last."""

from __future__ import annotations

import re
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.text import Text

SHORT = 3
"""Characters to which words are shortened before parts of the text are left out; then words are shortened further."""
_GAP = "  "
"""Between the parts of a text, of which the first ones matter most."""
_WORD = re.compile(r"[^\W\d][\w-]*")


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
    parts = text.split(_GAP)
    tries = [_GAP.join(parts[:kept]) for kept in range(len(parts), 0, -1)]
    for whole, shortest in [*((whole, SHORT) for whole in tries), (parts[0], 1)]:
        longest = max(map(len, _WORD.findall(whole)), default=1)
        for most in range(max(longest, shortest), shortest - 1, -1):
            text = _cut(whole, most, dots)
            if cell_len(text) <= width:
                return text
    return text


def least(text: str) -> int:
    """Return the columns of the first part of ``text`` with short words."""
    return cell_len(_cut(text.split(_GAP, maxsplit=1)[0], SHORT, "…"))


def _cut(text: str, most: int, dots: str) -> str:
    return _WORD.sub(
        lambda word: word.group() if len(word.group()) <= most + len(dots) else word.group()[:most] + dots,
        text,
    )
