"""Parallel coordinates as SVG: a vertical axis for each setting, a line for each trial."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from rayddl.report import numbers, scales
from rayddl.report.markup import el, place
from rayddl.report.scales import Scale

WIDTH, HEIGHT = 960, 320
LEFT, RIGHT, TOP, BOTTOM = 70, 890, 40, 290
NAME_AT = 18
MOST_NAMES = 12
"""Maximum number of text values on an axis with all labels; with more, only the ends have labels."""


@dataclass(frozen=True)
class Axis:
    """A vertical axis with the value of each trial."""

    name: str
    values: Sequence[float | str | None]
    """A number or a text for each trial; ``None`` for a trial without the setting."""
    shares: bool = False
    log: bool = False
    """True if a logarithmic axis is preferred."""

    @property
    def texts(self) -> tuple[str, ...]:
        """The distinct text values, sorted; empty for numbers."""
        known = [v for v in self.values if v is not None]
        return tuple(sorted({str(v) for v in known})) if any(isinstance(v, str) for v in known) else ()


@dataclass(frozen=True)
class Parallel:
    """The drawing. ``ranks`` holds the rank of each trial, 0 for the best."""

    key: str
    title: str
    summary: str
    axes: tuple[Axis, ...]
    trials: tuple[str, ...]
    """Tooltip of each line."""
    ranks: tuple[int, ...]
    note: str = ""

    def draw(self) -> Markup:
        """Return the drawing as an ``<svg>`` element."""
        places = [_placed(axis) for axis in self.axes]
        step = (RIGHT - LEFT) / max(1, len(self.axes) - 1)
        xs = [LEFT + i * step for i in range(len(self.axes))]
        parts: list[Markup] = []
        # The best is drawn last and covers the others.
        for i in sorted(range(len(self.trials)), key=lambda i: -self.ranks[i]):
            points = [(x, ys[i]) for x, ys in zip(xs, places, strict=True)]
            parts.append(el("path", el("title", self.trials[i]), d=_polyline(points), class_=self._style(i)))
        for axis, x in zip(self.axes, xs, strict=True):
            parts += _axis(axis, x)
        return el(
            "svg",
            el("title", self.title, id=f"{self.key}-title"),
            el("desc", self.summary, id=f"{self.key}-desc"),
            *parts,
            class_="chart tint-set",
            viewBox=f"0 0 {WIDTH} {HEIGHT}",
            role="img",
            aria_labelledby=f"{self.key}-title {self.key}-desc",
        )

    def _style(self, trial: int) -> str:
        rank = self.ranks[trial]
        good = rank < max(1, len(self.trials) // 4)
        return "trial best" if rank == 0 else "trial good" if good else "trial"


def _scale(axis: Axis) -> Scale:
    if axis.texts:
        return Scale(-0.5, len(axis.texts) - 0.5, BOTTOM, TOP)
    known = [float(v) for v in axis.values if v is not None and math.isfinite(float(v))]
    log = scales.spans_decades(known) or (axis.log and bool(known) and min(known) > 0)
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    if not high > low:
        low, high = (
            (low / 2, high * 2) if log else (low - (abs(low) or 1.0) * 0.5, high + (abs(high) or 1.0) * 0.5)
        )
    return Scale(low, high, BOTTOM, TOP, log)


def _placed(axis: Axis) -> list[float]:
    """Return the y coordinate of each trial on the axis; NaN for a trial without a value."""
    scale, texts = _scale(axis), axis.texts
    if texts:
        return [math.nan if v is None else scale(float(texts.index(str(v)))) for v in axis.values]
    return [math.nan if v is None else scale(float(v)) for v in axis.values]


def _polyline(points: Sequence[tuple[float, float]]) -> str:
    """Return the path of a trial, which skips axes without a value."""
    known = [(x, y) for x, y in points if math.isfinite(y)]
    return "M" + "L".join(f"{place(x)} {place(y)}" for x, y in known) + "h0" if known else ""


def _axis(axis: Axis, x: float) -> Sequence[Markup]:
    scale = _scale(axis)
    parts = [
        el("path", d=f"M{place(x)} {TOP}V{BOTTOM}", class_="axis"),
        el("text", axis.name, x=x, y=NAME_AT, class_="middle"),
    ]
    for value, text in _ticks(axis, scale):
        at = scale(value)
        parts.append(el("path", d=f"M{place(x - 4)} {place(at)}h8", class_="axis"))
        parts.append(el("text", text, x=x - 8, y=at, dy="0.35em", class_="end"))
    return parts


def _ticks(axis: Axis, scale: Scale) -> Sequence[tuple[float, str]]:
    if axis.texts:
        names = list(enumerate(axis.texts))
        named = names if len(names) <= MOST_NAMES else [names[0], names[-1]]
        return [(float(i), text) for i, text in named]
    values = scale.ticks(4)
    if axis.shares:
        return [
            (v, f"{t}\u00a0%")
            for v, t in zip(values, numbers.tick_labels([100 * v for v in values]), strict=True)
        ]
    labels = numbers.power_labels(values) if scale.log else numbers.tick_labels(values)
    return list(zip(values, labels, strict=True))
