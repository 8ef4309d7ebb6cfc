"""A comparison's page: labels, charts, tables, and the differences of protocols."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rayddl.report import numbers
from rayddl.report.charts import Line, Spots, Whiskers
from rayddl.report.confusion import matrix, mistakes
from rayddl.report.values import Columns
from rayddl.stages.compare import differences, protocols
from rayddl.stages.compare import page as compare
from rayddl.stages.compare.entries import Comparison, Judged, below, entries, random_of, randoms
from rayddl.stages.compare.stage import _lines, _shown
from rayddl.stages.kinds import known

LEVELS = {("random", 1): 0.5, ("random", 10): 0.8, ("MTT", 1): 0.7, ("MTT", 10): 0.9}
NETS = {"convnet": 0.0, "mlp": -0.1}


def confusion(classes: int, net: str, right: int = 90) -> Columns:
    """Each class is predicted correctly ``right`` times of 100, and otherwise as the next class."""
    true = np.repeat(np.arange(classes), 2)
    predicted = np.where(np.arange(2 * classes) % 2 == 0, true, (true + 1) % classes)
    count = np.where(np.arange(2 * classes) % 2 == 0, right, 100 - right)
    names = {"data": np.full(2 * classes, "distilled"), "net": np.full(2 * classes, net)}
    return {**names, "true": true, "predicted": predicted, "count": count}


def judged(make: Any, method: str, ipc: int, level: float, **changes: Any) -> Judged:
    rows = [
        make.row("distilled", net, 10 * ipc, [level + less - 0.01, level + less + 0.01])
        for net, less in NETS.items()
    ]
    name = f"judge-{method.lower()}-{ipc}"
    stage = make.evaluate(name, f"{method.lower()}-{ipc}", rows).stage
    more = {
        "method": method, "ipc": ipc, "bytes": 640 * ipc, "spent": {"distill": 10.0 * ipc, "experts": 5.0},
        "protocol": {"name": "hard", "epochs": 300, "lr": 0.01 * ipc, "batch": 256},
        "scores": {"convnet": {"lrs": {"mean": 0.3, "std": 0.01}}},
    }  # fmt: skip
    summary = {**stage.summary, **more, **changes}
    made = make.match(ipc=ipc, classes=tuple("abcdefghij"), every=None).pictures
    return Judged("run", "d0", replace(stage, summary=summary), made, confusion(10, "convnet"))


@pytest.fixture
def four(make: Any) -> Comparison:
    """Two methods at two sizes."""
    found = tuple(judged(make, method, ipc, level) for (method, ipc), level in LEVELS.items())
    stages = {j.stage.name: {"kind": "evaluate", "set": "x"} for j in found}
    return Comparison("both", found, {"d0": {"name": "run", "stages": stages}}, {"rayddl": "0"})


def test_sets_are_named_by_method_and_size(four: Comparison, make: Any) -> None:
    """Equal labels are extended by the run or the stage."""
    assert [e.label for e in entries(four)] == [
        "random, IPC 1", "random, IPC 10", "MTT, IPC 1", "MTT, IPC 10",
    ]  # fmt: skip
    twin = judged(make, "MTT", 1, 0.6)
    told = entries(replace(four, judged=(*four.judged, replace(twin, run="other"))))
    assert [e.label for e in told if e.method == "MTT"] == [
        "MTT, IPC 1 (run)", "MTT, IPC 1 (other)", "MTT, IPC 10",
    ]  # fmt: skip
    named = replace(twin, stage=replace(twin.stage, name="again"))
    told = entries(replace(four, judged=(*four.judged, named)))
    assert [e.label for e in told][2:4] == ["MTT, IPC 1 (judge-mtt-1)", "MTT, IPC 1 (again)"]


def test_a_chart_for_each_network_has_a_line_with_error_bars_for_each_method(four: Comparison) -> None:
    """Means over sizes, ± one deviation, and each method in a colour of its own that the legend names."""
    section = next(compare.sections(four, 100_000))
    chart = section.charts[0]
    lines = [mark for mark in chart.marks if isinstance(mark, Line)]
    bars = [mark for mark in chart.marks if isinstance(mark, Whiskers)]

    assert [list(line.y) for line in lines] == [pytest.approx([0.5, 0.8]), pytest.approx([0.7, 0.9])]
    assert [list(bar.low) for bar in bars] == [pytest.approx([0.49, 0.79]), pytest.approx([0.69, 0.89])]
    assert chart.legend == (("m0", "random"), ("m1", "MTT"))
    assert chart.x_names == ("1", "10")
    assert len(section.charts) == len(NETS)
    assert f"MTT, IPC 10: {numbers.spread(0.9, 0.01)}" in chart.summary


def test_no_line_joins_sets_of_one_size(four: Comparison, make: Any) -> None:
    """Two sets of one method and size were made with other settings: each is a spot of its own."""
    twin = replace(judged(make, "MTT", 1, 0.6), run="other")
    shown = {s.key: s for s in compare.sections(replace(four, judged=(*four.judged, twin)), 100_000)}

    lines = [mark.y for mark in shown["accuracy"].charts[0].marks if isinstance(mark, Line)]
    assert [list(y) for y in lines] == [pytest.approx([0.5, 0.8])]
    spots = [list(mark.y) for mark in shown["accuracy"].charts[0].marks if isinstance(mark, Spots)]
    assert spots == [pytest.approx([0.5, 0.8]), pytest.approx([0.7, 0.6, 0.9])]
    assert len([mark for mark in shown["cost"].charts[0].marks if isinstance(mark, Line)]) == 1


def test_cost_counts_every_stage_behind_a_set(four: Comparison) -> None:
    """Seconds of the set and of all stages that it depends on, on the axis and in the table."""
    cost = {s.key: s for s in compare.sections(four, 100_000)}["cost"]
    spots = [mark for mark in cost.charts[0].marks if isinstance(mark, Spots)]

    assert [list(spot.x) for spot in spots] == [[15.0], [105.0], [15.0], [105.0]]
    assert all(e.seconds == 5.0 + 10.0 * e.ipc for e in entries(four))


def test_random_sets_stand_in_for_random_students(four: Comparison) -> None:
    """The gain over random images is taken from the random set of the same size, and the best is marked."""
    (table,) = next(compare.sections(four, 100_000)).tables
    names = [column.name for column in table.columns]
    gains = {
        (r[0].text, r[names.index("Net")].text): r[names.index("Over random (points)")] for r in table.rows
    }

    assert gains["MTT, IPC 1", "ConvNet"].value == pytest.approx(0.2)
    assert gains["random, IPC 1", "ConvNet"].text == numbers.ABSENT
    best = [r[0].text for r in table.rows if r[names.index("Accuracy")].strong]
    assert best == ["MTT, IPC 1", "MTT, IPC 1", "MTT, IPC 10", "MTT, IPC 10"]
    assert "Label-robust" in names


def test_the_heat_map_runs_from_the_least_to_the_greatest(four: Comparison) -> None:
    """0 for the lowest accuracy, 1 for the highest; every field has its number."""
    (heat,) = {s.key: s for s in compare.sections(four, 100_000)}["networks"].tables
    fields = [cell for row in heat.rows for cell in row[1:]]

    assert min(cell.heat for cell in fields) == 0
    assert max(cell.heat for cell in fields) == 1
    assert all("±" in cell.text for cell in fields)


def test_confusion_matrices_count_answers_of_one_network() -> None:
    """Shares of each true class; the worst mistake is named in the text for who cannot see."""
    table = confusion(3, "convnet", right=75)
    made = matrix(table, "convnet", ("cat", "dog", "owl"), "MTT")

    assert made is not None
    assert made.shares.tolist() == [[0.75, 0.25, 0], [0, 0.75, 0.25], [0.25, 0, 0.75]]
    assert mistakes(made, 2) == [("cat", "dog", 0.25), ("dog", "owl", 0.25)]
    assert (
        made.alt == f"Confusion matrix of MTT: {numbers.percent(0.75)} right; most often cat is taken for dog"
    )
    assert matrix(table, "mlp", ("cat", "dog", "owl"), "MTT") is None


def test_sets_judged_unlike_each_other_are_said_to_be(four: Comparison, make: Any) -> None:
    """Protocols that differ only in the rate count as one; other epochs are shown in a table."""
    told = {s.key: s for s in compare.sections(four, 100_000)}["protocol"]
    assert told.lead == "All sets were evaluated by one protocol, each at its own learning rate."

    odd = judged(make, "RDED", 1, 0.4, protocol={"name": "soft", "epochs": 150, "batch": 256})
    told = {s.key: s for s in compare.sections(replace(four, judged=(*four.judged, odd)), 1000)}["protocol"]
    assert told.lead == (
        "These sets were not evaluated alike: protocol, epochs each differ. To compare them, judge all by one "
        "protocol: `rayddl compare` does with --again."
    )
    assert [column.name for column in told.tables[0].columns] == [
        "Set", "protocol", "epochs each", "learning rate",
    ]  # fmt: skip


OPEN = {
    "crop_min": 0.2, "crop_within_patch": True, "schedule": "cosine", "ema": 0.99, "zoom": True, "label_top": 5,
    "statistics": "twice", "label_smoothing": 0.1, "observer": {"net": "convnet", "accuracy": 0.8},
}  # fmt: skip


@pytest.mark.parametrize("key", OPEN)
def test_every_choice_of_the_open_protocol_makes_evaluations_unlike(make: Any, key: str) -> None:
    """What accuracies depend on is compared; whether own labels and late epochs were tested, too, is not."""
    plain = {"name": "soft", "epochs": 300, "observer": {"net": "convnet", "accuracy": 0.7}}
    also = {**plain, "own_labels": False, "report": "best"}
    both = judged(make, "RDED", 1, 0.5, protocol=plain), judged(make, "MTT", 1, 0.5, protocol=also)
    assert protocols.unlike(entries(Comparison("x", both, {}, {}))) == []
    other = judged(make, "MTT", 1, 0.5, protocol={**plain, key: OPEN[key]})
    found = entries(Comparison("x", (both[0], other), {}, {}))

    assert len(protocols.unlike(found)) == 1
    assert ("one teacher" in protocols.advice(protocols.unlike(found))) == (key == "observer")
    assert protocols.section(found).tables[0].columns[1].name == protocols.unlike(found)[0]


def test_best_looks_own_labels_and_bytes_of_labels_are_columns(make: Any) -> None:
    """As far as any set has them, in the table, the file and the terminal."""
    one = judged(make, "RDED", 1, 0.5)
    rows = [dict(one.stage.summary["rows"][0]), make.row("distilled-own", "convnet", 10, [0.3])]
    rows[0]["best"] = {"mean": 0.62, "std": 0.0}
    summary = {**one.stage.summary, "rows": rows, "label_bytes": 2_000_000}
    rich = replace(one, stage=replace(one.stage, summary=summary))
    found = entries(Comparison("x", (rich, judged(make, "MTT", 1, 0.5)), {}, {}))
    table = next(compare.sections(Comparison("x", (rich,), {}, {}), 1000)).tables[0]
    named = dict(zip([column.name for column in table.columns], table.rows[0], strict=True))
    written = [(line["best"], line["own_labels"]) for line in _lines(found)]

    assert named["Accuracy (last epoch)"].text == numbers.percent(0.5)
    assert named["Best of late epochs"].text == numbers.percent(0.62)
    assert named["Stored labels"].text == numbers.size(2_000_000)
    assert named["With own labels"].text == numbers.percent(0.3)
    assert written == [(0.62, 0.3), (None, None), (None, None)]
    assert _shown(found[0], ["convnet"], found)["ConvNet"] == "50.0 ± 1.0 (best of late epochs 62.0)"
    plain = next(compare.sections(Comparison("x", (one,), {}, {}), 1000)).tables[0]
    assert not {"With own labels", "Stored labels", "Best of late epochs"} & {
        column.name for column in plain.columns
    }


def test_random_images_have_their_own_labels_too(make: Any) -> None:
    """In the row of the random images that the sets are compared with."""
    one = judged(make, "RDED", 1, 0.5)
    data = {"distilled": 0.5, "random": 0.45, "distilled-own": 0.3, "random-own": 0.25}
    rows = [make.row(name, "convnet", 10, [mean]) for name, mean in data.items()]
    one = replace(one, stage=replace(one.stage, summary={**one.stage.summary, "rows": rows}))
    table = next(compare.sections(Comparison("x", (one,), {}, {}), 1000)).tables[0]
    place = [column.name for column in table.columns].index("With own labels")

    assert [(row[0].text, row[place].text) for row in table.rows] == [
        ("RDED, IPC 1", numbers.percent(0.3)),
        ("random, IPC 1", numbers.percent(0.25)),
    ]


def test_every_accuracy_can_be_traced(make: Any) -> None:
    """To the run, the stage and its folder, with its students one by one; random images to the stage they are from."""
    one = with_random(make, 1, (0.7, 0.6))
    one = replace(one, stage=replace(one.stage, summary={**one.stage.summary, "tested": 360}))
    section = list(compare.sections(Comparison("x", (one,), {}, {}), 1000))[-1]
    found = [[cell.text for cell in row] for row in section.tables[0].rows]
    folder = one.stage.folder

    assert (section.key, folder) == ("provenance", "judge-mtt-1-77e0b1d9aa31")
    assert found[0] == ["MTT, IPC 1", "ConvNet", "run", "judge-mtt-1", folder, "360", "0.0100", "69.0  71.0"]
    assert found[2] == ["random, IPC 1", "ConvNet", "run", "judge-mtt-1", folder, "360", "0.0100", "60.0"]


def test_random_images_of_a_like_evaluation_stand_for_those_left_out(make: Any) -> None:
    """Those of another stage of the run with the same protocol and size; not of another run, nor another protocol."""
    rich, poor = with_random(make, 1, (0.7, 0.6)), judged(make, "RDED", 1, 0.5)
    alike = {**poor.stage.summary["protocol"], "epochs": 5}
    odd = replace(poor, stage=replace(poor.stage, summary={**poor.stage.summary, "protocol": alike}))
    for other, expected in ((poor, True), (replace(poor, key="d1"), False), (odd, False)):
        found = entries(Comparison("x", (rich, other), {}, {}))
        (entry,) = (each for each in found if each.method == "RDED")
        assert below(entry, found) == expected


def test_a_random_set_judged_otherwise_is_no_comparison(make: Any) -> None:
    """Another set of the run has random images by the same protocol: they count, and are shown."""

    def by(one: Any, **protocol: Any) -> Any:
        recorded = {**one.stage.summary["protocol"], **protocol}
        return replace(one, stage=replace(one.stage, summary={**one.stage.summary, "protocol": recorded}))

    hard = by(judged(make, "random", 1, 0.31), epochs=9)
    balanced, mtt = judged(make, "balanced", 1, 0.60), with_random(make, 1, (0.66, 0.66))
    found = entries(Comparison("x", (hard, balanced, mtt), {}, {}))
    (entry,) = (each for each in found if each.method == "balanced")

    found_random = random_of(entry, entry.rows[0], found)
    assert found_random is not None
    assert found_random.mean == pytest.approx(0.66)
    assert below(entry, found)
    assert [each.rows[0].mean for each in randoms(found)] == [pytest.approx(0.66)]
    alike = entries(Comparison("x", (judged(make, "random", 1, 0.31), balanced), {}, {}))
    (entry,) = (each for each in alike if each.method == "balanced")
    assert not below(entry, alike)


def _plain(text: object) -> str:
    return str(text).replace(numbers.NBSP, " ")


def test_the_headline_says_what_leads_and_what_only_seems_to(four: Comparison, make: Any) -> None:
    """A set leads others judged alike, by more than the noise of the held-out images."""
    lead = _plain(compare.headline(four).lead)
    assert lead.startswith("<strong>MTT, IPC 10</strong> is the best of 4 compared sets of 2 methods: ")
    assert '<span class="against">100 random real images 80.0 %.</span>' in lead

    near = judged(make, "MCT", 10, 0.89, protocol=four.judged[0].stage.summary["protocol"])
    alike = replace(four, judged=(*four.judged, near))
    for tested, level in ((100, True), (100_000, False)):
        each = [
            replace(j, stage=replace(j.stage, summary={**j.stage.summary, "tested": tested}))
            for j in alike.judged
        ]
        lead = _plain(compare.headline(replace(alike, judged=tuple(each))).lead)
        assert ("MCT, IPC 10 is level with it" in lead) == level, tested

    odd = judged(make, "RDED", 10, 0.95, protocol={"name": "soft", "epochs": 150, "batch": 256})
    lead = _plain(compare.headline(replace(four, judged=(*four.judged, odd))).lead)
    assert (
        "has the highest accuracy of 5 compared sets of 3 methods, which were evaluated differently" in lead
    )
    assert "is the best" not in lead
    assert lead.endswith("To compare them, judge all by one protocol: `rayddl compare` does with --again.")


def test_mistakes_name_the_network_of_each_matrix(four: Comparison, make: Any) -> None:
    """Sets that were judged with different networks have matrices of these."""
    section = {s.key: s for s in compare.sections(four, 1000)}["mistakes"]
    assert "ConvNet, all seeds together" in section.lead
    assert all("ConvNet" not in each.label for each in section.matrices)

    other = judged(make, "RDED", 1, 0.4)
    rows = [row for row in other.stage.summary["rows"] if row["net"] == "mlp"]
    other = replace(
        other,
        stage=replace(other.stage, summary={**other.stage.summary, "rows": rows}),
        confusion=confusion(10, "mlp"),
    )
    mixed = replace(four, judged=(*four.judged, other))
    section = {s.key: s for s in compare.sections(mixed, 1000)}["mistakes"]
    assert "the network that each names" in section.lead
    assert section.matrices[-1].label.endswith("RDED, IPC 1, MLP")


def test_sets_of_several_sizes_are_not_judged_alike(four: Comparison, make: Any) -> None:
    """No protocol makes their accuracies comparable: the advice is another size."""
    other = judged(make, "RDED", 1, 0.4)
    wide = np.repeat(np.repeat(other.pictures.images, 2, 2), 2, 3)
    mixed = replace(
        four, judged=(*four.judged, replace(other, pictures=replace(other.pictures, images=wide)))
    )
    assert protocols.unlike(entries(mixed)) == ["image size"]
    assert "make them of images of one size (source.size; " in str(compare.headline(mixed).lead)
    told = {s.key: s for s in compare.sections(mixed, 1000)}["protocol"]
    assert [row[-1].text for row in told.tables[0].rows][-1] == f"{wide.shape[3]} x {wide.shape[2]}"


def test_every_figure_of_the_page_leads_to_its_definition(four: Comparison) -> None:
    """Every link inside the page has its target; every set's evaluate stage is among them."""
    page = compare.render(four)
    anchors = set(re.findall(r'id="([^"]+)"', page))
    links = set(re.findall(r'href="#([^"]+)"', page))

    assert links <= anchors
    assert {f"d0-stage-{j.stage.name}" for j in four.judged} <= links
    assert "http://" not in page
    assert "https://" not in page


