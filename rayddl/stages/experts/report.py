"""The report section of ``kind: experts``: training curves, and the trajectories' size on disk."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from markupsafe import Markup

from rayddl.report import numbers
from rayddl.report.bars import Bar, Bars, Group
from rayddl.report.charts import Band, Chart, Hint, Line
from rayddl.report.curves import by_value, evenly
from rayddl.report.headline import held_out
from rayddl.report.run import Part, Place, ReportedStage, Run
from rayddl.report.sections import Fact, Panel, Section, links_to, net_name, slug
from rayddl.report.values import Columns, number
from rayddl.stages.context import Input
from rayddl.stages.finished import as_stage, columns

LINES_AT_MOST = 40
"""Largest number of single experts drawn behind the mean."""
TINT = "experts"
COLUMNS = ("expert", "epoch", "train_loss", "test_accuracy", "step_norm")


@dataclass(frozen=True)
class Experts(ReportedStage):
    """Expert trajectories. ``metrics`` has one row per expert and epoch; epoch 0 is the initialisation."""

    place: ClassVar[Place] = Place.TRAINED

    metrics: Columns


def read(found: Input) -> Experts:
    """Read a finished experts stage."""
    return Experts(as_stage(found, TINT), columns(found, "metrics.parquet", COLUMNS))


def part(all_experts: Sequence[Experts], run: Run) -> Part:
    """A section per stage, and one on the size of all trajectories on disk."""
    alone = len(all_experts) == 1
    sections = [(Place.TRAINED, section(experts, alone)) for experts in all_experts]
    stored = storage(all_experts)
    if stored is not None:
        sections.append((Place.STORED, stored))
    whole = _mean(all_experts[0])
    known = math.isfinite(whole)
    facts = (Fact(numbers.percent(whole), "experts, trained on all real images"),) if known else ()
    return Part(Place.TRAINED, tuple(sections), _headline(all_experts[0], run), facts=facts)


def _headline(experts: Experts, run: Run) -> Markup:
    s = experts.stage.summary
    mean = _mean(experts)
    return Markup("<strong>{}</strong> reach <strong>{}</strong> on {}.").format(
        numbers.counted(int(s.get("count") or 0), "expert"), numbers.percent(mean), held_out(run.source)
    )


def _mean(experts: Experts) -> float:
    """The experts' mean accuracy; NaN if unknown."""
    reached = experts.stage.summary.get("test_accuracy")
    return number(reached.get("mean")) if isinstance(reached, Mapping) else math.nan


def section(experts: Experts, alone: bool) -> Section:
    """The section of one experts stage: its training curves."""
    stage = experts.stage
    key = slug("experts", stage.name)
    charts = (
        _chart(experts, key, "test_accuracy", "Test accuracy", shares=True),
        _chart(experts, key, "train_loss", "Training loss"),
        _chart(
            experts,
            key,
            "step_norm",
            "Distance moved in each epoch",
            note="Norm of the change of all parameters; good: it falls, since training settles.",
        ),
    )
    return Section(
        key=key,
        title="Experts" if alone else f"Experts of {stage.name}",
        short="Experts" if alone else stage.name,
        lead="Networks trained on real images; the distilled images learn to lead others along their way.",
        made_by=links_to([stage]),
        facts=tuple(_facts(experts)),
        charts=tuple(c for c in charts if not c.empty),
    )


def storage(all_experts: Sequence[Experts]) -> Section | None:
    """The size of the stored trajectories, compared with a snapshot after every epoch."""
    known = [
        e for e in all_experts if math.isfinite(_bytes(e, "kept")) and math.isfinite(_bytes(e, "snapshots"))
    ]
    if not known:
        return None
    groups = tuple(_storage_group(e) for e in known)
    kept, full = (sum(_bytes(e, what) for e in known) for what in ("kept", "snapshots"))
    lead = (
        f"{numbers.size(kept)} kept, where a float32 snapshot after every epoch takes {numbers.size(full)}."
        if kept < 0.99 * full
        else f"A snapshot after every epoch is kept: {numbers.size(kept)}."
    )
    facts = (
        (Fact(numbers.factor(full / kept), "smaller than MTT's snapshots"),) if 0 < kept < 0.99 * full else ()
    )
    return Section(
        key="storage",
        title="Storage",
        lead=lead,
        made_by=links_to(each.stage for each in all_experts),
        facts=facts,
        panels=(Panel("Expert trajectories on disk", Bars(groups)),),
    )


