"""The content of a run's page: its stages, and for each kind the part of the page that the kind draws.

This module names no kind. Each kind reads its finished stages into :class:`ReportedStage` and draws them as a
:class:`Part`: sections with their places, a sentence for the headline, and figures next to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, auto
from typing import Any, ClassVar, TypeAlias

from markupsafe import Markup

from rayddl.report.sections import Fact, Section
from rayddl.report.values import Pictures, Stage

PICTURE_BYTES = 3_500_000
"""Total bytes of pictures on a page, shared by its sets."""
LARGE_BYTES, PER_IMAGE = 16_000_000, 1_600
"""Maximum bytes of pictures for large sets: in total, and per image. A page of 16 MB opens in well under a second,
because pictures are decoded only when they become visible."""


class Place(IntEnum):
    """A position on the page, from top to bottom."""

    RESULT = auto()
    """The result of the run."""
    METHODS = auto()
    """The comparison of methods."""
    MADE = auto()
    """Sets whose images were optimised."""
    PICKED = auto()
    """Sets whose images were selected, or imported."""
    SEARCHED = auto()
    """Searches for settings."""
    TRAINED = auto()
    """Networks that were trained to make sets."""
    STORED = auto()
    """Storage of these networks."""
    STUDENTS = auto()
    """Details of the evaluation."""


@dataclass(frozen=True)
class ReportedStage:
    """A finished stage as its kind reads it; subclasses of kinds add the data of their sections."""

    place: ClassVar[Place]
    poster: ClassVar[bool] = False
    """True if its pictures may be shown at the top of the page."""

    stage: Stage
    pictures: Pictures | None = field(default=None, kw_only=True)
    provenance: Mapping[str, Any] | None = field(default=None, kw_only=True)
    """Entries for the section about provenance; ``None`` for a kind without them."""


@dataclass(frozen=True)
class Part:
    """The part of a page that one kind draws."""

    place: Place
    """The position of its lead and facts among those of other kinds."""
    sections: tuple[tuple[Place, Section], ...] = ()
    """Sections with their positions; at the same position they follow the order of the kinds."""
    lead: Markup | None = None
    """The result in one sentence. The lead of the first part that has one is the page's headline."""
    about: str | None = None
    """The stage whose pictures are shown with the lead."""
    facts: tuple[Fact, ...] = ()
    """Figures below the headline."""


Draw: TypeAlias = Callable[[Sequence[Any], "Run"], Part]


@dataclass(frozen=True)
class Chapter:
    """The stages of one kind, and the function that draws their part of the page."""

    draw: Draw
    stages: tuple[ReportedStage, ...]


@dataclass(frozen=True)
class Run:
    """The data of one page."""

    definition: Mapping[str, Any]
    source: Mapping[str, Any]
    seed: int
    versions: Mapping[str, str]
    stages: tuple[Stage, ...] = ()
    """All finished stages in the definition's order."""
    chapters: tuple[Chapter, ...] = ()
    """One for each kind that draws a part of the page."""
    real: Pictures | None = None
    """Some real images of every class, to be shown next to the sets."""
    size: Mapping[str, int] = field(default_factory=dict)
    """Numbers of images of the source, by their description."""
    warnings: tuple[str, ...] = ()
    """What disappoints in the results, and what to change."""

    @property
    def name(self) -> str:
        """The definition's name."""
        return str(self.definition.get("name") or "rayddl run")

    @property
    def reported(self) -> list[ReportedStage]:
        """The stages of all chapters, ordered by place."""
        return sorted((one for chapter in self.chapters for one in chapter.stages), key=lambda one: one.place)

    def at(self, *places: Place) -> list[ReportedStage]:
        """Return the stages at these places."""
        return [one for one in self.reported if one.place in places]

    @property
    def budget(self) -> int:
        """Maximum bytes of pictures for one set."""
        held = [one.pictures for one in self.reported if one.pictures is not None]
        return picture_bytes(sum(len(each.labels) for each in held)) // max(1, len(held))

    @property
    def parts(self) -> list[Part]:
        """The parts of all kinds, ordered by place."""
        return sorted((c.draw(c.stages, self) for c in self.chapters), key=lambda part: part.place)


def picture_bytes(many: int) -> int:
    """Return the maximum bytes of pictures for a page with ``many`` images."""
    return max(PICTURE_BYTES, min(LARGE_BYTES, PER_IMAGE * many))