def test_nothing_to_compare_is_said() -> None:
    """A page without sets is complete."""
    assert compare.headline(Comparison("x", (), {}, {})).lead == "Nothing to compare yet."


def with_random(make: Any, ipc: int, levels: tuple[float, float]) -> Judged:
    """A set of MTT whose evaluation has students of random images, too: of the set and of random images."""
    one = judged(make, "MTT", ipc, levels[0])
    rows = [*one.stage.summary["rows"], make.row("random", "convnet", 10 * ipc, [levels[1]])]
    return replace(one, stage=replace(one.stage, summary={**one.stage.summary, "rows": rows}))


def test_random_is_in_headline_chart_and_table(make: Any) -> None:
    """Also where no stage makes a set of random images: the students of each evaluation stand for it."""
    comparison = Comparison(
        "x", (with_random(make, 1, (0.7, 0.5)), with_random(make, 10, (0.6, 0.8))), {}, {"rayddl": "0"}
    )
    lead = str(compare.headline(comparison).lead).replace("\u00a0", " ")
    section = next(compare.sections(comparison, 100_000))
    chart, lines = section.charts[0], section.tables[0].rows

    assert "10 random real images 50.0 %" in lead
    assert "1 set below random: MTT, IPC 10." in lead
    assert chart.legend == (("m0", "MTT"), ("random", "random real images"))
    (line,) = [m for m in chart.marks if isinstance(m, Line) and m.tint == "random"]
    assert list(line.y) == [0.5, 0.8]
    assert [r[0].text for r in lines] == [
        "MTT, IPC 1", "MTT, IPC 1", "MTT, IPC 10, below random", "MTT, IPC 10", "random, IPC 1", "random, IPC 10",
    ]  # fmt: skip
    told = [
        _shown(e, ["convnet"], entries(comparison))
        for e in (*entries(comparison), *randoms(entries(comparison)))
    ]
    assert [each["set"] for each in told] == [
        "MTT, IPC 1",
        "MTT, IPC 10, below random",
        "random, IPC 1",
        "random, IPC 10",
    ]
    assert told[2]["ConvNet"].startswith("50.0")
    assert told[2]["time to make"] == ""


