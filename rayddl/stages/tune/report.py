"""The report section of ``kind: tune``: the trials, the importance of settings, and the best settings."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from rayddl.data.distilled import DistilledSet
from rayddl.report import numbers
from rayddl.report.bars import Bar, Bars, Group
from rayddl.report.parallel import Axis
from rayddl.report.pictures import gallery
from rayddl.report.run import Part, Place, Run
from rayddl.report.sections import Fact, Panel, Section, links_to, slug
from rayddl.report.tables import Cell, Column, Table
from rayddl.report.values import number
from rayddl.stages.context import Input
from rayddl.stages.finished import as_stage, columns, pictures
from rayddl.stages.tune import charts
from rayddl.stages.tune.charts import Tune
from rayddl.stages.tune.store import DEVIATION, SETTING

ENDED = {
    "whole": "to the end",
    "stopped": "stopped early",
    "diverged": "diverged",
    "failed": "failed",
    "budget": "budget used up",
}
OPEN_TRIALS = 30
"""Number of trials above which their table is collapsed."""
TINT = "random"
TRIALS = ("trial", "ended", "reason", "value", "iteration", "seconds")
PROGRESS = ("trial", "iteration", "metric", "seconds")


def read(found: Input) -> Tune:
    """Read a finished search."""
    searched = [f"{SETTING}{key}" for key in found.summary["space"]]
    spread = (DEVIATION,) if DEVIATION in (found.summary.get("metrics") or ()) else ()
    trials = columns(found, "trials.parquet", (*TRIALS, *spread, *searched))
    made = found.folder.child("set")
    return Tune(
        as_stage(found, TINT),
        {name: trials[name] for name in (*TRIALS, *spread)},
        columns(found, "progress.parquet", PROGRESS),
        {key: trials[f"{SETTING}{key}"] for key in found.summary["space"]},
        pictures=pictures(DistilledSet.load(made)) if made.has("set.json") else None,
    )


def part(searches: Sequence[Tune], run: Run) -> Part:
    """A section per search."""
    alone = len(searches) == 1
    sections = tuple((Place.SEARCHED, section(each, alone, run.budget)) for each in searches)
    lead = Markup("<strong>{}</strong> tried; the best reach <strong>{}</strong> on fresh seeds.").format(
        numbers.counted(int(searches[0].stage.summary.get("trials") or 0), "setting"),
        numbers.percent(held_out(searches[0])),
    )
    return Part(Place.SEARCHED, sections, lead)


def section(searched: Tune, alone: bool, budget: int) -> Section:
    """The section of one search: its best settings, all trials, and the importance of settings."""
    stage = searched.stage
    key = slug("tune", stage.name)
    table = _table(searched)
    folded = len(table.rows) > OPEN_TRIALS
    found = charts.grid(searched, key)
    drawings = (charts.progress(searched, key), *((found,) if found else charts.slices(searched, key)))
    panels = tuple(panel for panel in (_duel(searched), _importance(searched)) if panel is not None)
    drawn = searched.pictures
    return Section(
        key=key,
        title="Search" if alone else f"Search of {stage.name}",
        short="Search" if alone else stage.name,
        lead=_lead(searched),
        made_by=links_to([stage]),
        facts=tuple(_facts(searched)),
        panels=panels,
        gallery=gallery(drawn, f"{stage.folder}/set/images", budget) if drawn and len(drawn.labels) else None,
        charts=tuple(c for c in drawings if not c.empty),
        parallel=charts.parallel(searched, key) if len(searched.trials["trial"]) > 1 else None,
        tables=() if folded else (table,),
        folded=(table,) if folded else (),
    )


def held_out(searched: Tune) -> float:
    """The best settings' mean on seeds that the search did not use; NaN if unknown."""
    values = (searched.stage.summary.get("best") or {}).get("held_out") or []
    return float(np.mean(values)) if values else math.nan


def _lead(searched: Tune) -> str:
    s = searched.stage.summary
    what = ", ".join(str(name) for name in s.get("space") or {})
    by = str(s.get("searcher", ""))
    with_ = f" and {s['scheduler']}" if s.get("scheduler") not in (None, "none") else ""
    return (
        f"{numbers.counted(len(searched.trials['trial']), 'trial')} of {s.get('of', '?')}, chosen by {by}{with_} over "
        f"{what}. The best settings are in {searched.stage.folder}/best.yaml.{_chosen_on(s)}"
    )


def _chosen_on(summary: Mapping[str, Any]) -> str:
    """A warning about accuracies of the images by which settings were chosen."""
    if "accuracy" not in str(summary.get("metric", "")):
        return ""
    return " Trials were compared on the source's held-out images, as in published work: accuracies are a little high."


def _facts(searched: Tune) -> Iterable[Fact]:
    s = searched.stage.summary
    best = s.get("best") or {}
    yield Fact(
        charts.figure(searched, number(best.get("value"))),
        f"{s.get('metric', 'metric')} of trial {best.get('trial')}",
    )
    margin = number(s.get("margin"))
    if math.isfinite(margin):
        yield Fact(f"{numbers.points(margin)} points", "over the template's own settings, fresh seeds")
    counts = s.get("ended") or {}
    for how, text in ENDED.items():
        if counts.get(how):
            yield Fact(numbers.count(number(counts[how])), text)
    yield Fact(numbers.duration(number(s.get("trial_seconds"))), "of trials' work")
    yield Fact(numbers.duration(searched.stage.seconds), "in all")


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
    return Panel("Accuracy on fresh seeds", Bars((Group("", "", tuple(bars)),), shares=True), note)


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


def _table(searched: Tune) -> Table:
    t = searched.trials
    settings = {name: charts.as_values(values) for name, values in searched.settings.items()}
    columns = (
        Column("Trial", True),
        Column(str(searched.stage.summary.get("metric", "value")), True),
        Column("Ended"),
        Column("Iterations", True),
        Column("Work", True),
        *(Column(name, not Axis(name, values).texts) for name, values in settings.items()),
        *((Column("Reason"),) if any(str(r) for r in t["reason"]) else ()),
    )
    rows = tuple(_cells(searched, settings, i, first=k == 0) for k, i in enumerate(charts.ranked(searched)))
    return Table("All trials, the best first", columns, rows)


def _cells(
    searched: Tune, settings: dict[str, list[float | str | None]], i: int, *, first: bool
) -> tuple[Cell, ...]:
    t = searched.trials
    ended, value = str(t["ended"][i]), float(t["value"][i])
    sound = ended not in ("diverged", "failed")
    return (
        Cell(f"{int(t['trial'][i])}", float(t["trial"][i]), strong=first),
        Cell(charts.figure(searched, value) if sound else numbers.ABSENT, value if sound else math.nan, strong=first),
        Cell(ENDED.get(ended, ended)),
        Cell(numbers.count(float(t["iteration"][i])), float(t["iteration"][i])),
        Cell(numbers.duration(float(t["seconds"][i])), float(t["seconds"][i])),
        *(_setting_cell(values[i]) for values in settings.values()),
        *((Cell(str(t["reason"][i])),) if any(str(r) for r in t["reason"]) else ()),
    )  # fmt: skip


def _setting_cell(value: float | str | None) -> Cell:
    return Cell(charts.as_text(value), value if isinstance(value, float) else math.nan)
