"""The output of a search: two tables, the definition that repeats the best trial, and a summary."""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rayddl import yaml_text
from rayddl.report import numbers
from rayddl.stages import parquet as tables
from rayddl.stages.context import Context
from rayddl.stages.kinds import known
from rayddl.stages.runtime.sizes import Share
from rayddl.stages.settings import Reads
from rayddl.stages.tune.importance import importance
from rayddl.stages.tune.plan import Search
from rayddl.stages.tune.settings import TuneConfig, configured, tunable_of
from rayddl.stages.tune.store import SETTING, Row
from rayddl.storage import Folder

TRIALS, PROGRESS, BEST = "trials.parquet", "progress.parquet", "best.yaml"
WORDS = {
    "whole": "to the end",
    "stopped": "stopped early",
    "diverged": "diverged",
    "failed": "failed",
    "budget": "cut off when the budget was used up",
}


@dataclass(frozen=True)
class Winner:
    """The best settings of a search, compared with the template's own."""

    best: Row
    own: Row
    """The template's own settings, at full length."""
    best_held_out: Sequence[float]
    own_held_out: Sequence[float]
    """Empty if the template's own settings have no finite metric."""

    @property
    def margin(self) -> float | None:
        """The difference of held-out means, best minus own settings; ``None`` if the latter is unknown."""
        if not self.own_held_out:
            return None
        return statistics.fmean(self.best_held_out) - statistics.fmean(self.own_held_out)


def best_of(search: Search, rows: Iterable[Row]) -> Row | None:
    """The best trial that ran to its end; if there is none, the best one with a finite metric."""
    sound = sorted((row for row in rows if row.sound), key=lambda row: row.number)
    best: Row | None = None
    for row in [row for row in sound if row.ended == "whole"] or sound:
        if best is None or search.better(row.value, best.value):
            best = row
    return best


def shown(search: Search, value: float) -> str:
    """A value of the metric as text."""
    return f"{100 * value:.1f} %" if search.metric == "accuracy" else f"{value:.4g}"


def write_tables(out: Folder, search: Search, rows: Sequence[Row]) -> None:
    """Write two tables: a row per trial, and a row per report of every trial."""
    ordered = sorted(rows, key=lambda row: row.number)
    metrics = sorted({name for row in ordered for report in row.reports for name in report.metrics})
    columns: dict[str, list[Any]] = {
        "trial": [row.number for row in ordered],
        "ended": [row.ended for row in ordered],
        "diverged": [row.ended == "diverged" for row in ordered],
        "reason": [row.reason for row in ordered],
        "value": [row.value for row in ordered],
        "iteration": [row.iteration for row in ordered],
        "seconds": [row.seconds for row in ordered],
        **{name: [_last(row, name) for row in ordered] for name in metrics},
        **{SETTING + key: _setting(key, ordered) for key in search.space},
    }
    types = {
        "trial": "int64", "ended": "string", "diverged": "bool", "reason": "string", "iteration": "int64",
        **{SETTING + key: "double" if _numeric(columns[SETTING + key]) else "string" for key in search.space},
    }  # fmt: skip
    tables.write(out, TRIALS, columns, {name: types.get(name, "double") for name in columns})
    reports = [(row, i) for row in ordered for i in range(len(row.reports))]
    progress: dict[str, list[Any]] = {
        "trial": [row.number for row, _ in reports],
        "iteration": [row.reports[i].iteration for row, i in reports],
        "metric": [row.reports[i].value for row, i in reports],
        "seconds": [sum(report.seconds for report in row.reports[: i + 1]) for row, i in reports],
    }
    kinds = {"trial": "int64", "iteration": "int64", "metric": "double", "seconds": "double"}
    tables.write(out, PROGRESS, progress, kinds)


def _last(row: Row, name: str) -> float | None:
    return row.reports[-1].metrics.get(name) if row.reports else None


def _setting(key: str, rows: Sequence[Row]) -> list[Any]:
    values = [row.settings.get(key) for row in rows]
    if _numeric(values):
        return [None if value is None else float(value) for value in values]
    return [
        None if value is None else value if isinstance(value, str) else json.dumps(value) for value in values
    ]


def _numeric(values: Sequence[Any]) -> bool:
    return all(v is None or (isinstance(v, int | float) and not isinstance(v, bool)) for v in values)


def write_best(
    config: TuneConfig,
    context: Context,
    search: Search,
    share: Share,
    winner: Winner,
    pinned: Mapping[str, Any],
) -> None:
    """Write the whole definition with the winner's settings in the template's place.

    ``pinned`` are settings that a trial resolved by its length; a shorter run would resolve them differently.
    """
    best = winner.best
    found = configured(config, context.templates, best.settings)
    definition = json.loads(json.dumps(context.definition))
    stages = {name: stage for name, stage in definition["stages"].items() if stage["kind"] != "tune"}
    gone = {name: stage["of"] for name, stage in definition["stages"].items() if stage["kind"] == "tune"}
    # Results are bit-identical only for the trial's number of threads.
    asked = {"num_cpus": share.num_cpus, **({"num_gpus": share.num_gpus} if share.num_gpus else {})}
    for name, varied in found.items():
        stages[name] = varied.model_dump(mode="json", exclude_unset=True) | {"resources": asked}
    for stage in stages.values():
        _rename(stage, gone)
    length = tunable_of(found[config.of]).length
    if length is not None:
        template = stages[config.of]
        template[length] = best.iteration
        template.setdefault("evaluate_every", search.stops[0])
        template |= pinned
    definition |= {"name": f"{definition['name']}-best", "stages": stages}
    text = yaml_text.dump(definition, allow_unicode=True, default_flow_style=None, width=100)
    context.out.write(
        BEST, ("".join(f"# {line}\n" for line in _head(config, context, search, winner)) + text).encode()
    )


