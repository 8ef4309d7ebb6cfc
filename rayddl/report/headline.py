"""The result in one sentence."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from rayddl.report import evaluate, experts, numbers, pictures, tune
from rayddl.report.evaluate import Duel
from rayddl.report.pictures import Shelf
from rayddl.report.run import Match, Run, Tune, number
from rayddl.report.sections import Fact, net_name

HELD_OUT = {"digits": "digits", "cifar10": "CIFAR-10 images", "cifar100": "CIFAR-100 images"}
"""What a source's held-out images are called in the headline."""


@dataclass(frozen=True)
class Headline:
    """The result in one sentence, and what goes with it."""

    lead: Markup
    facts: tuple[Fact, ...]
    mosaic: Shelf | None


def headline(run: Run) -> Headline:
    """The best judged set against random images; without a judgement, what there is."""
    duel = evaluate.best(evaluate.duels(evaluate.rows(run.evaluations)))
    name, _, noun = HELD_OUT.get(str(run.source.get("name")), "images").partition(" ")
    held_out = Markup('<span class="keep">held-out {}</span> {}').format(name, noun).rstrip()
    if duel is not None:
        mine = duel.distilled
        lead = Markup("<strong>{}</strong> {} {} <strong>{}</strong> on {}").format(
            numbers.counted(mine.images, "image"),
            "teaches" if mine.images == 1 else "teach",
            net_name(mine.net),
            numbers.percent(mine.mean),
            held_out,
        )
        if duel.random is not None:
            text = Markup('; <span class="against">{} {}.</span>')
            lead += text.format(duel.random.what, numbers.percent(duel.random.mean))
        else:
            lead += Markup(".")
    elif run.matches:
        first = run.matches[0]
        many = numbers.counted(len(first.pictures.labels), "image")
        method = str(first.stage.summary.get("method", "matching"))
        lead = Markup("<strong>{}</strong> distilled by {}, not yet judged.").format(many, method)
    elif run.tunes:
        s = run.tunes[0].stage.summary
        lead = Markup(
            "<strong>{}</strong> tried; the best reach <strong>{}</strong> on held-out seeds."
        ).format(
            numbers.counted(int(s.get("trials") or 0), "setting"),
            numbers.percent(tune.held_out(run.tunes[0])),
        )
    elif run.experts:
        s = run.experts[0].stage.summary
        reached = numbers.percent(_mean(s.get("test_accuracy")))
        lead = Markup("<strong>{}</strong> reach <strong>{}</strong> on {}.").format(
            numbers.counted(int(s.get("count") or 0), "expert"), reached, held_out
        )
    else:
        lead = Markup("Nothing to show yet: the definition has no experts, match or evaluate stage.")
    shown = _judged_set(run, duel)
    mosaic = pictures.mosaic(shown.pictures) if shown and shown.pictures else None
    return Headline(lead, tuple(_headline_facts(run, duel)), mosaic)


def _judged_set(run: Run, duel: Duel | None) -> Match | Tune | None:
    sets = {e.stage.name: e.stage.summary.get("set") for e in run.evaluations}
    name = sets.get(duel.distilled.stage) if duel else None
    made: list[Match | Tune] = [*run.matches, *(t for t in run.tunes if t.pictures is not None)]
    return next((m for m in made if m.stage.name == name), made[0] if made else None)


def _headline_facts(run: Run, duel: Duel | None) -> Iterable[Fact]:
    if duel is not None and math.isfinite(duel.gain):
        yield Fact(f"{numbers.points(duel.gain)} points", "over random real images")
    if duel is not None and duel.whole is not None and duel.whole.mean > 0:
        yield Fact(numbers.percent(duel.distilled.mean / duel.whole.mean, 0), "of the whole data's accuracy")
    if duel is not None and duel.whole is not None and duel.whole.images > 0:
        yield Fact(numbers.percent(duel.distilled.images / duel.whole.images), "of the images")
    smaller = experts.ratio(run.experts)
    if smaller > 1.01:
        yield Fact(numbers.factor(smaller), "less storage than MTT's snapshots")
    total = sum(s.seconds for s in run.stages if math.isfinite(s.seconds))
    if total > 0:
        yield Fact(numbers.duration(total), "for all stages together")


def _mean(value: Any) -> float:
    return number(value.get("mean")) if isinstance(value, Mapping) else math.nan
