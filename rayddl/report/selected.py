"""Sets that were picked from the real images: RDED's and the baselines'."""

from __future__ import annotations

from collections.abc import Iterable

from rayddl.report import numbers
from rayddl.report.pictures import gallery
from rayddl.report.run import Selected, number
from rayddl.report.sections import Fact, Section, slug


def section(made: Selected, alone: bool, budget: int) -> Section:
    """One set: its images by class, and what it was picked from."""
    stage = made.stage
    return Section(
        key=slug(stage.kind, stage.name),
        title="The distilled images" if alone else f"The distilled images of {stage.name}",
        short="Images" if alone else stage.name,
        lead=_lead(made),
        facts=tuple(_facts(made)),
        gallery=gallery(made.pictures, f"{stage.folder}/set/images", budget)
        if len(made.pictures.labels)
        else None,
    )


def _lead(made: Selected) -> str:
    s, p = made.stage.summary, made.pictures
    images, classes = numbers.counted(len(p.labels), "image"), numbers.counted(len(p.classes), "class")
    factor = int(s.get("factor") or 1)
    how = f" of {factor} x {factor} crops each" if factor > 1 else ""
    return f"{images}{how} of {classes}, picked by {s.get('method', made.stage.kind)}."


def _facts(made: Selected) -> Iterable[Fact]:
    s = made.stage.summary
    if s.get("listed"):
        yield Fact(numbers.count(number(s["listed"])), "images listed")
    if s.get("looked_at"):
        yield Fact(numbers.count(number(s["looked_at"])), "images looked at")
    if s.get("images_per_second"):
        yield Fact(numbers.figure(number(s["images_per_second"])), "images per second, read, cut and scored")
    if s.get("bad"):
        yield Fact(numbers.count(number(s["bad"])), "files that could not be read")
    yield Fact(numbers.duration(made.stage.seconds), "in all")
    if s.get("bytes"):
        yield Fact(numbers.size(number(s["bytes"])), "of pixels")