def test_random_images_of_several_protocols_are_told_apart(make: Any) -> None:
    """Sets of one size that were compared with the same random students share them; others have their own."""
    same = (with_random(make, 1, (0.7, 0.5)), replace(with_random(make, 1, (0.6, 0.5)), run="b"))
    found = entries(Comparison("x", same, {}, {}))
    assert [e.label for e in randoms(found)] == ["random, IPC 1"]
    other = (same[0], replace(with_random(make, 1, (0.6, 0.4)), run="b"))
    found = entries(Comparison("x", other, {}, {}))
    assert [e.label for e in randoms(found)] == [
        "random, IPC 1 (as MTT, IPC 1 (run), learning rate 0.01)",
        "random, IPC 1 (as MTT, IPC 1 (b), learning rate 0.01)",
    ]


def test_a_set_of_random_images_is_enough(four: Comparison) -> None:
    """Where a stage makes one for a size, no other is shown for it."""
    assert randoms(entries(four)) == ()
    assert "10 random" not in str(compare.headline(four).lead)


def two(make: Any, first: dict[str, Any], second: dict[str, Any], kinds: tuple[str, str]) -> Comparison:
    """Two sets of runs of one name each, made by a stage of the given kind with the given settings."""
    found, definitions = [], {}
    for key, settings, kind in (("d0", first, kinds[0]), ("d1", second, kinds[1])):
        one = judged(make, f"MTT{key}", 1, 0.7)
        stage = replace(one.stage, config={"set": "made", "seeds": 3})
        found.append(replace(one, key=key, stage=stage))
        made = {"kind": kind, **settings}
        source = {"name": "digits", "root": "https://me:secret@x.org/a"}
        definitions[key] = {"name": key, "seed": 0, "source": source, "stages": {"made": made}}
    kinds_ = {name: kind.config for name, kind in known().items()}
    return Comparison("x", tuple(found), definitions, {"rayddl": "0"}, kinds_)


