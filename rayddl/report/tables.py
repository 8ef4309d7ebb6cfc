"""Tables that are complete as they stand and can be sorted where scripts run."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """One cell. ``value`` is what a numeric column is sorted by; NaN sorts last."""

    text: str
    value: float = math.nan
    strong: bool = False
    heat: float = math.nan
    """From 0 to 1: how strongly the cell is coloured."""
    link: str = ""
    """Where on the page the text leads."""

    @property
    def coloured(self) -> bool:
        """Whether the cell has a colour."""
        return math.isfinite(self.heat)

    @property
    def key(self) -> str:
        """The sort key as an attribute's text."""
        return repr(float(self.value)) if math.isfinite(self.value) else ""


@dataclass(frozen=True)
class Column:
    """A column's heading and whether it holds numbers."""

    name: str
    numeric: bool = False


@dataclass(frozen=True)
class Table:
    """Rows under headings; ``caption`` says what they are to who cannot see the page."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
