"""Tune stages: how the trials went, what decided, and what the winner is worth."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from rayddl.report import numbers, scales
from rayddl.report.bars import Bar, Bars, Group
from rayddl.report.charts import Chart, Dots, Hint, Line
from rayddl.report.parallel import Axis, Parallel
from rayddl.report.pictures import gallery
from rayddl.report.run import Tune, number
from rayddl.report.sections import Fact, Panel, Section, slug
from rayddl.report.tables import Cell, Column, Table

ENDED = {
    "whole": "to the end",
    "stopped": "stopped early",
    "diverged": "diverged",
    "failed": "failed",
    "budget": "budget used up",
}
OPEN_TRIALS = 30
"""Trials above which their table is folded away."""


def section(searched: Tune, alone: bool, budget: int) -> Section:
    """One search: its winner, all trials, what mattered."""
    stage = searched.stage
    key = slug("tune", stage.name)
    table = _table(searched)
    folded = len(table.rows) > OPEN_TRIALS
    panels = tuple(panel for panel in (_duel(searched), _importance(searched)) if panel is not None)
    drawn = searched.pictures
    return Section(
        key=key,
        title="Search" if alone else f"Search of {stage.name}",
        short="Search" if alone else stage.name,
        lead=_lead(searched),
        facts=tuple(_facts(searched)),
        panels=panels,
        gallery=gallery(drawn, f"{stage.folder}/set/images", budget) if drawn and len(drawn.labels) else None,
        charts=tuple(c for c in (_progress(searched, key), *_slices(searched, key)) if not c.empty),
        parallel=_parallel(searched, key) if len(searched.trials["trial"]) > 1 else None,
        tables=() if folded else (table,),
        folded=(table,) if folded else (),
    )


def held_out(searched: Tune) -> float:
    """The best settings' mean on seeds that the search never saw; NaN if unknown."""
    values = (searched.stage.summary.get("best") or {}).get("held_out") or []
    return float(np.mean(values)) if values else math.nan


def _lead(searched: Tune) -> str:
    s = searched.stage.summary
    what = ", ".join(str(name) for name in s.get("space") or {})
    by = str(s.get("searcher", ""))
    with_ = f" and {s['scheduler']}" if s.get("scheduler") not in (None, "none") else ""
    return (
        f"{numbers.counted(len(searched.trials['trial']), 'trial')} of {s.get('of', '?')}, chosen by {by}{with_} over "
        f"{what}. The best settings are in {searched.stage.folder}/best.yaml."
    )


def _facts(searched: Tune) -> Iterable[Fact]:
    s = searched.stage.summary
    best = s.get("best") or {}
    yield Fact(
        _figure(searched, number(best.get("value"))),
        f"{s.get('metric', 'metric')} of trial {best.get('trial')}",
    )
    margin = number(s.get("margin"))
    if math.isfinite(margin):
        yield Fact(f"{numbers.points(margin)} points", "over the template's own settings, held-out seeds")
    counts = s.get("ended") or {}
    for how, text in ENDED.items():
        if counts.get(how):
            yield Fact(numbers.count(number(counts[how])), text)
    yield Fact(numbers.duration(number(s.get("trial_seconds"))), "of trials' work")
    yield Fact(numbers.duration(searched.stage.seconds), "in all")


def _figure(searched: Tune, value: float) -> str:
    return numbers.percent(value) if _shares(searched) else numbers.figure(value)


def _shares(searched: Tune) -> bool:
    return searched.stage.summary.get("metric") == "accuracy"


def _duel(searched: Tune) -> Panel | None:
    s = searched.stage.summary
    bars = []
    for who, label, tint in (("best", "best settings", "set"), ("own", "template's own settings", "random")):
        values = tuple(float(v) for v in (s.get(who) or {}).get("held_out") or ())
        if values:
            mean, std = float(np.mean(values)), float(np.std(values))
            text = numbers.spread(mean, std, len(values) > 1)
            hints = tuple(f"seed {i}: {numbers.percent(v)}" for i, v in enumerate(values))
            bars.append(Bar(label, mean, text, tint, std=std, singles=values, hints=hints))
    if not bars:
        return None
    note = "Seeds that the search never saw. Dots: single seeds. Whisker: ± one deviation."
    return Panel("Accuracy on held-out seeds", Bars((Group("", "", tuple(bars)),), shares=True), note)


def _importance(searched: Tune) -> Panel | None:
    found = searched.stage.summary.get("importance") or {}
    values = found.get("values") or {}
    if not values:
        return None
    bars = tuple(
        Bar(name, float(value), numbers.percent(float(value), 0), "loss")
        for name, value in sorted(values.items(), key=lambda item: -item[1])
    )
    note = f"Share of the figure's variance that a setting explains by itself ({found.get('method')})."
    return Panel("Importance of each setting", Bars((Group("Importance", "", bars),), shares=True), note)


