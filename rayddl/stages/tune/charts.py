"""The charts of a search: trials' metrics over reports, by each setting, and in parallel coordinates."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from rayddl.report import numbers, scales
from rayddl.report.charts import Chart, Dots, Hint, Line, Mark, Spots, Whiskers
from rayddl.report.parallel import Axis, Parallel
from rayddl.report.run import Place, ReportedStage
from rayddl.report.sections import slug
from rayddl.report.values import Columns
from rayddl.stages.tune.store import DEVIATION

TINTS = ("set", "loss", "experts", "whole", "random")
"""Colours of the lines of a grid search."""
LONG = 1e6
"""Whole numbers from here on are written with four digits."""


@dataclass(frozen=True)
class Tune(ReportedStage):
    """A search: ``trials`` has a row per trial, ``progress`` a row per trial and report.

    ``settings`` has one array of numbers or texts for each setting searched. ``pictures`` show the best set, if
    trials make sets.
    """

    place: ClassVar[Place] = Place.SEARCHED
    poster: ClassVar[bool] = True

    trials: Columns
    progress: Columns
    settings: Columns


def ranked(searched: Tune) -> list[int]:
    """Indices of the trials, the best first; trials without a finite metric are last."""
    t = searched.trials
    sign = -1.0 if searched.stage.summary.get("mode") == "max" else 1.0
    sound = [str(e) not in ("diverged", "failed") for e in t["ended"]]
    best = (searched.stage.summary.get("best") or {}).get("trial")
    return sorted(
        range(len(t["trial"])),
        key=lambda i: (int(t["trial"][i]) != best, not sound[i], sign * float(t["value"][i])),
    )


def progress(searched: Tune, key: str) -> Chart:
    """The metric of every trial at its reports, the best one in bold."""
    p, ranking = searched.progress, ranked(searched)
    numbers_of = [int(searched.trials["trial"][i]) for i in ranking]
    failed = {int(n) for n, e in zip(searched.trials["trial"], searched.trials["ended"], strict=True)
              if str(e) in ("diverged", "failed")}  # fmt: skip
    lines: list[Line | Dots] = []
    for trial in reversed(numbers_of):
        # A diverged trial's value is a placeholder, which would extend the axis.
        mine = p["trial"] == trial
        x, y = p["iteration"][mine].tolist(), p["metric"][mine].tolist()
        if trial in failed:
            x, y = x[:-1], y[:-1]
        best = trial == numbers_of[0]
        lines.append(Line(x, y, "mean" if best else "raw", label=best))
        if len(x) == 1:
            lines.append(Dots(x, y))
    metric = str(searched.stage.summary.get("metric", "metric"))
    return Chart(
        key=f"{key}-progress",
        title=f"{metric.capitalize()} of all trials on their way",
        summary=f"{len(numbers_of)} trials; bold: trial {numbers_of[0] if numbers_of else '–'}, the best.",
        x_label="iteration",
        marks=tuple(lines),
        note="Bold: the best trial. A line that ends early was stopped.",
        shares=shares(searched),
    )


def slices(searched: Tune, key: str) -> Iterable[Chart]:
    """For each setting, a chart of the trials' metric over the setting's value."""
    for name, values in searched.settings.items():
        chart = _slice(searched, f"{key}-{slug(name)}", name, as_values(values))
        if chart is not None:
            yield chart


def _slice(searched: Tune, key: str, name: str, values: Sequence[float | str | None]) -> Chart | None:
    t, best = searched.trials, ranked(searched)[0]
    rows = [
        i for i, v in enumerate(values) if v is not None and str(t["ended"][i]) not in ("diverged", "failed")
    ]
    if not rows:
        return None
    axis = Axis(name, values)
    texts = axis.texts
    xs = {i: float(texts.index(str(values[i]))) if texts else float(values[i] or 0.0) for i in rows}
    rows.sort(key=lambda i: xs[i])
    log = not texts and (_logarithmic(searched, name) or scales.spans_decades(xs.values()))
    low, high = (-0.5, len(texts) - 0.5) if texts else scales.padded(xs.values(), log)
    figures = {i: figure(searched, float(t["value"][i])) for i in rows}
    winner = (Line([xs[best]], [float(t["value"][best])], label=True),) if best in xs else ()
    return Chart(
        key=key,
        title=name,
        summary=f"{len(rows)} trials by {name}.",
        x_label=name + (" (logarithmic)" if log else ""),
        marks=(Dots([xs[i] for i in rows], [float(t["value"][i]) for i in rows]), *winner),
        note="Each dot is a trial at its last report. Labelled: the best.",
        shares=shares(searched),
        x_range=(low, high),
        x_log=log,
        x_names=texts,
        hints=tuple(
            Hint(xs[i], f"trial {int(t['trial'][i])}: {name} {as_text(values[i])}, {figures[i]}")
            for i in rows
        ),
    )


def grid(searched: Tune, key: str) -> Chart | None:
    """The metric of a grid search against one setting, with a line for each value of the other.

    ``None`` for a search of another kind, and for more than two settings of several values, or more lines than
    :data:`TINTS`.
    """
    space, searcher = (searched.stage.summary.get(k) for k in ("space", "searcher"))
    if searcher != "grid" or not isinstance(space, dict):
        return None
    lists = {name: found for name, entry in space.items() if len(found := _listed(entry)) > 1}
    if not 1 <= len(lists) <= 2:
        return None
    # Numbers of more values lie along the axis.
    across, *others = sorted(lists, key=lambda name: (not _numbers(lists[name]), -len(lists[name])))
    lines = lists[others[0]] if others else [None]
    if len(lines) > len(TINTS):
        return None
    axis = Axis(across, lists[across])
    texts = () if _numbers(lists[across]) else tuple(as_text(value) for value in lists[across])
    log = not texts and scales.spans_decades(float(v or 0.0) for v in axis.values)
    columns = {name: as_values(searched.settings[name]) for name in lists}
    marks: list[Mark] = []
    texts_at: dict[float, list[str]] = {}
    for tint, wanted in zip(TINTS, lines, strict=False):
        rows = [
            (float(texts.index(str(columns[across][i])) if texts else columns[across][i] or 0.0), i)
            for i in range(len(searched.trials["trial"]))
            if _sound(searched, i)
            and columns[across][i] is not None
            and (not others or columns[others[0]][i] == wanted)
        ]
        rows.sort()
        named = f"{others[0]} {as_text(wanted)}" if others else ""
        marks += _line(searched, rows, tint, named)
        for x, i in rows:
            at = f"{named}{', ' if named else ''}{across} {as_text(columns[across][i])}"
            texts_at.setdefault(x, []).append(f"{at}: {_measured(searched, i)}")
    metric = str(searched.stage.summary.get("metric", "metric")).capitalize()
    title = f"{metric} by {' and '.join([across, *others])}"
    hints = [Hint(x, "; ".join(each)) for x, each in sorted(texts_at.items())]
    return Chart(
        key=f"{key}-grid",
        title=title,
        summary=f"{title}: {'; '.join(hint.text for hint in hints)}.",
        x_label=across + (" (logarithmic)" if log else ""),
        marks=tuple(marks),
        note="Dot: a trial at its last report. Whisker: ± one deviation of its students.",
        shares=shares(searched),
        x_range=(-0.5, len(texts) - 0.5) if texts else scales.padded(texts_at, log),
        x_log=log,
        x_names=texts,
        hints=tuple(hints),
    )


def _line(searched: Tune, rows: Sequence[tuple[float, int]], tint: str, name: str) -> list[Mark]:
    x, y = [at for at, _ in rows], [float(searched.trials["value"][i]) for _, i in rows]
    found: list[Mark] = [Line(x, y, label=True, tint=tint, name=name), Spots(x, y, tint)] if rows else []
    std = [_deviation(searched, i) for _, i in rows]
    known = [k for k, each in enumerate(std) if math.isfinite(each)]
    low, high = ([y[k] + sign * std[k] for k in known] for sign in (-1, 1))
    return [*found, Whiskers([x[k] for k in known], low, high, tint)] if known else found


def _measured(searched: Tune, i: int) -> str:
    value, std = float(searched.trials["value"][i]), _deviation(searched, i)
    if math.isfinite(std) and shares(searched):
        return numbers.spread(value, std, True)
    return figure(searched, value)


def _deviation(searched: Tune, i: int) -> float:
    """The standard deviation over the students of a trial; NaN if there is one student, or another metric."""
    column = searched.trials.get(DEVIATION) if shares(searched) else None
    return math.nan if column is None else float(column[i])


def _listed(entry: Any) -> list[float | str | None]:
    """The values of a list of the space, as the column of trials has them."""
    values = list(entry.get("grid") or entry.get("choice") or ())
    if any(isinstance(v, bool) or not isinstance(v, int | float) for v in values):
        return [v if isinstance(v, str) else json.dumps(v) for v in values]
    return [float(v) for v in values]


def _numbers(values: Sequence[float | str | None]) -> bool:
    return all(isinstance(v, float) for v in values)


def _sound(searched: Tune, i: int) -> bool:
    return str(searched.trials["ended"][i]) not in ("diverged", "failed")


def _logarithmic(searched: Tune, name: str) -> bool:
    return "loguniform" in ((searched.stage.summary.get("space") or {}).get(name) or {})


def parallel(searched: Tune, key: str) -> Parallel:
    """Parallel coordinates: a line per trial through the axes of all settings and the metric."""
    t, order = searched.trials, ranked(searched)
    kept = [i for i in order if str(t["ended"][i]) not in ("diverged", "failed")]
    settings = {name: as_values(values) for name, values in searched.settings.items()}
    axes = [
        Axis(name, [values[i] for i in kept], log=_logarithmic(searched, name))
        for name, values in settings.items()
    ]
    metric = str(searched.stage.summary.get("metric", "metric"))
    figures = [float(t["value"][i]) for i in kept]
    texts = tuple(
        f"trial {int(t['trial'][i])}: {figure(searched, float(t['value'][i]))}; "
        + ", ".join(
            f"{name} {as_text(values[i])}" for name, values in settings.items() if values[i] is not None
        )
        for i in kept
    )
    return Parallel(
        f"{key}-parallel",
        "Settings and what they came to",
        f"{len(kept)} trials over {len(settings)} settings and {metric}.",
        (*axes, Axis(metric, figures, shares(searched))),
        texts,
        tuple(range(len(kept))),
        "One line per trial. Coloured: the best quarter; bold: the best.",
    )


def figure(searched: Tune, value: float) -> str:
    """A value of the metric as text."""
    return numbers.percent(value) if shares(searched) else numbers.figure(value)


def shares(searched: Tune) -> bool:
    """True if the metric is a share of 1."""
    return searched.stage.summary.get("metric") == "accuracy"


def as_values(column: Any) -> list[float | str | None]:
    """The column as numbers and texts; ``None`` for trials in which the setting's condition did not hold."""
    found: list[float | str | None] = []
    for value in column.tolist():
        if isinstance(value, str):
            found.append(None if value == "nan" else value)
        else:
            found.append(float(value) if math.isfinite(value) else None)
    return found


def as_text(value: float | str | None) -> str:
    """A setting's value as text."""
    if value is None or isinstance(value, str):
        return value or numbers.ABSENT
    return numbers.count(value) if value.is_integer() and abs(value) < LONG else numbers.figure(value, 4)
