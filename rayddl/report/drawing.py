"""Draws line charts as SVG, coloured by the page's CSS variables."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from rayddl.report import numbers, scales
from rayddl.report.charts import Band, Chart, Dots, Floats, Hint, Line, Rule, Spots, Strip, Whiskers, values
from rayddl.report.markup import el, place
from rayddl.report.scales import Scale

WIDTH, HEIGHT = 520, 296
LEFT, TOP, BOTTOM = 58, 14, 246
RIGHT, RIGHT_UNLABELLED = 446, 508
"""Right edge of plots with and without values next to the lines' ends."""
STRIP = 36
"""Height of a histogram under the axis."""
LABELLED, NAMED = 15, 31
"""Height of a label at a line's end, without and with a name."""


@dataclass(frozen=True)
class _Frame:
    x: Scale
    y: Scale
    right: float
    label: Callable[[Floats], list[str]]
    value: Callable[[float], str] = field(default=numbers.figure)


def draw(chart: Chart) -> Markup:
    """Return the chart as an ``<svg>`` element."""
    frame = _frame(chart)
    parts = [*_grid(frame), *_x_axis(chart, frame)]
    parts += [_mark(mark, frame) for mark in chart.marks if not isinstance(mark, Rule)]
    parts += [_rule(mark, frame) for mark in chart.marks if isinstance(mark, Rule)]
    parts += _end_labels(chart, frame)
    if chart.strip is not None:
        parts += _strip(chart.strip, frame)
    parts += _hints(chart.hints, frame, HEIGHT + (STRIP if chart.strip else 0) - (HEIGHT - BOTTOM))
    height = HEIGHT + (STRIP if chart.strip else 0)
    return el(
        "svg",
        el("title", chart.title, id=f"{chart.key}-title"),
        el("desc", chart.summary, id=f"{chart.key}-desc"),
        *parts,
        class_=f"chart tint-{chart.tint}",
        viewBox=f"0 0 {WIDTH} {height}",
        role="img",
        aria_labelledby=f"{chart.key}-title {chart.key}-desc",
    )


def _frame(chart: Chart) -> _Frame:
    ys = list(values(chart.marks))
    log = not chart.shares and scales.spans_decades(ys)
    low, high = scales.padded(ys, log)
    if chart.shares:
        low, high = max(0.0, low), min(1.0, high)
    x_low, x_high = chart.x_range or _extent(x for m in chart.marks if not isinstance(m, Rule) for x in m.x)
    labelled = any(isinstance(mark, Line) and mark.label for mark in chart.marks)
    right = RIGHT if labelled else RIGHT_UNLABELLED
    x = Scale(x_low, x_high if x_high > x_low else x_low + 1, LEFT, right, chart.x_log)
    y = Scale(low, high, BOTTOM, TOP, log)
    if chart.shares:
        return _Frame(
            x,
            y,
            right,
            lambda v: [f"{t}\u00a0%" for t in numbers.tick_labels([s * 100 for s in v])],
            numbers.percent,
        )
    return _Frame(x, y, right, numbers.power_labels if log else numbers.tick_labels)


def _grid(frame: _Frame) -> Iterable[Markup]:
    values = frame.y.ticks(4)
    for value, text in zip(values, frame.label(values), strict=True):
        at = frame.y(value)
        yield el("path", d=f"M{LEFT} {place(at)}H{place(frame.right)}", class_="grid")
        yield el("text", text, x=LEFT - 8, y=at, dy="0.35em", class_="end")


def _x_axis(chart: Chart, frame: _Frame) -> Iterable[Markup]:
    below = BOTTOM + (STRIP if chart.strip else 0)
    whole = float(frame.x.high).is_integer()
    values = [v for v in frame.x.ticks(5) if not whole or frame.x.high < 4 or float(v).is_integer()]
    texts = numbers.power_labels(values) if chart.x_log else numbers.tick_labels(values)
    if chart.x_names:
        values, texts = [float(i) for i in range(len(chart.x_names))], list(chart.x_names)
    yield el("path", d=f"M{LEFT} {BOTTOM}H{place(frame.right)}", class_="axis")
    for value, text in zip(values, texts, strict=True):
        at = frame.x(value)
        yield el("path", d=f"M{place(at)} {below}v5", class_="axis")
        yield el("text", text, x=at, y=below + 8, dy="0.9em", class_="middle")
    yield el("text", chart.x_label, x=frame.right, y=below + 29, dy="0.9em", class_="end quiet")


def _mark(mark: Line | Band | Dots | Spots | Whiskers, frame: _Frame) -> Markup:
    if isinstance(mark, Line):
        return el(
            "path", d=_path(_points(mark.x, mark.y, frame)), class_=_tinted(f"line {mark.style}", mark.tint)
        )
    if isinstance(mark, Spots):
        return el("g", *_spots(mark, frame), class_=f"spots tint-{mark.tint}")
    if isinstance(mark, Whiskers):
        return el("path", d=_whiskers(mark, frame), class_=f"whiskers tint-{mark.tint}")
    if isinstance(mark, Band):
        high, low = _points(mark.x, mark.high, frame), _points(mark.x, mark.low, frame)
        return el("path", d=_area(high, low), class_=_tinted("band", mark.tint))
    # A zero-length stroke with round caps is drawn as a dot, and is much shorter than a circle element.
    dots = "".join(f"M{place(x)} {place(y)}h0" for x, y in _points(mark.x, mark.y, frame) if _real(x, y))
    return el("path", d=dots, class_=_tinted("dots", mark.tint))


