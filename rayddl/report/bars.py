"""Horizontal bars as SVG with positions in percent, so that text keeps its size at any width."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from rayddl.report import numbers, scales
from rayddl.report.markup import el

ROW = 34
"""Height of a bar's row in pixels."""


@dataclass(frozen=True)
class Bar:
    """A bar: a mean, its standard deviation, and the single values."""

    label: str
    value: float
    text: str
    """The value as written next to the bar."""
    tint: str
    note: str = ""
    std: float = math.nan
    singles: tuple[float, ...] = ()
    hints: tuple[str, ...] = ()
    """Tooltip of each of ``singles``."""


@dataclass(frozen=True)
class Group:
    """Bars under a common label."""

    label: str
    note: str
    bars: tuple[Bar, ...]


@dataclass(frozen=True)
class Bars:
    """Groups of bars on one axis that starts at zero."""

    groups: tuple[Group, ...]
    shares: bool = False
    """True if values are fractions, shown as percentages."""
    level: float = math.nan
    """A reference level, such as chance."""

    @property
    def top(self) -> float:
        """The end of the axis."""
        bars = [b for g in self.groups for b in g.bars]
        ends = [b.value + (b.std if math.isfinite(b.std) else 0.0) for b in bars]
        reach = [v for v in (*ends, *(s for b in bars for s in b.singles), self.level) if math.isfinite(v)]
        high = max(reach, default=1.0) * 1.04 or 1.0
        return min(high, 1.0) if self.shares and max(reach, default=0) <= 1 else high

    def draw(self, bar: Bar) -> Markup:
        """Return the drawing of one bar, without its label."""
        return _draw(bar, self)

    def axis(self) -> Markup:
        """Return the ticks under the bars."""
        return _axis(self)


def _draw(bar: Bar, bars: Bars) -> Markup:
    top, middle = bars.top, ROW / 2
    parts = [_upright(v / top, "grid") for v in scales.ticks(0, top, 5)] if bars.shares else []
    if math.isfinite(bar.value):
        end = _share(bar.value / top)
        parts.append(el("rect", x="0", y=5, width=end, height=ROW - 10, class_="bar"))
        parts.append(el("line", x1=end, x2=end, y1=5, y2=ROW - 5, class_="tip"))
    if math.isfinite(bars.level):
        parts.append(_upright(bars.level / top, "rule"))
    if math.isfinite(bar.std) and math.isfinite(bar.value) and len(bar.singles) > 1:
        parts += _whisker(max(0.0, bar.value - bar.std) / top, min(top, bar.value + bar.std) / top, middle)
    for i, (value, hint) in enumerate(zip(bar.singles, bar.hints, strict=True)):
        if math.isfinite(value):
            # Each seed has its own height, so that equal accuracies do not cover each other.
            y = middle + _offset(i, len(bar.singles)) * (ROW - 20) / 2
            parts.append(el("circle", el("title", hint), cx=_share(value / top), cy=y, r=3.2, class_="seed"))
    return el(
        "svg",
        *parts,
        class_=f"bar-drawing tint-{bar.tint}",
        width="100%",
        height=ROW,
        role="img",
        aria_label=f"{bar.label}: {bar.text}",
    )


def _axis(bars: Bars) -> Markup:
    top = bars.top
    values = scales.ticks(0, top, 5)
    texts = numbers.tick_labels([v * 100 for v in values] if bars.shares else values)
    parts = [
        el(
            "text",
            f"{text}\u00a0%" if bars.shares else text,
            x=_share(v / top),
            y=14,
            class_=_anchor(v / top),
        )
        for v, text in zip(values, texts, strict=True)
    ]
    return el("svg", *parts, class_="bar-axis", width="100%", height=20, aria_hidden="true")


def _upright(share: float, style: str) -> Markup:
    at = _share(share)
    return el("line", x1=at, x2=at, y1="0", y2=ROW, class_=style)


def _whisker(low: float, high: float, middle: float) -> Sequence[Markup]:
    a, b = _share(low), _share(high)
    return [
        el("line", x1=a, x2=b, y1=middle, y2=middle, class_="whisker"),
        *(el("line", x1=end, x2=end, y1=middle - 5, y2=middle + 5, class_="whisker") for end in (a, b)),
    ]


def _offset(index: int, many: int) -> float:
    """Return a height between -1 and 1 that differs much from the neighbours' heights."""
    return 0.0 if many == 1 else ((index * 2) % 5 - 2) / 2


def _anchor(share: float) -> str:
    return "" if share < 0.02 else "end" if share > 0.97 else "middle"


def _share(value: float) -> str:
    return f"{100 * min(max(value, 0.0), 1.0):.2f}%"
