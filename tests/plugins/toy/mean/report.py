"""``kind: mean`` on the page."""

from dataclasses import replace

from rayddl.report.run import Part, Place
from rayddl.stages.picked import TINT, read, section

__all__ = ["TINT", "part", "read"]


def part(made, run):
    """A section for each."""
    found = [
        replace(section(each, alone=False, budget=run.budget), title=f"Mean images: {each.stage.name}")
        for each in made
    ]
    return Part(Place.PICKED, tuple((Place.PICKED, each) for each in found))
