"""A run as its page sees it: its stages, and for each kind the part of the page that the kind makes of them.

The page knows no kind. Each kind reads its finished stages into :class:`ReportedStage` and draws them as a
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
"""Bytes of pictures on a page, shared by its sets."""
LARGE_BYTES, PER_IMAGE = 16_000_000, 1_600
"""Where sets are large: at most so many for all, and for each image. A page of 16 MB opens in well under a second,
since pictures are decoded as they come into sight."""


class Place(IntEnum):
    """Where something stands on the page, from top to bottom."""

    RESULT = auto()
    """What the run came to."""
    METHODS = auto()
    """How the ways to it compare."""
    MADE = auto()
    """Sets whose images were optimised."""
    PICKED = auto()
    """Sets whose images were chosen, or made elsewhere."""
    SEARCHED = auto()
    """Searches for settings."""
    TRAINED = auto()
    """Networks that sets were made with."""
    STORED = auto()
    """What is kept of them."""
    STUDENTS = auto()
    """The details of the result."""


@dataclass(frozen=True)
class ReportedStage:
    """A finished stage as its kind reads it; kinds add what their sections are drawn from."""

    place: ClassVar[Place]
    poster: ClassVar[bool] = False
    """True if its pictures may stand at the top of the page."""

    stage: Stage
    pictures: Pictures | None = field(default=None, kw_only=True)
    provenance: Mapping[str, Any] | None = field(default=None, kw_only=True)
    """Where its result comes from; ``None`` for a kind that notes nothing."""


@dataclass(frozen=True)
class Part:
    """What one kind puts on a page."""

    place: Place
    """Where its lead and its facts stand among those of other kinds."""
    sections: tuple[tuple[Place, Section], ...] = ()
    """Sections of one place come as the kinds are listed."""
    lead: Markup | None = None
    """The run in one sentence. The first kind that has one gives the page its headline."""
    about: str | None = None
    """The stage whose pictures go with the lead."""
    facts: tuple[Fact, ...] = ()
    """Figures below the headline."""


Draw: TypeAlias = Callable[[Sequence[Any], "Run"], Part]


@dataclass(frozen=True)
class Chapter:
    """The stages of one kind, and what makes its part of the page from them."""

    draw: Draw
    stages: tuple[ReportedStage, ...]


@dataclass(frozen=True)
class Run:
    """Everything that one page shows."""

    definition: Mapping[str, Any]
    source: Mapping[str, Any]
    seed: int
    versions: Mapping[str, str]
    stages: tuple[Stage, ...] = ()
    """Every stage shown, of whatever kind, in the definition's order."""
    chapters: tuple[Chapter, ...] = ()
    """A chapter for each kind that has a part of the page."""

    @property
    def name(self) -> str:
        """The definition's name."""
        return str(self.definition.get("name") or "rayddl run")

    @property
    def reported(self) -> list[ReportedStage]:
        """The stages of all chapters by their places."""
        return sorted((one for chapter in self.chapters for one in chapter.stages), key=lambda one: one.place)

    def at(self, *places: Place) -> list[ReportedStage]:
        """The stages at these places."""
        return [one for one in self.reported if one.place in places]

    @property
    def budget(self) -> int:
        """Bytes for the pictures of one set."""
        held = [one.pictures for one in self.reported if one.pictures is not None]
        return picture_bytes(sum(len(each.labels) for each in held)) // max(1, len(held))

    @property
    def parts(self) -> list[Part]:
        """What every kind puts on the page, by place."""
        return sorted((c.draw(c.stages, self) for c in self.chapters), key=lambda part: part.place)


def picture_bytes(many: int) -> int:
    """Bytes for the pictures of a page with so many images."""
    return max(PICTURE_BYTES, min(LARGE_BYTES, PER_IMAGE * many))
