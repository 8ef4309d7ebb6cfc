"""The headline of a page: the result in one sentence, with figures and a picture."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from rayddl.report import numbers, pictures
from rayddl.report.pictures import ImageGroup
from rayddl.report.run import Part, Run
from rayddl.report.sections import Fact

HELD_OUT = {"digits": "digits", "cifar10": "CIFAR-10 images", "cifar100": "CIFAR-100 images"}
"""Names of a source's held-out images in the headline."""
NOTHING = Markup("Nothing to show yet: no stage of the run has a result of its own.")


@dataclass(frozen=True)
class Headline:
    """The result in one sentence, with figures and a picture."""

    lead: Markup
    facts: tuple[Fact, ...]
    mosaic: ImageGroup | None


def headline(run: Run, parts: Sequence[Part]) -> Headline:
    """Return the lead of the first part that has one, with the pictures of its stage."""
    leading = next((part for part in parts if part.lead is not None), None)
    posters = [one for one in run.reported if one.poster and one.pictures is not None]
    about = leading.about if leading else None
    pictured = next((one for one in posters if one.stage.name == about), posters[0] if posters else None)
    mosaic = pictures.mosaic(pictured.pictures) if pictured and pictured.pictures else None
    lead = leading.lead if leading and leading.lead is not None else NOTHING
    return Headline(lead, tuple(_facts(run, parts)), mosaic)


def held_out(source: Mapping[str, Any]) -> Markup:
    """Return the name of a source's test images: ``held-out CIFAR-10 images``."""
    name, _, noun = HELD_OUT.get(str(source.get("name")), "images").partition(" ")
    return Markup('<span class="keep">held-out {}</span> {}').format(name, noun).rstrip()


def _facts(run: Run, parts: Sequence[Part]) -> Iterable[Fact]:
    for part in parts:
        yield from part.facts
    total = sum(s.seconds for s in run.stages if math.isfinite(s.seconds))
    if total > 0:
        yield Fact(numbers.duration(total), "for all stages together")
