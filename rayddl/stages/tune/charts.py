"""The charts of a search on the page: all trials on their way, by each setting, and through all of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from rayddl.report import numbers, scales
from rayddl.report.charts import Chart, Dots, Hint, Line
from rayddl.report.parallel import Axis, Parallel
from rayddl.report.run import Place, ReportedStage
from rayddl.report.sections import slug
from rayddl.report.values import Columns


@dataclass(frozen=True)
class Tune(ReportedStage):
    """A search: one row of ``trials`` per trial, of ``progress`` per report of each.

    ``settings`` has one array for each setting searched: numbers, or texts. ``pictures`` are of the best set,
    where a set was searched for.
    """

    place: ClassVar[Place] = Place.SEARCHED
    poster: ClassVar[bool] = True

    trials: Columns
    progress: Columns
    settings: Columns


def ranked(searched: Tune) -> list[int]:
    """Positions of the trials, the best first; those without a figure last."""
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
        # The figure of a trial that diverged is a stand-in, and would draw the axis down to it.
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
    """For each setting, the metric of the trials by their value of it."""
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


def _logarithmic(searched: Tune, name: str) -> bool:
    return "loguniform" in ((searched.stage.summary.get("space") or {}).get(name) or {})


def parallel(searched: Tune, key: str) -> Parallel:
    """A line for each trial through the axes of all settings, to its metric."""
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
    """A value of the metric as a person reads it."""
    return numbers.percent(value) if shares(searched) else numbers.figure(value)


def shares(searched: Tune) -> bool:
    """True if the metric is a share of 1."""
    return searched.stage.summary.get("metric") == "accuracy"


def as_values(column: Any) -> list[float | str | None]:
    """Numbers and texts as they are; ``None`` where a setting was not in play."""
    found: list[float | str | None] = []
    for value in column.tolist():
        if isinstance(value, str):
            found.append(None if value == "nan" else value)
        else:
            found.append(float(value) if math.isfinite(value) else None)
    return found


def as_text(value: float | str | None) -> str:
    """A setting as a person reads it."""
    return numbers.ABSENT if value is None else value if isinstance(value, str) else numbers.figure(value, 4)
