"""The report section of sets of selected or imported images: their images and their origin.

A kind that makes such sets imports ``read`` and ``part`` into its module ``report``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from rayddl.data.distilled import DistilledSet
from rayddl.report import numbers
from rayddl.report.pictures import gallery
from rayddl.report.run import Part, Place, ReportedStage, Run
from rayddl.report.sections import Fact, Section, links_to, slug
from rayddl.report.values import Pictures, number
from rayddl.stages.context import Input
from rayddl.stages.finished import as_stage, pictures

TINT = "random"


@dataclass(frozen=True)
class Picked(ReportedStage):
    """A set of selected or imported images."""

    place: ClassVar[Place] = Place.PICKED

    pictures: Pictures = field(kw_only=True)


def read(found: Input) -> Picked:
    """Read a finished stage that wrote a set."""
    return Picked(as_stage(found, TINT), pictures=pictures(DistilledSet.load(found.folder.child("set"))))


def part(made: Sequence[Picked], run: Run) -> Part:
    """A section per stage."""
    alone = len(run.at(Place.MADE, Place.PICKED)) == 1
    return Part(Place.PICKED, tuple((Place.PICKED, section(each, alone, run.budget)) for each in made))


def section(made: Picked, alone: bool, budget: int) -> Section:
    """The section of one set: its images by class, and their origin."""
    stage = made.stage
    return Section(
        key=slug(stage.kind, stage.name),
        title="The distilled images" if alone else f"The distilled images of {stage.name}",
        short="Images" if alone else stage.name,
        lead=_lead(made),
        made_by=links_to([stage]),
        facts=tuple(_facts(made)),
        gallery=gallery(made.pictures, f"{stage.folder}/set/images", budget)
        if len(made.pictures.labels)
        else None,
    )


def _lead(made: Picked) -> str:
    s, p = made.stage.summary, made.pictures
    images, classes = numbers.counted(len(p.labels), "image"), numbers.counted(len(p.classes), "class")
    factor = int(s.get("factor") or 1)
    how = f" of {factor} x {factor} crops each" if factor > 1 else ""
    return f"{images}{how} of {classes}, picked by {s.get('method', made.stage.kind)}."


def _facts(made: Picked) -> Iterable[Fact]:
    s = made.stage.summary
    if s.get("listed"):
        yield Fact(numbers.count(number(s["listed"])), "images listed")
    if s.get("looked_at"):
        yield Fact(numbers.count(number(s["looked_at"])), "images looked at")
    if s.get("gap_before"):
        share = 1 - number(s["gap_after"]) / number(s["gap_before"])
        yield Fact(numbers.percent(share), "nearer to real images in the observers' features")
    if s.get("images_per_second"):
        yield Fact(numbers.figure(number(s["images_per_second"])), "images per second, read, cut and scored")
    if s.get("bad"):
        yield Fact(numbers.count(number(s["bad"])), "files that could not be read")
    yield Fact(numbers.duration(made.stage.seconds), "in all")
    if s.get("bytes"):
        yield Fact(numbers.size(number(s["bytes"])), "of pixels")
