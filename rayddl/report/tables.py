"""Tables of the page, which can be sorted if scripts run."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """A cell. ``value`` is the sort key in a numeric column; NaN sorts last."""

    text: str
    value: float = math.nan
    strong: bool = False
    heat: float = math.nan
    """Intensity of the cell's colour from 0 to 1; NaN for none."""
    link: str = ""
    """Anchor on the page that the text links to."""

    @property
    def coloured(self) -> bool:
        """True if the cell has a colour."""
        return math.isfinite(self.heat)

    @property
    def key(self) -> str:
        """The sort key as the value of an attribute."""
        return repr(float(self.value)) if math.isfinite(self.value) else ""


@dataclass(frozen=True)
class Column:
    """A column's heading; ``numeric`` is True for a column of numbers."""

    name: str
    numeric: bool = False


@dataclass(frozen=True)
class Table:
    """Rows under headings; ``caption`` describes them for screen readers."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
