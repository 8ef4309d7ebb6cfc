"""Shows control characters of text from outside, so that it cannot steer a terminal or change how a page reads."""

from __future__ import annotations

import re

# C0 and C1 without tab and newline, the marks that turn the direction of text, and those that end a line for some.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]")

_COLOUR = re.compile("(\x1b\\[[0-9;]{0,20}m)")


def visible(text: str) -> str:
    r"""Return ``text`` with control characters but tab and newline as ``\x1b`` or ``\u202e``."""
    return _CONTROL.sub(_escaped, text)


def on_one_line(text: str) -> str:
    r"""Return :func:`visible` text with newlines and tabs as ``\n`` and ``\t``, for a cell of a table."""
    return visible(text).replace("\n", r"\n").replace("\t", r"\t")


def coloured(text: str) -> str:
    """Return :func:`visible` text that keeps its colours, for the output of a job."""
    return "".join(part if i % 2 else visible(part) for i, part in enumerate(_COLOUR.split(text)))


def _escaped(found: re.Match[str]) -> str:
    number = ord(found[0])
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"
