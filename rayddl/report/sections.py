"""The pieces that every section of the page is made of."""

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
    """One figure and what it is."""

    value: str
    label: str


@dataclass(frozen=True)
class Link:
    """A place on the page: the stage's part of the definition that made a figure."""

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
    """One part of the page under its own heading. Parts that it lacks are not shown."""

    key: str
    """Unique on the page: the heading's anchor."""
    title: str
    short: str = ""
    """The title in the list of sections, where it is another."""
    lead: str = ""
    made_by: tuple[Link, ...] = ()
    """The stages that made the figures."""
    facts: tuple[Fact, ...] = ()
    panels: tuple[Panel, ...] = ()
    gallery: Gallery | None = None
    charts: tuple[Chart, ...] = ()
    parallel: Parallel | None = None
    tables: tuple[Table, ...] = ()
    folded: tuple[Table, ...] = ()
    """Tables too long to be shown at once."""
    sets_gallery: SetsGallery | None = None
    matrices: tuple[Matrix, ...] = ()
    code: str = ""
    """YAML."""
    code_key: str = ""
    """What the anchors of its stages begin with, where there are several definitions."""


def slug(*names: str) -> str:
    """An anchor for the names, made of what is safe in an address; unique only with them."""
    return "-".join(re.sub(r"[^a-zA-Z0-9]+", "-", n).strip("-").lower() or "x" for n in names)


def links_to(stages: Iterable[Stage]) -> tuple[Link, ...]:
    """Links to the parts of the definition that the stages were made from."""
    return tuple(Link(stage.name, slug("stage", stage.name)) for stage in stages)


def net_name(net: str) -> str:
    """A net's name as the literature writes it."""
    for plain, written in NETS.items():
        if net.lower().startswith(plain):
            rest = net[len(plain) :]
            return f"{written}-{rest}" if rest[:1].isdigit() else f"{written}{rest}"
    return net