def test_settings_that_differ_are_listed_with_the_value_of_each_set(make: Any) -> None:
    """Defaults count as given; names of stages, and what does not affect a result, are left out."""
    first = {"ipc": 1, "method": "herding", "short_class": "error", "resources": {"num_cpus": 2}}
    second = {"ipc": 10, "method": "herding", "mipc": 20}
    comparison = two(make, first, second, ("coreset", "coreset"))
    told = differences.differences(entries(comparison), comparison)
    assert [(each.setting, each.values) for each in told] == [
        ("coreset.ipc", ("1", "10")), ("coreset.mipc", ("–", "20")),
    ]  # fmt: skip
    older = two(make, first, {**second, "gone": True}, ("coreset", "coreset"))
    told = differences.differences(entries(older), older)
    assert [(each.setting, each.values) for each in told] == [
        ("coreset.ipc", ("1", "10")), ("coreset.mipc", ("–", "20")), ("coreset.gone", ("–", "true")),
    ]  # fmt: skip

    section = {s.key: s for s in compare.sections(comparison, 1000)}["differences"]
    assert [column.name for column in section.tables[0].columns] == [
        "Setting",
        "MTTd0, IPC 1",
        "MTTd1, IPC 1",
    ]
    rows = {row[0].text: [cell.text for cell in row[1:]] for row in section.tables[0].rows}
    assert rows["coreset.ipc"] == ["1", "10"]


