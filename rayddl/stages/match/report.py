"""The report section of ``kind: match``: the images, and the curves of the distillation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from rayddl.data.distilled import DistilledSet
from rayddl.report import numbers
from rayddl.report.charts import Band, Chart, Dots, Hint, Line, Rule, Strip
from rayddl.report.curves import Floats, Summary, by_bin, by_value, smoothed, thinned
from rayddl.report.pictures import gallery
from rayddl.report.run import Part, Place, Run
from rayddl.report.sections import Fact, Section, links_to, slug
from rayddl.report.values import Columns, number
from rayddl.stages.context import Input
from rayddl.stages.finished import as_stage, columns, pictures
from rayddl.stages.match import methods
from rayddl.stages.match.finished import Match

BINS = 12
RAW_AT_MOST = 600
"""Largest number of iterations for which single losses are drawn."""
METHODS = {
    "MCT": "matching convexified trajectories (MCT)",
    "MTT": "matching training trajectories (MTT)",
    "TESLA": "matching training trajectories at constant memory (TESLA)",
    "FTD": "matching training trajectories of flat experts (FTD)",
    "DATM": "difficulty-aligned trajectory matching (DATM)",
    "PAD": "difficulty-aligned trajectory matching of deep layers (PAD)",
    "MCT+DATM": "difficulty-aligned matching of convexified trajectories (MCT+DATM)",
}
TINT = "loss"
COLUMNS = ("iteration", "loss", "lr_student", "start", "seconds")
ACCURACY = ("iteration", "seed", "accuracy")


def read(found: Input) -> Match:
    """Read a finished match stage."""
    made = DistilledSet.load(found.folder.child("set"))
    return Match(
        as_stage(found, TINT),
        columns(found, "metrics.parquet", COLUMNS),
        columns(found, "accuracy.parquet", ACCURACY),
        pictures=pictures(made),
        provenance=_provenance(made.info),
    )


def part(matches: Sequence[Match], run: Run) -> Part:
    """A section per stage, and one that compares the methods."""
    compared = methods.section(matches)
    alone = len(matches) == 1
    each = [(Place.MADE, section(match, alone, run.budget)) for match in matches]
    return Part(
        Place.MADE, ((Place.METHODS, compared), *each) if compared else tuple(each), _headline(matches[0])
    )


def _provenance(info: Mapping[str, Any]) -> dict[str, Any]:
    known = {key: info[key] for key in ("source_fingerprint", "net") if info.get(key) is not None}
    more = info.get("provenance")
    return {**known, **(more if isinstance(more, Mapping) else {})}


def _headline(match: Match) -> Markup:
    many = numbers.counted(len(match.pictures.labels), "image")
    method = str(match.stage.summary.get("method", "matching"))
    return Markup("<strong>{}</strong> distilled by {}, not yet judged.").format(many, method)


def section(match: Match, alone: bool, budget: int) -> Section:
    """The section of one match stage: images by class and the curves of the distillation."""
    stage = match.stage
    key = slug("match", stage.name)
    method = str(stage.summary.get("method", ""))
    charts = (_loss(match, key), _accuracy(match, key), _lr(match, key), _windows(match, key))
    return Section(
        key=key,
        title="The distilled images" if alone else f"The distilled images of {stage.name}",
        short="Images" if alone else stage.name,
        lead=_lead(match, METHODS.get(method, method)),
        made_by=links_to([stage]),
        facts=tuple(_facts(match)),
        gallery=gallery(match.pictures, f"{stage.folder}/set/images", budget)
        if len(match.pictures.labels)
        else None,
        charts=tuple(c for c in charts if c is not None and not c.empty),
    )


def _lead(match: Match, method: str) -> str:
    p = match.pictures
    per_class = match.stage.summary.get("ipc")
    each = f", {per_class} per class" if per_class else ""
    made = f", made by {method}" if method else ""
    images, classes = numbers.counted(len(p.labels), "image"), numbers.counted(len(p.classes), "class")
    return f"{images} of {classes}{each}{made}."


def _facts(match: Match) -> Iterable[Fact]:
    s, seconds = match.stage.summary, match.metrics["seconds"]
    first, last = number(s.get("loss_first")), number(s.get("loss_last"))
    yield Fact(numbers.count(number(s.get("iterations"))), numbers.plural(s.get("iterations"), "iteration"))
    yield Fact(f"{numbers.figure(first)} → {numbers.figure(last)}", "matching loss, first and last ten")
    yield Fact(numbers.figure(number(s.get("lr_student"))), "student learning rate, learned")
    if np.isfinite(seconds).any():
        yield Fact(numbers.duration(float(np.nanmedian(seconds))), "per iteration, median")
    yield Fact(numbers.duration(match.stage.seconds), "in all")
    yield Fact(numbers.size(number(s.get("bytes"))), "on disk")
    if s.get("retries"):
        times = numbers.plural(s["retries"], "divergence")
        yield Fact(numbers.count(number(s["retries"])), f"{times}: restored with lower rates")
    if s.get("skipped"):
        yield Fact(numbers.count(number(s["skipped"])), "windows skipped: the expert hardly moved")


def _loss(match: Match, key: str) -> Chart:
    m = match.metrics
    window = _window(len(m["loss"]))
    curve = thinned(m["iteration"], m["loss"])
    smooth = thinned(m["iteration"], smoothed(m["loss"], window))
    single = len(m["loss"]) <= RAW_AT_MOST
    behind = _line(m["iteration"], m["loss"], "raw") if single else _band(curve.x, curve.low, curve.high)
    note = f"Bold: mean over {window} iterations. {'Thin: each iteration.' if single else 'Shaded: range.'}"
    lost = int((~np.isfinite(m["loss"])).sum())
    if lost:
        note += f" {numbers.counted(lost, 'iteration')} without a finite loss left out."
    low, high = _ends(smooth)
    near_one = np.nanmax(curve.high, initial=0.0, where=np.isfinite(curve.high)) > 0.7
    level = (Rule(1.0, "1: no nearer than the start; lower is better"),) if near_one else ()
    return Chart(
        key=f"{key}-loss",
        title="Matching loss",
        summary=f"Smoothed over {numbers.counted(window, 'iteration')}, the loss goes from {low} to {high}.",
        x_label="iteration",
        x_range=_whole_run(m),
        marks=(behind, _line(smooth.x, smooth.mean, label=True), *level),
        note=note,
        tint="loss",
        hints=_hints(curve, numbers.figure),
    )


def _accuracy(match: Match, key: str) -> Chart | None:
    a = match.accuracy
    if not len(a["accuracy"]):
        return None
    curve = by_value(a["iteration"], a["accuracy"])
    several = float(curve.count.max(initial=0)) > 1
    spread = (_band(curve.x, curve.mean - curve.std, curve.mean + curve.std),) if several else ()
    low, high = _ends(curve, numbers.percent)
    said = "Line: mean. Shaded: ± one deviation. Dots: students." if several else "One student each."
    return Chart(
        key=f"{key}-accuracy",
        title="Accuracy during matching",
        summary=f"Mean test accuracy goes from {low} to {high}.",
        x_label="iteration (0: the images it started from)",
        marks=(
            *spread,
            _line(curve.x, curve.mean, label=True),
            Dots(_list(a["iteration"]), _list(a["accuracy"])),
        ),
        note=f"Short evaluations during the matching. {said}",
        shares=True,
        hints=_hints(curve, numbers.percent),
    )


def _lr(match: Match, key: str) -> Chart:
    m = match.metrics
    curve = thinned(m["iteration"], m["lr_student"])
    low, high = _ends(curve)
    return Chart(
        key=f"{key}-lr",
        title="Student learning rate",
        summary=f"The learned rate goes from {low} to {high}.",
        x_label="iteration",
        x_range=_whole_run(m),
        marks=(_line(curve.x, curve.mean, label=True),),
        note="Learned together with the images.",
        hints=_hints(curve, numbers.figure),
    )


def _windows(match: Match, key: str) -> Chart | None:
    m = match.metrics
    starts = m["start"][np.isfinite(m["start"])]
    if not len(starts):
        return None
    edges = _edges(starts, number(match.stage.config.get("max_start_epoch")))
    curve = by_bin(m["start"], m["loss"], edges)
    counts = np.histogram(starts, edges)[0]
    first, last = numbers.figure(float(starts.min())), numbers.figure(float(starts.max()))
    return Chart(
        key=f"{key}-windows",
        title="Loss by where the window starts",
        summary=f"{numbers.counted(len(starts), 'window')}, starting between epoch {first} and epoch {last}.",
        x_label="the expert's epoch at the window's start",
        marks=(
            _band(curve.x, curve.mean - curve.std, curve.mean + curve.std),
            _line(curve.x, curve.mean),
            Dots(_list(curve.x), _list(curve.mean)),
        ),
        note="Good: low everywhere, since students follow the experts from every start. Line: mean. Shaded: "
        "± one deviation. Bars below: how many windows started there.",
        tint="loss",
        x_range=(float(edges[0]), float(edges[-1])),
        hints=tuple(
            Hint(
                float(x),
                f"around epoch {numbers.figure(float(x))}: {numbers.counted(int(n), 'window')}, "
                f"mean loss {numbers.figure(float(y))}",
            )
            for x, n, y in zip(curve.x, counts, curve.mean, strict=True)
        ),
        strip=Strip(edges.tolist(), counts.tolist()),
    )


def _whole_run(metrics: Columns) -> tuple[float, float]:
    return 0.0, float(metrics["iteration"].max(initial=1))


def _edges(starts: Floats, latest: float) -> Floats:
    whole = bool(np.all(starts == np.round(starts)))
    if whole and starts.max() < 40:
        return np.arange(-0.5, float(starts.max()) + 1.0)
    top = max(float(starts.max()), latest if math.isfinite(latest) else 0.0) or 1.0
    return np.linspace(0.0, top, BINS + 1)


def _window(iterations: int) -> int:
    """The window of the running mean: a twentieth of the run, odd, so that it is centred."""
    return max(1, iterations // 20) | 1


def _ends(curve: Summary, text: Callable[[float], str] = numbers.figure) -> tuple[str, str]:
    known = curve.mean[np.isfinite(curve.mean)].tolist() or [math.nan]
    return text(known[0]), text(known[-1])


def _hints(curve: Summary, text: Callable[[float], str]) -> tuple[Hint, ...]:
    columns = (_list(c) for c in (curve.x, curve.mean, curve.low, curve.high, curve.count))
    return tuple(
        Hint(
            x,
            f"iteration {numbers.count(x)}: {text(y)}" + (f" ({text(low)} to {text(high)})" if n > 1 else ""),
        )
        for x, y, low, high, n in zip(*columns, strict=True)
        if math.isfinite(y)
    )


def _line(x: Floats, y: Floats, style: str = "mean", label: bool = False) -> Line:
    return Line(_list(x), _list(y), style, label)


def _band(x: Floats, low: Floats, high: Floats) -> Band:
    return Band(_list(x), _list(low), _list(high))


def _list(values: Floats) -> list[float]:
    return [float(v) for v in values]
