"""Line charts and bars as SVG."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from rayddl.report.bars import Bar, Bars, Group
from rayddl.report.charts import Band, Chart, Dots, Hint, Line, Rule, Strip
from rayddl.report.drawing import BOTTOM, LEFT, RIGHT_UNLABELLED, TOP, draw
from rayddl.report.markup import el, place

NAN = math.nan


def chart(*marks: Line | Band | Dots | Rule, **more: object) -> Chart:
    """A chart of the marks given."""
    return Chart(key="k", title="Loss", summary="It falls.", x_label="iteration", marks=marks, **more)  # type: ignore[arg-type]  # the keywords are the chart's own


def parsed(drawn: Chart) -> ElementTree.Element:
    """The drawing as a tree; fails where it is not well-formed."""
    return ElementTree.fromstring(str(draw(drawn)))


def paths(tree: ElementTree.Element, style: str) -> list[str]:
    """The outlines of the paths of one CSS class."""
    return [p.get("d", "") for p in tree.iter("path") if style in p.get("class", "").split()]


def test_line_runs_from_corner_to_corner() -> None:
    """The first and last points lie on the frame's edges; higher values lie higher."""
    tree = parsed(chart(Line([0, 1, 2], [1.0, 2.0, 3.0])))

    points = [tuple(map(float, p.split())) for p in re.split("[ML]", paths(tree, "mean")[0])[1:]]
    assert (points[0][0], points[-1][0]) == (LEFT, RIGHT_UNLABELLED)
    assert BOTTOM >= points[0][1] > points[1][1] > points[2][1] >= TOP


def test_what_is_not_finite_breaks_the_line() -> None:
    """A NaN leaves a gap; a lone point between gaps is still drawn."""
    tree = parsed(chart(Line([0, 1, 2, 3, 4], [1.0, 2.0, NAN, 3.0, NAN])))

    line = paths(tree, "mean")[0]
    assert line.count("M") == 2
    assert line.endswith("h0")
    assert "nan" not in line


def test_values_over_decades_get_a_logarithmic_axis() -> None:
    """Equal ratios are equal distances where the values span decades."""
    tree = parsed(chart(Line([0, 1, 2], [1.0, 0.01, 0.0001])))

    heights = [float(p.split()[1]) for p in re.split("[ML]", paths(tree, "mean")[0])[1:]]
    assert heights[1] - heights[0] == pytest.approx(heights[2] - heights[1], abs=0.2)
    assert "0.001" in [t.text for t in tree.iter("text")]


def test_shares_are_percentages_that_stop_at_a_hundred() -> None:
    """An accuracy axis shows percent signs and no more than 100 %."""
    tree = parsed(chart(Line([0, 1], [0.1, 1.0], label=True), shares=True))

    texts = [(t.text or "").replace("\u00a0", " ") for t in tree.iter("text")]
    assert {"20 %", "100 %", "100.0 %"} <= set(texts)
    assert not any(t.startswith("1") and t.endswith("0 %") and t not in ("100 %", "100.0 %") for t in texts)


def test_labels_lie_on_no_line() -> None:
    """A short line's end is labelled to the right of the longest line, each at a height of its own."""
    short = Line([0, 1], [0.2, 0.5], label=True, name="short")
    tree = parsed(chart(short, Line([0, 1, 3], [0.2, 0.4, 0.5], label=True, name="long")))

    labels = {t.text: t for t in tree.iter() if t.text in ("short", "long")}
    dots = [float(c.get("cx", "")) for c in tree.iter() if "end-dot" in (c.get("class") or "")]
    assert dots[0] < dots[1]
    assert {float(t.get("x", "")) for t in labels.values()} == {dots[1] + 9}
    assert labels["short"].get("y") != labels["long"].get("y")


def test_drawing_says_what_it_shows() -> None:
    """Title and description are there and are named by the drawing's label."""
    tree = parsed(chart(Line([0, 1], [1.0, 2.0])))

    ids = {e.get("id"): e.text for e in tree.iter() if e.get("id")}
    assert [ids[i] for i in tree.get("aria-labelledby", "").split()] == ["Loss", "It falls."]
    assert tree.get("role") == "img"