def test_equal_settings_and_unlike_kinds_are_no_differences(make: Any) -> None:
    """No section without a difference; of stages of unlike kinds, only what evaluations name differs."""
    same = two(make, {"ipc": 1}, {"ipc": 1}, ("coreset", "coreset"))
    assert differences.differences(entries(same), same) == ()
    assert "differences" not in {s.key for s in compare.sections(same, 1000)}
    unlike = two(make, {"ipc": 1}, {"ipc": 10}, ("coreset", "rded"))
    told = differences.differences(entries(unlike), unlike)
    assert [(each.setting, each.values) for each in told] == [("evaluate.set", ("coreset", "rded"))]


def test_differences_of_unknown_kinds_are_clean_text(make: Any) -> None:
    """Credentials and control characters do not reach the terminal or the page, and long values are cut."""
    first = {"place": "s3://key:word@bucket/a", "note": "\x1b[2Jgone", "net": {"depth": 3}, "long": "a" * 500}
    second = {"place": "s3://bucket/b", "note": "<b>", "net": {"depth": 4}, "long": "b" * 500}
    comparison = two(make, first, second, ("strange", "strange"))
    told = {e.setting: e.values for e in differences.differences(entries(comparison), comparison)}
    assert told["strange.place"] == ("s3://bucket/a", "s3://bucket/b")
    assert told["strange.note"] == ("\\x1b[2Jgone", "<b>")
    assert told["strange.net.depth"] == ("3", "4")
    assert max(map(len, told["strange.long"])) <= differences.LONGEST
    page = compare.render(comparison)
    assert "\x1b" not in page
    assert "<b>" not in page
    assert ">&lt;b&gt;<" in page