def _storage_group(experts: Experts) -> Group:
    keep = experts.stage.summary.get("keep")
    kept = "waypoints and step table (MCT)" if keep == "convex" else "snapshots kept"
    bars = [
        Bar(label, _bytes(experts, what), numbers.size(_bytes(experts, what)), tint)
        for label, what, tint in (("every snapshot (MTT)", "snapshots", "random"), (kept, "kept", "experts"))
    ]
    return Group(experts.stage.name, "", tuple(bars))


def _facts(experts: Experts) -> Iterable[Fact]:
    s = experts.stage.summary
    yield Fact(numbers.count(number(s.get("count"))), numbers.plural(s.get("count"), "expert"))
    yield Fact(numbers.count(number(s.get("epochs"))), f"{numbers.plural(s.get('epochs'), 'epoch')} each")
    reached = s.get("test_accuracy") or {}
    several = number(s.get("count")) > 1
    yield Fact(
        numbers.spread(number(reached.get("mean")), number(reached.get("std")), several), "test accuracy"
    )
    yield _net(s.get("net"))
    yield Fact(numbers.count(number(s.get("parameters"))), "parameters")
    if s.get("waypoints"):
        yield Fact(", ".join(str(w) for w in s["waypoints"]), "waypoints, in epochs")
    yield Fact(numbers.duration(experts.stage.seconds), "in all")


def _net(net: Any) -> Fact:
    if not isinstance(net, Mapping):
        return Fact(net_name(str(net)) if net else numbers.ABSENT, "net")
    rest = ", ".join(f"{k} {v}" for k, v in net.items() if k != "name" and v is not None)
    return Fact(net_name(str(net.get("name", "net"))), rest or "net")


def _chart(
    experts: Experts, key: str, column: str, title: str, *, note: str = "", shares: bool = False
) -> Chart:
    m = experts.metrics
    # Epoch 0 has neither a training loss nor a step: its rows would draw a gap or a false zero.
    rows = np.ones(len(m["epoch"]), bool) if shares else m["epoch"] > 0
    epochs, values, who = m["epoch"][rows], m[column][rows].astype(np.float64), m["expert"][rows]
    curve = by_value(epochs, values)
    single = np.unique(who).tolist()
    text = numbers.percent if shares else numbers.figure
    marks: list[Band | Line] = []
    if len(single) > 1:
        marks.append(Band(curve.x.tolist(), curve.low.tolist(), curve.high.tolist()))
        for expert in evenly(single, LINES_AT_MOST):
            one = who == expert
            order = np.argsort(epochs[one], kind="stable")
            marks.append(Line(epochs[one][order].tolist(), values[one][order].tolist(), style="faint"))
    marks.append(Line(curve.x.tolist(), curve.mean.tolist(), label=True))
    said = "Bold: mean. Shaded: least to greatest. Thin: single experts." if len(single) > 1 else ""
    known = [v for v in curve.mean.tolist() if math.isfinite(v)] or [math.nan]
    return Chart(
        key=f"{key}-{column.replace('_', '-')}",
        title=title,
        summary=f"Mean over {len(single)} experts, from {text(known[0])} to {text(known[-1])}.",
        x_label="epoch",
        marks=tuple(marks),
        note=" ".join(t for t in (note, said) if t),
        tint="experts",
        shares=shares,
        hints=tuple(
            Hint(float(x), f"epoch {x:.0f}: {text(float(y))} ({text(float(a))} to {text(float(b))})")
            for x, y, a, b in zip(curve.x, curve.mean, curve.low, curve.high, strict=True)
            if math.isfinite(y)
        ),
    )


def _bytes(experts: Experts, what: str) -> float:
    return number(experts.stage.summary.get(f"bytes_{what}"))
