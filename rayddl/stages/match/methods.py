"""Comparison of several matching methods in one run: accuracy against iterations and against time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from rayddl.report import numbers
from rayddl.report.charts import Band, Chart, Dots, Line, Mark
from rayddl.report.curves import Floats, by_value
from rayddl.report.sections import Section
from rayddl.stages.match.finished import Match

TINTS = ("set", "loss", "experts", "whole", "random")
_ASIDE = ("kind", "start_set", "iterations", "resources", "compile", "cuda_graphs")
"""Settings that do not change what an iteration computes, or that are the chain itself."""
Chain: TypeAlias = "Sequence[Match]"
"""One run: a match, or several matches of which each continues the previous one."""


def section(matches: Sequence[Match]) -> Section | None:
    """The curves of every method; ``None`` for a single method, or without short evaluations.

    A match that continues another one of the same method (``start_set``) forms one run with it.
    """
    alike: dict[tuple[str, str], list[Chain]] = {}
    judged = [m for m in matches if len(m.accuracy["accuracy"])]
    sizes = {m.stage.summary.get("ipc") for m in judged}
    for chain in _chains(judged):
        summary = chain[-1].stage.summary
        name = str(summary.get("method", chain[-1].stage.name))
        size = "" if len(sizes) == 1 else f", {summary.get('ipc')} per class"
        alike.setdefault((name + size, json.dumps([_settings(match) for match in chain])), []).append(chain)
    groups = dict(zip(_names(list(alike.values()), [name for name, _ in alike]), alike.values(), strict=True))
    methods = {match.stage.summary.get("method") for match in judged}
    if len(methods) < 2 or len(groups) > len(TINTS):
        return None
    runs = "; ".join(f"{name}: {numbers.counted(len(found), 'run')}" for name, found in groups.items())
    return Section(
        "methods",
        "Method against method",
        short="Methods",
        lead=f"Short evaluations while matching. {runs}, each from its own seed. Runs of other settings have a line of "
        "their own.",
        charts=(_chart(groups, timed=False), _chart(groups, timed=True)),
    )


def _settings(match: Match) -> dict[str, Any]:
    """The settings that runs of one curve have in common."""
    return {k: v for k, v in sorted(match.stage.config.items()) if k not in _ASIDE}


def _names(found: Sequence[Sequence[Chain]], names: Sequence[str]) -> list[str]:
    """The names of groups of runs; equal ones followed by the settings in which they differ."""
    settings = [_settings(chains[0][-1]) for chains in found]
    result = []
    for name, own in zip(names, settings, strict=True):
        others = [each for each, theirs in zip(settings, names, strict=True) if theirs == name]
        keys = [key for key in own if any(each.get(key) != own[key] for each in others)]
        result.append(f"{name} ({', '.join(f'{key} {own[key]}' for key in keys)})" if keys else name)
    # Two chains whose last matches have equal settings differ earlier.
    return [
        name if result.count(name) == 1 else f"{name}, from {chains[0][0].stage.name}"
        for name, chains in zip(result, found, strict=True)
    ]


def _chains(matches: Sequence[Match]) -> list[Chain]:
    by_name = {match.stage.name: match for match in matches}

    def before(match: Match) -> Match | None:
        found = by_name.get(str(match.stage.config.get("start_set")))
        alike = found is not None and found.stage.summary.get("method") == match.stage.summary.get("method")
        return found if alike else None

    def chain(match: Match) -> list[Match]:
        earlier = before(match)
        return [*(chain(earlier) if earlier else []), match]

    gone_on = {earlier.stage.name for match in matches if (earlier := before(match))}
    return [chain(match) for match in matches if match.stage.name not in gone_on]


def _chart(groups: dict[str, list[Chain]], *, timed: bool) -> Chart:
    marks: list[Mark] = []
    ends = []
    for tint, (name, chains) in zip(TINTS, groups.items(), strict=False):
        runs = [_run(chain, timed) for chain in chains]
        # A run that stopped early does not contribute to later iterations.
        x = _mean([at for at, _ in runs])
        y = np.concatenate([values for _, values in runs])
        step = np.concatenate([np.arange(len(values)) for _, values in runs])
        curve = by_value(step, y)
        if len(runs) > 1:
            marks.append(Band(list(x), list(curve.mean - curve.std), list(curve.mean + curve.std), tint))
        marks += [Dots([float(x[k]) for k in step], [float(v) for v in y], tint)]
        marks += [Line(list(x), [float(v) for v in curve.mean], label=True, tint=tint, name=name)]
        ends.append(f"{name} ends at {numbers.percent(float(curve.mean[-1]))}")
    against = "seconds of matching" if timed else "iteration (0: the images it started from)"
    note = "Line: mean over runs. Shaded: ± one deviation. Dots: runs."
    if timed:
        note += " Seconds: iterations times the median one's, so that a pause or a busy hour does not count."
    return Chart(
        key="methods-seconds" if timed else "methods-iterations",
        title="Accuracy against time" if timed else "Accuracy against iterations",
        summary=f"{'; '.join(ends)}.",
        x_label=against,
        marks=tuple(marks),
        note=note,
        shares=True,
    )


def _run(chain: Chain, timed: bool) -> tuple[Floats, Floats]:
    """Iterations, or seconds, of a run's short evaluations, and the accuracies."""
    x: list[Floats] = []
    y: list[Floats] = []
    done = 0.0
    for match in chain:
        found = by_value(match.accuracy["iteration"], match.accuracy["accuracy"])
        scale = float(np.nanmedian(match.metrics["seconds"])) if timed else 1.0
        # The initial set was already evaluated at the end of the previous match.
        new = slice(1 if x and found.x[0] == 0 else 0, None)
        x.append(done + found.x[new] * scale)
        y.append(found.mean[new])
        done += float(match.metrics["iteration"][-1]) * scale
    return np.concatenate(x), np.concatenate(y)


def _mean(series: Sequence[Floats]) -> Floats:
    """The mean at each index of series of unequal length, over the series that reach it."""
    longest = max(len(s) for s in series)
    padded = np.full((len(series), longest), np.nan)
    for row, values in zip(padded, series, strict=True):
        row[: len(values)] = values
    means: Floats = np.nanmean(padded, axis=0)
    return means