def test_an_imported_set_has_the_settings_of_the_run_that_made_it(make: Any) -> None:
    """The definition that evaluates such sets only names folders; each set keeps the one that made it."""
    comparison = two(make, {"path": "/a"}, {"path": "/b"}, ("imported", "imported"))
    changed = []
    for one, ipc in zip(comparison.judged, (1, 10), strict=True):
        stages = {"old": {"kind": "coreset", "ipc": ipc}, "page": {"kind": "report"}}
        origin = {"name": "first", "seed": ipc, "source": {"name": "digits"}, "stages": stages}
        changed.append(replace(one, origin=origin, imported=True))
    comparison = replace(comparison, judged=tuple(changed))
    told = {e.setting: e.values for e in differences.differences(entries(comparison), comparison)}
    assert told["coreset.ipc"] == ("1", "10")
    assert told["seed"] == ("1", "10")


def test_many_differences_are_cut_in_the_terminal_and_folded_on_the_page() -> None:
    """The number of the others is said; of many sets, values come with the number of sets."""
    many = [differences.Difference(f"match.s{i}", ("1", "2")) for i in range(30)]
    rows = differences.as_rows(many, ["a", "b"])
    assert len(rows) == differences.IN_TERMINAL + 1
    assert _plain(rows[-1]["setting"]) == "… and 20 more settings on the page"
    assert {tuple(row) for row in rows} == {("setting", "a", "b")}
    section = differences.section(many, ["a", "b"])
    assert (len(section.tables[0].rows), len(section.folded[0].rows)) == (differences.ON_PAGE, 18)
    assert section.lead.endswith("The table has the first 12, the folded one 18 more.")

    wide = [differences.Difference("match.ipc", ("1",) * 8 + ("10", ""))]
    (row,) = differences.as_rows(wide, [f"s{i}" for i in range(10)])
    assert {key: _plain(value) for key, value in row.items()} == {
        "setting": "match.ipc", "values": "1 (8 sets); 10 (s8)",
    }  # fmt: skip
    assert [
        cell.text for cell in differences.section(wide, [f"s{i}" for i in range(10)]).tables[0].rows[0]
    ] == [*row.values()]


