"""The first sentences of a comparison's page."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from markupsafe import Markup

from rayddl.report import numbers, pictures
from rayddl.report.headline import Headline
from rayddl.report.sections import Fact, net_name
from rayddl.stages.cautions import in_noise
from rayddl.stages.compare import protocols
from rayddl.stages.compare.entries import Comparison, Entry, below, entries, nets_of, random_of
from rayddl.stages.evaluate.figures import Row

FOLLOWERS = 3
"""Number of other sets up to which each is named with its accuracy."""
WORSE = 3
"""Number of sets below random that are named."""


def headline(comparison: Comparison) -> Headline:
    """The best set, its random images, how all other sets compare to it, and the number of sets."""
    found = entries(comparison)
    rows = [(entry, row) for entry in found for row in entry.rows if math.isfinite(row.mean)]
    if not rows:
        return Headline(Markup("Nothing to compare yet."), (), None)
    best, row = max(rows, key=lambda each: each[1].mean)
    counts = {
        "set": len(found),
        "network": len(nets_of(found)),
        "student": sum(len(row.accuracies) for entry in found for row in entry.rows),
    }
    facts = tuple(Fact(numbers.count(many), numbers.plural(many, noun)) for noun, many in counts.items())
    lead = _best(best, row, found) + Markup(" ").join(["", *_compared(best, row, found)])
    return Headline(lead, facts, pictures.mosaic(best.judged.pictures))


def _best(best: Entry, row: Row, found: Sequence[Entry]) -> Markup:
    """The best set with its accuracy, and that of random images."""
    methods = len({entry.method for entry in found})
    what = ""
    if len(found) > 1:
        sets = f"{numbers.counted(len(found), 'compared set')} of {numbers.counted(methods, 'method')}"
        what = f" is the best of {sets}"
        if protocols.unlike(found):
            what = f" has the highest accuracy of {sets}, which were evaluated differently"
    lead = Markup("<strong>{}</strong>{}: {} teach {} <strong>{}</strong>").format(
        best.label if methods < len(found) else best.method, what,
        numbers.counted(row.images, "image"), net_name(row.net), numbers.percent(row.mean),
    )  # fmt: skip
    random = random_of(best, row, found)
    if random is None:
        return lead + Markup(".")
    less = "less than " if row.mean < random.mean else ""
    images = numbers.counted(random.images, "random real image")
    text = Markup('; <span class="against">{}{} {}.</span>')
    return lead + text.format(less, images, numbers.percent(random.mean))


def _compared(best: Entry, row: Row, found: Sequence[Entry]) -> Iterator[Markup]:
    """Sentences on the other sets: their accuracies, those within the noise, and those below random."""
    unlike = protocols.unlike(found)
    others = _best_of_others(best, row, found)
    if others:
        yield Markup("{}").format(_followers(row, others))
    silent = len(found) - 1 - len(others)
    if silent:
        yield Markup("{} without an accuracy.").format(numbers.counted(silent, "set"))
    level = [
        entry.label
        for entry, its in others
        if its.net == row.net and in_noise(row.mean, its.mean, best.tested)
    ]
    if level and not unlike:
        yield Markup("{} level with it: the difference is within the noise of {} held-out images.").format(
            _named(level) + (" is" if len(level) == 1 else " are"), numbers.count(best.tested)
        )
    if unlike:
        yield Markup("To compare them, {}.").format(protocols.advice(unlike))
    worse = [each.label for each in found if below(each, found)]
    if worse:
        listed = ", ".join(worse[:WORSE]) + (" …" if len(worse) > WORSE else "")
        yield Markup("{} below random: {}.").format(numbers.counted(len(worse), "set"), listed)


def _best_of_others(best: Entry, row: Row, found: Sequence[Entry]) -> list[tuple[Entry, Row]]:
    """Every other set with its result, from the highest on: of the best one's network, else of its own best one."""
    results = []
    for entry in found:
        known = [each for each in entry.rows if math.isfinite(each.mean)]
        if known and entry is not best:
            results.append((entry, max(known, key=lambda each: (each.net == row.net, each.mean))))
    return sorted(results, key=lambda each: each[1].mean, reverse=True)


def _followers(row: Row, others: Sequence[tuple[Entry, Row]]) -> str:
    """The accuracies of all sets but the best: each, or of many the next one and the range of those after it."""

    def reached(entry: Entry, its: Row) -> str:
        net = "" if its.net == row.net else f" with {net_name(its.net)}"
        return f"{entry.label} reaches {numbers.percent(its.mean)}{net}"

    if len(others) <= FOLLOWERS:
        return "; ".join(reached(*each) for each in others) + "."
    rest = [its for _, its in others[1:]]
    low, high = (numbers.percent(each.mean) for each in (rest[-1], rest[0]))
    nets = "" if all(its.net == row.net for its in rest) else ", some with other networks"
    return f"{reached(*others[0])}; the {numbers.count(len(rest))} others reach {low} to {high}{nets}."


def _named(labels: Sequence[str]) -> str:
    """The labels, of many the first and the number of the others."""
    shown = labels if len(labels) <= FOLLOWERS else labels[: FOLLOWERS - 1]
    more = [f"{numbers.count(len(labels) - len(shown))} more"] if len(labels) > len(shown) else []
    return " and ".join(filter(None, ["; ".join([*shown, *more][:-1]), [*shown, *more][-1]]))