def _head(config: TuneConfig, context: Context, search: Search, winner: Winner) -> Sequence[str]:
    best = winner.best
    return [
        f"The best settings that {context.stage!r} found for {config.of!r}: trial {best.number}, {search.metric} "
        f"{shown(search, best.value)} after {best.iteration:,} iterations"
        + (f" (its own: {shown(search, winner.own.value)})." if winner.own.sound else "."),
        "On seeds that the search never saw: "
        + held_out_text(winner.best_held_out)
        + (
            f", the template's own settings {held_out_text(winner.own_held_out)}."
            if winner.own_held_out
            else "."
        ),
        *(f"  {key}: {value}" for key, value in best.settings.items()),
        "Run it as it is to repeat the figures. Trials may have been shorter than a real run: see the length.",
    ]


def _rename(stage: dict[str, Any], gone: Mapping[str, str]) -> None:
    fields = known()[stage["kind"]].config.model_fields
    for key, value in stage.items():
        # Marks inside the annotation of an optional or a tuple are not in the field's own metadata.
        if key not in fields or not (any(isinstance(m, Reads) for m in fields[key].metadata)):
            continue
        if isinstance(value, str):
            stage[key] = gone.get(value, value)
        elif isinstance(value, list):
            stage[key] = list(dict.fromkeys(gone.get(name, name) for name in value))


def held_out_text(values: Sequence[float]) -> str:
    """Mean and standard deviation as text: ``71.2 ± 0.8 %``."""
    if not values:
        return "–"
    return numbers.in_percent(statistics.fmean(values), statistics.pstdev(values), len(values)) + " %"


def in_words(search: Search, rows: Mapping[int, Row]) -> str:
    """A line on how the trials ended."""
    counts = Counter[str](row.ended for row in rows.values())
    by = f" by {search.scheduler}" if search.scheduler != "none" else ""
    parts = [
        f"{counts[how]} {text}{by if how == 'stopped' else ''}" for how, text in WORDS.items() if counts[how]
    ]
    return f"{len(rows)} trials: {', '.join(parts)}"


def table(search: Search, rows: Mapping[int, Row], winner: Winner) -> tuple[Mapping[str, str], ...]:
    """The table at the run's end: the best settings and the template's own, on fresh seeds."""
    stopped = sum(row.ended == "stopped" for row in rows.values())
    margin = winner.margin
    lines = []
    # Both may be the same row.
    for best, name, row, values in (
        (True, f"best (trial {winner.best.number})", winner.best, winner.best_held_out),
        (False, "template's own", winner.own, winner.own_held_out),
    ):
        lines.append(
            {
                "settings": name,
                "trials": f"{len(rows)}, {stopped} stopped early" if best else "",
                f"{search.metric} in the search": shown(search, row.value) if row.sound else row.ended,
                "on fresh seeds": held_out_text(values),
                "seeds": "  ".join(f"{100 * value:.1f}" for value in values),
                "margin": f"{100 * margin:+.1f} points" if best and margin is not None else "",
            }
        )
    return tuple(lines)


def summary(
    config: TuneConfig, context: Context, search: Search, rows: Mapping[int, Row], winner: Winner
) -> dict[str, Any]:
    """The summary of the search, as JSON values."""
    return {
        "of": config.of,
        "template": context.templates[config.of].kind,
        "metric": search.metric,
        "mode": search.mode,
        "metrics": sorted(
            {name for row in rows.values() for report in row.reports for name in report.metrics}
        ),
        "searcher": search.searcher,
        "scheduler": search.scheduler,
        "length": search.stops[-1],
        "space": {
            key: entry.model_dump(mode="json", exclude_none=True) for key, entry in search.space.items()
        },
        "trials": len(rows),
        "ended": dict(Counter(row.ended for row in rows.values())),
        "trial_seconds": sum(row.seconds for row in rows.values()),
        "best": _as_json(winner.best, winner.best_held_out),
        "own": _as_json(winner.own, winner.own_held_out),
        "margin": winner.margin,
        "importance": importance(search, rows.values()),
    }


def _as_json(row: Row, held_out: Sequence[float]) -> dict[str, Any]:
    return {
        "trial": row.number,
        "settings": row.settings,
        "value": row.value if math.isfinite(row.value) else None,
        "iteration": row.iteration,
        "ended": row.ended,
        "reason": row.reason,
        "held_out": list(held_out),
    }