def _tinted(classes: str, tint: str) -> str:
    return f"{classes} tint-{tint}" if tint else classes


def _spots(mark: Spots, frame: _Frame) -> Iterable[Markup]:
    for x, y in _points(mark.x, mark.y, frame):
        if _real(x, y):
            yield el("circle", cx=x, cy=y, r=4)


def _whiskers(mark: Whiskers, frame: _Frame) -> str:
    ends = zip(mark.x, mark.low, mark.high, strict=True)
    bars = [(frame.x(x), frame.y(low), frame.y(high)) for x, low, high in ends if high > low]
    return "".join(
        f"M{place(x)} {place(low)}V{place(high)}M{place(x - 3)} {place(low)}h6M{place(x - 3)} {place(high)}h6"
        for x, low, high in bars
        if _real(x, low) and math.isfinite(high)
    )


def _rule(mark: Rule, frame: _Frame) -> Markup:
    at = frame.y(mark.y)
    if not math.isfinite(at):
        return Markup("")
    above = at > TOP + 20
    return el(
        "g",
        el("path", d=f"M{LEFT} {place(at)}H{place(frame.right)}", class_="rule"),
        el(
            "text",
            mark.text,
            x=frame.right,
            y=at - 6 if above else at + 6,
            dy=None if above else "0.8em",
            class_="end quiet",
        ),
    )


def _end_labels(chart: Chart, frame: _Frame) -> Iterable[Markup]:
    ends = []
    for mark in chart.marks:
        if isinstance(mark, Line) and mark.label:
            real = [p for p in zip(mark.x, mark.y, strict=True) if _real(frame.x(p[0]), frame.y(p[1]))]
            ends += [(mark, real[-1])] if real else []
    tall = NAMED if any(mark.name for mark, _ in ends) else LABELLED
    spots = scales.apart([frame.y(y) for _, (_, y) in ends], tall)
    # To the right of the longest line, so that no label covers a line.
    label_x = max((frame.x(at) for _, (at, _) in ends), default=0.0) + 9
    for (mark, (at, value)), spot in zip(ends, spots, strict=True):
        yield el("circle", cx=frame.x(at), cy=frame.y(value), r=3.5, class_=_tinted("end-dot", mark.tint))
        lines = [mark.name, frame.value(value)] if mark.name else [frame.value(value)]
        for i, text in enumerate(lines):
            dy = f"{0.35 + 1.15 * (i - (len(lines) - 1) / 2):.3g}em"
            yield el("text", text, x=label_x, y=spot, dy=dy, class_=_tinted("direct", mark.tint))


def _strip(strip: Strip, frame: _Frame) -> Iterable[Markup]:
    tallest = max(strip.counts, default=0) or 1
    base = BOTTOM + STRIP
    for left, right, count in zip(strip.edges, strip.edges[1:], strip.counts, strict=False):
        a, b = frame.x(left), frame.x(right)
        tall = (STRIP - 8) * count / tallest
        yield el("rect", x=a + 1, y=base - tall, width=max(0.5, b - a - 2), height=tall, class_="strip")
    yield el("path", d=f"M{LEFT} {base}H{place(frame.right)}", class_="axis")


def _hints(hints: Sequence[Hint], frame: _Frame, bottom: float) -> Iterable[Markup]:
    xs = [frame.x(h.x) for h in hints]
    for i, (hint, x) in enumerate(zip(hints, xs, strict=True)):
        left = LEFT if i == 0 else (xs[i - 1] + x) / 2
        right = frame.right if i == len(xs) - 1 else (x + xs[i + 1]) / 2
        yield el(
            "g",
            el("rect", x=left, y=TOP, width=max(1.0, right - left), height=bottom - TOP),
            el("path", d=f"M{place(x)} {TOP}V{place(bottom)}"),
            el("title", hint.text),
            class_="hint",
        )


def _points(x: Floats, y: Floats, frame: _Frame) -> list[tuple[float, float]]:
    return [(frame.x(a), frame.y(b)) for a, b in zip(x, y, strict=True)]


def _path(points: Sequence[tuple[float, float]]) -> str:
    """Return a path with one stroke for each sequence of finite points."""
    runs = _runs(points)
    return "".join(
        "M" + "L".join(f"{place(x)} {place(y)}" for x, y in run) + ("h0" if len(run) == 1 else "")
        for run in runs
    )


def _area(high: Sequence[tuple[float, float]], low: Sequence[tuple[float, float]]) -> str:
    both = [(a, b) if _real(*a) and _real(*b) else None for a, b in zip(high, low, strict=True)]
    text, run = "", list[tuple[tuple[float, float], tuple[float, float]]]()
    for pair in [*both, None]:
        if pair is not None:
            run.append(pair)
        elif run:
            outline = [a for a, _ in run] + [b for _, b in reversed(run)]
            text += "M" + "L".join(f"{place(x)} {place(y)}" for x, y in outline) + "Z"
            run = []
    return text


def _runs(points: Sequence[tuple[float, float]]) -> list[list[tuple[float, float]]]:
    runs: list[list[tuple[float, float]]] = [[]]
    for point in points:
        if _real(*point):
            runs[-1].append(point)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _extent(values: Iterable[float]) -> tuple[float, float]:
    finite = [v for v in values if math.isfinite(v)]
    return (min(finite), max(finite)) if finite else (0.0, 1.0)


def _real(x: float, y: float) -> bool:
    return math.isfinite(x) and math.isfinite(y)