def _order(searched: Tune) -> list[int]:
    """Positions of the trials, the best first; those without a figure last."""
    t = searched.trials
    sign = -1.0 if searched.stage.summary.get("mode") == "max" else 1.0
    sound = [str(e) not in ("diverged", "failed") for e in t["ended"]]
    best = (searched.stage.summary.get("best") or {}).get("trial")
    return sorted(
        range(len(t["trial"])),
        key=lambda i: (int(t["trial"][i]) != best, not sound[i], sign * float(t["value"][i])),
    )


def _progress(searched: Tune, key: str) -> Chart:
    p, ranking = searched.progress, _order(searched)
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
        shares=_shares(searched),
    )


def _slices(searched: Tune, key: str) -> Iterable[Chart]:
    for name, values in searched.settings.items():
        chart = _slice(searched, f"{key}-{slug(name)}", name, _values(values))
        if chart is not None:
            yield chart


def _slice(searched: Tune, key: str, name: str, values: Sequence[float | str | None]) -> Chart | None:
    t, best = searched.trials, _order(searched)[0]
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
    figures = {i: _figure(searched, float(t["value"][i])) for i in rows}
    winner = (Line([xs[best]], [float(t["value"][best])], label=True),) if best in xs else ()
    return Chart(
        key=key,
        title=name,
        summary=f"{len(rows)} trials by {name}.",
        x_label=name + (" (logarithmic)" if log else ""),
        marks=(Dots([xs[i] for i in rows], [float(t["value"][i]) for i in rows]), *winner),
        note="Each dot is a trial at its last report. Labelled: the best.",
        shares=_shares(searched),
        x_range=(low, high),
        x_log=log,
        x_names=texts,
        hints=tuple(
            Hint(xs[i], f"trial {int(t['trial'][i])}: {name} {_text(values[i])}, {figures[i]}") for i in rows
        ),
    )


def _logarithmic(searched: Tune, name: str) -> bool:
    return "loguniform" in ((searched.stage.summary.get("space") or {}).get(name) or {})


def _parallel(searched: Tune, key: str) -> Parallel:
    t, order = searched.trials, _order(searched)
    kept = [i for i in order if str(t["ended"][i]) not in ("diverged", "failed")]
    settings = {name: _values(values) for name, values in searched.settings.items()}
    axes = [
        Axis(name, [values[i] for i in kept], log=_logarithmic(searched, name))
        for name, values in settings.items()
    ]
    metric = str(searched.stage.summary.get("metric", "metric"))
    figures = [float(t["value"][i]) for i in kept]
    texts = tuple(
        f"trial {int(t['trial'][i])}: {_figure(searched, float(t['value'][i]))}; "
        + ", ".join(
            f"{name} {_text(values[i])}" for name, values in settings.items() if values[i] is not None
        )
        for i in kept
    )
    return Parallel(
        f"{key}-parallel",
        "Settings and what they came to",
        f"{len(kept)} trials over {len(settings)} settings and {metric}.",
        (*axes, Axis(metric, figures, _shares(searched))),
        texts,
        tuple(range(len(kept))),
        "One line per trial. Coloured: the best quarter; bold: the best.",
    )


def _table(searched: Tune) -> Table:
    t = searched.trials
    settings = {name: _values(values) for name, values in searched.settings.items()}
    columns = (
        Column("Trial", True),
        Column(str(searched.stage.summary.get("metric", "value")), True),
        Column("Ended"),
        Column("Iterations", True),
        Column("Work", True),
        *(Column(name, not Axis(name, values).texts) for name, values in settings.items()),
        *((Column("Reason"),) if any(str(r) for r in t["reason"]) else ()),
    )
    rows = tuple(_cells(searched, settings, i, first=k == 0) for k, i in enumerate(_order(searched)))
    return Table("All trials, the best first", columns, rows)


def _cells(
    searched: Tune, settings: dict[str, list[float | str | None]], i: int, *, first: bool
) -> tuple[Cell, ...]:
    t = searched.trials
    ended, value = str(t["ended"][i]), float(t["value"][i])
    sound = ended not in ("diverged", "failed")
    return (
        Cell(f"{int(t['trial'][i])}", float(t["trial"][i]), strong=first),
        Cell(_figure(searched, value) if sound else numbers.ABSENT, value if sound else math.nan, strong=first),
        Cell(ENDED.get(ended, ended)),
        Cell(numbers.count(float(t["iteration"][i])), float(t["iteration"][i])),
        Cell(numbers.duration(float(t["seconds"][i])), float(t["seconds"][i])),
        *(_setting_cell(values[i]) for values in settings.values()),
        *((Cell(str(t["reason"][i])),) if any(str(r) for r in t["reason"]) else ()),
    )  # fmt: skip


def _setting_cell(value: float | str | None) -> Cell:
    return Cell(_text(value), value if isinstance(value, float) else math.nan)


def _values(column: Any) -> list[float | str | None]:
    """Numbers and texts as they are; ``None`` where a setting was not in play."""
    found: list[float | str | None] = []
    for value in column.tolist():
        if isinstance(value, str):
            found.append(None if value == "nan" else value)
        else:
            found.append(float(value) if math.isfinite(value) else None)
    return found


def _text(value: float | str | None) -> str:
    return numbers.ABSENT if value is None else value if isinstance(value, str) else numbers.figure(value, 4)