def test_runs_of_one_name_keep_a_column_each() -> None:
    """Equal labels are numbered."""
    assert differences.unique(["a", "b", "a"]) == ["a #1", "b", "a #2"]


def test_the_headline_leaves_no_set_out(four: Comparison, make: Any) -> None:
    """Each other set up to three with its accuracy; of more, the next one and the range of the rest."""
    lead = _plain(compare.headline(four).lead)
    assert (
        "</span> random, IPC 10 reaches 80.0 %; MTT, IPC 1 reaches 70.0 %; random, IPC 1 reaches 50.0 %."
        in lead
    )

    odd = judged(make, "RDED", 1, 0.4)
    rows = [row for row in odd.stage.summary["rows"] if row["net"] == "mlp"]
    odd = replace(odd, stage=replace(odd.stage, summary={**odd.stage.summary, "rows": rows}))
    lead = _plain(compare.headline(replace(four, judged=(*four.judged, odd))).lead)
    assert (
        "random, IPC 10 reaches 80.0 %; the 3 others reach 30.0 % to 70.0 %, some with other networks."
        in lead
    )

    empty = replace(odd, stage=replace(odd.stage, summary={**odd.stage.summary, "rows": []}))
    pair = replace(four, judged=(four.judged[0], four.judged[2], empty))
    lead = _plain(compare.headline(pair).lead)
    assert "of 3 compared sets of 3 methods" in lead
    assert "random reaches" not in lead
    assert "random, IPC 1 reaches 50.0 %. 1 set without an accuracy." in lead

    alone = _plain(compare.headline(replace(four, judged=four.judged[:1])).lead)
    assert "compared" not in alone


def test_the_headline_names_every_set_that_is_level(four: Comparison, make: Any) -> None:
    """Two sets within the noise of the best are both named."""
    recipe = {"protocol": four.judged[3].stage.summary["protocol"], "tested": 100}
    level = [
        judged(make, method, 10, mean, **recipe) for method, mean in (("A", 0.9), ("B", 0.89), ("C", 0.88))
    ]
    lead = _plain(compare.headline(replace(four, judged=tuple(level))).lead)
    assert (
        "B, IPC 10 and C, IPC 10 are level with it: the difference is within the noise of 100 held-out"
        in lead
    )
