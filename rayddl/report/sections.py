"""The elements of the page's sections."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from rayddl.report.bars import Bars
from rayddl.report.charts import Chart
from rayddl.report.confusion import Matrix
from rayddl.report.gallery import SetsGallery
from rayddl.report.parallel import Parallel
from rayddl.report.pictures import Gallery
from rayddl.report.tables import Table
from rayddl.report.values import Stage

NETS = {
    "convnet": "ConvNet",
    "alexnet": "AlexNet",
    "vgg": "VGG",
    "resnet": "ResNet",
    "lenet": "LeNet",
    "mlp": "MLP",
}


@dataclass(frozen=True)
class Fact:
    """A figure and its label."""

    value: str
    label: str


@dataclass(frozen=True)
class Link:
    """A link to the stage in the definition that made a figure."""

    text: str
    anchor: str


@dataclass(frozen=True)
class Panel:
    """Bars with a caption."""

    title: str
    bars: Bars
    note: str = ""


@dataclass(frozen=True)
class Section:
    """A part of the page under its own heading. Empty elements are not shown."""

    key: str
    """Unique on the page: the heading's anchor."""
    title: str
    short: str = ""
    """The title in the list of sections; empty for the same title."""
    lead: str = ""
    points: tuple[str, ...] = ()
    """Sentences below the lead, each an item of a list."""
    made_by: tuple[Link, ...] = ()
    """The stages that made the figures."""
    facts: tuple[Fact, ...] = ()
    panels: tuple[Panel, ...] = ()
    gallery: Gallery | None = None
    charts: tuple[Chart, ...] = ()
    parallel: Parallel | None = None
    tables: tuple[Table, ...] = ()
    folded: tuple[Table, ...] = ()
    """Long tables, shown folded."""
    sets_gallery: SetsGallery | None = None
    matrices: tuple[Matrix, ...] = ()
    commands: str = ""
    """Lines to copy into a terminal or a program."""
    code: str = ""
    """YAML text."""
    code_key: str = ""
    """Prefix of the anchors of stages, for a page with several definitions."""


def slug(*names: str) -> str:
    """Return an anchor for the names with only characters that are safe in URLs; unique if the names are."""
    return "-".join(re.sub(r"[^a-zA-Z0-9]+", "-", n).strip("-").lower() or "x" for n in names)


def links_to(stages: Iterable[Stage]) -> tuple[Link, ...]:
    """Return links to the stages in the definition."""
    return tuple(Link(stage.name, slug("stage", stage.name)) for stage in stages)


def net_name(net: str) -> str:
    """Return a network's name as written in the literature."""
    for plain, written in NETS.items():
        if net.lower().startswith(plain):
            rest = net[len(plain) :]
            return f"{written}-{rest}" if rest[:1].isdigit() else f"{written}{rest}"
    return net
