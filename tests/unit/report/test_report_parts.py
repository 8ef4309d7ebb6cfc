"""The page is made of parts of kinds that it does not import."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from markupsafe import Markup

from rayddl.report.headline import headline
from rayddl.report.page import render, sections
from rayddl.report.run import PICTURE_BYTES, Chapter, Part, Place, ReportedStage, Run
from rayddl.report.sections import Fact, Section
from rayddl.report.values import Stage


@dataclass(frozen=True)
class Made(ReportedStage):
    """A set of a kind from outside."""

    place: ClassVar[Place] = Place.MADE
    poster: ClassVar[bool] = True


@dataclass(frozen=True)
class Known(ReportedStage):
    """A network of a kind from outside."""

    place: ClassVar[Place] = Place.TRAINED


def stage(name: str, seconds: float = 1.0) -> Stage:
    return Stage(name, "outside", f"{name}-0", {}, {"seconds": seconds}, "loss")


def drawn(place: Place, *others: Place, lead: str | None = None, about: str | None = None) -> Any:
    """Draws a section a stage at ``place``, and one at each of the other places."""

    def draw(shown: Sequence[ReportedStage], run: Run) -> Part:
        del run
        each = [(place, Section(f"{place.name}-{one.stage.name}", one.stage.name)) for one in shown]
        more = [(other, Section(other.name, other.name)) for other in others]
        told = None if lead is None else Markup("{}").format(lead)
        return Part(place, (*each, *more), told, about, (Fact(str(len(shown)), place.name),))

    return draw


def run_of(*chapters: Chapter) -> Run:
    stages = tuple(one.stage for chapter in chapters for one in chapter.stages)
    return Run({"name": "n"}, {"name": "digits"}, 0, {}, stages, chapters)


def test_sections_stand_at_their_places_whoever_draws_them() -> None:
    """By place, then as the kinds are listed; time, definition and provenance close every page."""
    networks = Chapter(drawn(Place.TRAINED, Place.METHODS), (Known(stage("net")),))
    sets = Chapter(drawn(Place.MADE, Place.RESULT), (Made(stage("b")), Made(stage("a"))))
    run = run_of(networks, sets)

    assert [each.title for each in sections(run, run.parts)] == [
        "RESULT", "METHODS", "b", "a", "net", "Time", "Definition", "Provenance",
    ]  # fmt: skip


def test_the_first_lead_is_the_headline_and_all_facts_follow_it() -> None:
    """The lead comes from the first kind by place that has one."""
    networks = Chapter(drawn(Place.TRAINED, lead="networks <b>"), (Known(stage("net")),))
    silent = Chapter(drawn(Place.MADE), (Made(stage("set")),))
    loud = Chapter(drawn(Place.MADE, lead="a set"), (Made(stage("set")),))

    def told(*chapters: Chapter) -> tuple[str, list[str]]:
        run = run_of(*chapters)
        found = headline(run, run.parts)
        return str(found.lead), [fact.label for fact in found.facts]

    assert told(networks, silent) == (
        "networks &lt;b&gt;",
        ["MADE", "TRAINED", "for all stages together"],
    )
    assert told(networks, loud)[0] == "a set"
    assert told(silent)[0].startswith("Nothing to show yet")


def test_the_poster_is_of_the_stage_that_the_lead_is_about(make: Any) -> None:
    """Without a lead's stage, the first poster is used; a stage without pictures never is."""
    one, two = make.pictures(("x",), 1, 8, 1), make.pictures(("x", "y"), 1, 8, 1)

    def alt(about: str | None) -> str | None:
        shown = (Made(stage("bare")), Made(stage("a"), pictures=one), Made(stage("b"), pictures=two))
        run = run_of(Chapter(drawn(Place.MADE, lead="x", about=about), shown))
        mosaic = headline(run, run.parts).mosaic
        return mosaic.tiles[0].alt if mosaic else None

    assert alt("b") != alt("a")
    assert alt(None) == alt("bare") == alt("elsewhere") == alt("a")


def test_pictures_share_the_pages_bytes(make: Any) -> None:
    """Every set with pictures has the same share."""
    held = make.pictures(("one",), 1, 8, 1)
    shown = (Made(stage("a"), pictures=held), Made(stage("b"), pictures=held), Made(stage("c")))

    assert run_of(Chapter(drawn(Place.MADE), shown)).budget == PICTURE_BYTES // 2


def test_provenance_names_the_stage_where_several_have_one() -> None:
    """Entries of one stage have no prefix; entries of several have their stage's name."""

    def page(*names: str) -> str:
        shown = tuple(Made(stage(name), provenance={"net_used": name}) for name in names)
        return render(run_of(Chapter(drawn(Place.MADE), (*shown, Made(stage("c"))))))

    assert "<td>net used</td>" in page("a")
    assert "<td>a: net_used</td>" in page("a", "b")