def test_hints_tile_the_chart_without_gap_or_overlap() -> None:
    """Wherever the pointer is, there is exactly one hint."""
    hints = tuple(Hint(x, f"at {x}") for x in (0.0, 1.0, 3.0, 10.0))

    tree = parsed(chart(Line([0, 10], [1.0, 2.0]), hints=hints))

    spans = [(float(r.get("x", 0)), float(r.get("width", 0))) for g in tree.iter("g") for r in g.iter("rect")]
    assert spans[0][0] == LEFT
    assert spans[-1][0] + spans[-1][1] == pytest.approx(RIGHT_UNLABELLED, abs=0.2)
    for (x, width), (after, _) in pairwise(spans):
        assert x + width == pytest.approx(after, abs=0.2)
    assert [t.text for g in tree.iter("g") for t in g.iter("title")] == [
        "at 0.0",
        "at 1.0",
        "at 3.0",
        "at 10.0",
    ]


def test_strip_bars_are_as_tall_as_their_counts() -> None:
    """The histogram under the axis is in proportion."""
    tree = parsed(chart(Line([0, 2], [1.0, 2.0]), strip=Strip([0.0, 1.0, 2.0], [5, 10])))

    heights = [float(r.get("height", 0)) for r in tree.iter("rect") if r.get("class") == "strip"]
    assert heights[1] == pytest.approx(2 * heights[0])


@pytest.mark.parametrize(
    "marks",
    [
        (Line([0], [1.0], label=True),),
        (Line([], []),),
        (
            Line([0, 1], [NAN, NAN], label=True),
            Band([0, 1], [NAN, 0.1], [NAN, 0.2]),
            Dots([0, 1], [NAN, 1.0]),
        ),
        (Line([0, 1], [0.0, 0.0]), Rule(1.0, "level")),
        (Line([5, 5], [3.0, 3.0]),),
    ],
)
def test_degenerate_series_are_drawn(marks: tuple[Line | Band | Dots | Rule, ...]) -> None:
    """One point, none, only NaN, or a flat line: a well-formed drawing without a NaN in it."""
    drawn = str(draw(chart(*marks)))

    ElementTree.fromstring(drawn)
    assert "nan" not in drawn


def test_empty_chart_knows_it() -> None:
    """A chart without a finite value is empty, one with a single value is not."""
    assert chart(Line([0, 1], [NAN, math.inf])).empty
    assert not chart(Line([0, 1], [NAN, 1.0])).empty


def bars(*given: Bar, **more: object) -> Bars:
    """The bars given as one group."""
    return Bars((Group("net", "", given),), **more)  # type: ignore[arg-type]  # the keywords are the bars' own


def test_bar_length_whisker_and_dots_are_in_proportion() -> None:
    """On an axis that ends at 100 %, positions are the values themselves."""
    bar = Bar("set", 0.5, "50 %", "set", std=0.1, singles=(0.4, 0.6), hints=("a", "b"))
    both = bars(bar, Bar("whole", 1.0, "100 %", "whole"), shares=True)

    tree = ElementTree.fromstring(str(both.draw(bar)))

    assert both.top == 1.0
    assert [r.get("width") for r in tree.iter("rect")] == ["50.00%"]
    assert [c.get("cx") for c in tree.iter("circle")] == ["40.00%", "60.00%"]
    whisker = next(e for e in tree.iter("line") if e.get("class") == "whisker")
    assert (whisker.get("x1"), whisker.get("x2")) == ("40.00%", "60.00%")
    assert tree.get("aria-label") == "set: 50 %"


def test_low_accuracies_use_the_whole_width() -> None:
    """The axis ends just above the greatest value, not at 100 %."""
    low = bars(Bar("set", 0.2, "20 %", "set", std=0.02), shares=True)

    assert 0.22 <= low.top < 0.25


def test_bar_without_a_value_has_no_bar() -> None:
    """A NaN mean draws an empty row, and dots only for the seeds that are finite."""
    bar = Bar("set", NAN, "–", "set", std=NAN, singles=(NAN, 0.5), hints=("a", "b"))

    tree = ElementTree.fromstring(str(bars(bar, shares=True).draw(bar)))

    assert list(tree.iter("rect")) == []
    assert len(list(tree.iter("circle"))) == 1


def test_single_student_has_no_whisker() -> None:
    """The deviation of a single student is not drawn."""
    bar = Bar("set", 0.5, "50 %", "set", std=0.0, singles=(0.5,), hints=("a",))

    drawn = str(bars(bar, shares=True).draw(bar))

    assert "whisker" not in drawn


def test_elements_escape_text_and_attributes() -> None:
    """Neither a text nor an attribute can end its element."""
    drawn = str(el("text", "</text><script>", class_='"><script>'))

    assert "<script>" not in drawn
    assert ElementTree.fromstring(drawn).text == "</text><script>"


def test_coordinates_that_are_not_finite_are_refused() -> None:
    """A NaN never reaches the page as a coordinate."""
    with pytest.raises(ValueError, match="finite"):
        place(NAN)
