"""An evaluate stage's section: the protocol of its students, and the source of the labels."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rayddl.report import numbers
from rayddl.report.confusion import matrix
from rayddl.stages.evaluate import figures
from rayddl.stages.evaluate.recorded import same_protocol
from rayddl.stages.evaluate.report import _headline, comparison, part, section
from rayddl.stages.evaluate.stage import shown
from rayddl.stages.kinds import known

KINDS = known()


def facts(make: Any, **protocol: Any) -> dict[str, str]:
    made = make.evaluate()
    summary = {**made.stage.summary, "protocol": protocol}
    shown = section(replace(made, stage=replace(made.stage, summary=summary)), alone=True)
    return {fact.label: fact.value for fact in shown.facts}


def test_soft_labels_are_shown_with_their_observer(make: Any) -> None:
    """Protocol, where the labels came from, and the observer with its accuracy."""
    observer = {"stage": "teacher", "net": "resnet18", "accuracy": 0.934, "folder": "observer"}
    shown = facts(make, name="soft", labels="stored", epochs=300, batch=50, observer=observer)

    assert (shown["protocol"], shown["labels"], shown["epochs each"]) == ("soft", "stored", "300")
    assert shown["observer"] == f"ResNet-18, {numbers.percent(0.934)} right"


def test_several_observers_are_shown_together(make: Any) -> None:
    """Each with its own accuracy."""
    given = [{"net": "resnet18", "accuracy": 0.9}, {"net": "convnet", "accuracy": None}]
    shown = facts(make, name="soft", observer=given)
    assert shown["observers, averaged"] == f"ResNet-18, {numbers.percent(0.9)} right; ConvNet"


@pytest.mark.parametrize("observer", [None, {}, {"stage": "teacher", "net": "convnet", "accuracy": None}])
def test_an_observer_that_is_not_known_is_not_made_up(make: Any, observer: Any) -> None:
    """Hard labels show none; without an accuracy there is only its name."""
    shown = facts(make, name="hard", observer=observer)
    assert shown["protocol"] == "hard"
    assert shown.get("observer") == ("ConvNet" if observer else None)


def test_scores_stand_in_a_table_of_their_own(make: Any) -> None:
    """Points for differences, percent for scores, each with its deviation; the gain alone needs no table."""
    made = make.evaluate()
    gain = {"over_random": {"mean": 0.2, "std": 0.01}}
    scores = {"convnet": {**gain, "hlr": {"mean": 0.25, "std": 0.02}, "lrs": {"mean": 0.26, "std": 0.004}}}

    def tables(scores: dict[str, Any]) -> dict[str, Any]:
        stage = replace(made.stage, summary={**made.stage.summary, "scores": scores})
        return {table.caption: table for table in section(replace(made, stage=stage), alone=True).tables}

    table = tables(scores)["What the accuracy is worth"]
    assert [cell.text for cell in table.rows[0]] == [
        "ConvNet",
        "+20.0 ± 1.0",
        "+25.0 ± 2.0",
        "26.0\u00a0% ± 0.4",
    ]
    assert [column.name for column in table.columns][2:] == [
        "Hard-label recovery, HLR (points)",
        "Label-robust score",
    ]
    assert "What the accuracy is worth" not in tables({"convnet": gain})


def test_students_mistakes_are_shown_where_they_were_written_down(make: Any) -> None:
    """A matrix for each network trained on the set; stages of older versions have none."""
    made = make.evaluate()
    texts = {"data": np.array(["distilled", "random"]), "net": np.array(["convnet", "convnet"])}
    counts = {"true": np.array([0, 1]), "predicted": np.array([1, 1]), "count": np.array([3, 9])}
    (shown,) = section(
        replace(made, confusion={**texts, **counts}, classes=("cat", "dog")), alone=True
    ).matrices

    assert shown.alt == "Confusion matrix of ConvNet: 0.0\u00a0% right; most often cat is taken for dog"
    assert section(made, alone=True).matrices == ()


def test_further_lessons_are_named_in_words(make: Any) -> None:
    """Students without augmentation, and with hard labels, are distinguished from the others."""
    rows = [make.row(data, "convnet", 10, [0.5]) for data in ("distilled-bare", "random-bare", "whole-hard")]
    found = figures.rows([make.evaluate(rows=rows).stage])

    assert [row.what for row in found] == [
        "10\u00a0distilled images, not augmented",
        "10\u00a0random real images, not augmented",
        "all 10\u00a0images, hard labels",
    ]


@pytest.mark.parametrize("own", [None, 0.2, 0.3])
@pytest.mark.parametrize(("distilled", "below"), [(0.4, True), (0.5, False), (0.7, False)])
def test_a_set_below_random_images_is_named_so(
    make: Any, distilled: float, below: bool, own: float | None
) -> None:
    """In the table that a run prints, in the page's table and in its headline; so are students of own labels."""
    rows = [make.row("distilled", "convnet", 10, [distilled]), make.row("random", "convnet", 10, [0.5])]
    if own is not None:
        rows += [
            make.row("distilled-own", "convnet", 10, [own]),
            make.row("random-own", "convnet", 10, [0.25]),
        ]
    printed = [line["data"] for line in shown("distill", rows)]
    assert printed[:2] == [f"distilled (distill){', below random' if below else ''}", "random real images"]
    assert printed[2:3] in (
        [],
        [f"distilled (distill), own labels{', below random' if own == 0.2 else ''}"],
    )

    made = make.evaluate(rows=rows)
    table = comparison([made.stage], 10).tables[0]  # type: ignore[union-attr]
    assert table.rows[0][1].text == ("distilled, below random" if below else "distilled")
    told = {None: None, 0.2: ("distilled-own, below random", "\u22125.0"), 0.3: ("distilled-own", "+5.0")}[
        own
    ]
    assert told in [None, *((row[1].text, row[-1].text) for row in table.rows)]
    (duel,) = figures.paired_results([made.stage])
    assert (">less than " in _headline(duel, make.run(), 0)) == below


def beside(make: Any, *, epochs: int = 300, net: str = "convnet", images: int = 10) -> Any:
    """A set that has no random images in its own stage, and another one whose stage has."""
    poor = make.evaluate("poor", "b", [make.row("distilled", "convnet", 10, [0.4])])
    rows = [make.row("distilled", net, images, [0.7]), make.row("random", net, images, [0.5])]
    rich = make.evaluate("rich", "a", rows)
    protocol = {**rich.stage.summary["protocol"], "epochs": epochs}
    summary = {**rich.stage.summary, "protocol": protocol}
    return poor, replace(rich, stage=replace(rich.stage, summary=summary))


@pytest.mark.parametrize(
    ("changes", "below"),
    [({}, True), ({"epochs": 5}, False), ({"net": "mlp"}, False), ({"images": 20}, False)],
)
def test_random_images_of_another_stage_count_if_all_is_equal(
    make: Any, changes: dict[str, Any], below: bool
) -> None:
    """With ``random: false``, those of a stage with the same protocol, network and number of images."""
    both = beside(make, **changes)
    table = comparison([each.stage for each in both], 10).tables[0]  # type: ignore[union-attr]
    lead = _plain(part(both, make.run()).lead)
    (said,) = KINDS["evaluate"].cautions_beside(*_summaries(both)) or ("",)

    assert table.rows[0][2].text == ("distilled, below random" if below else "distilled")
    assert ("Below random: poor with ConvNet." in lead) == below
    assert ("40.0 % with the set and 50.0 % with random real images" in said) == below


@pytest.mark.parametrize("protocol", [None, {}, "hard", []])
def test_protocols_that_are_not_recorded_are_not_the_same(protocol: Any) -> None:
    """As in folders of old versions, and in those that someone has changed."""
    assert not same_protocol({"protocol": protocol}, {"protocol": protocol})
    assert not same_protocol({}, {})


SOFT = {"name": "soft", "epochs": 300, "observer": {"stage": "t", "net": "convnet", "accuracy": 0.98311}}


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({}, True),
        ({"protocol": {**SOFT, "own_labels": False, "report": "best"}}, True),
        ({"factor": 2}, False),
        ({"protocol": {**SOFT, "lr": 0.1}}, False),
        ({"protocol": {**SOFT, "lr_grid": [0.1, 0.2]}}, False),
        ({"protocol": {**SOFT, "observer": {"stage": "t", "net": "convnet", "accuracy": 0.98289}}}, False),
    ],
)
def test_random_images_are_of_the_same_protocol(change: dict[str, Any], same: bool) -> None:
    """What they are trained by, their crops among it, is equal; the rate of hard labels is each set's own."""
    assert same_protocol({"protocol": SOFT}, {"protocol": SOFT, **change}) == same
    cropped = {**SOFT, "crop_min": 0.2}
    assert same_protocol({"protocol": cropped, "factor": 2}, {"protocol": cropped})
    assert same_protocol({"protocol": {"name": "hard", "lr": 0.1}}, {"protocol": {"name": "hard", "lr": 0.2}})


def test_random_images_of_the_own_stage_may_be_fewer(make: Any) -> None:
    """A set with classes of unequal size is compared with the whole number of images a class."""
    rows = [make.row("distilled", "convnet", 95, [0.4]), make.row("random", "convnet", 90, [0.5])]
    (duel,) = figures.paired_results([make.evaluate(rows=rows).stage])
    assert duel.random is not None


def _summaries(both: Any) -> tuple[Any, list[Any]]:
    return both[0].stage.summary, [both[1].stage.summary]


def _plain(text: object) -> str:
    return re.sub("<[^>]*>", "", str(text)).replace(numbers.NBSP, " ")


def test_a_headline_names_all_that_is_below_random(make: Any) -> None:
    """It shows the best result; the others that are below random are named, the first three."""
    rows = [make.row("distilled", "convnet", 10, [0.7]), make.row("random", "convnet", 10, [0.5])]
    for net in ("mlp", "vgg", "lenet", "alexnet"):
        rows += [make.row("distilled", net, 10, [0.3]), make.row("random", net, 10, [0.5])]
    alone = make.evaluate(rows=rows)
    assert "Below random: MLP, VGG, LeNet, 1 more." in _plain(part([alone], make.run()).lead)
    assert "Below random" not in _plain(part([make.evaluate()], make.run()).lead)
    poor = make.evaluate(rows=[make.row("distilled", "convnet", 10, [0.4]), *rows[1:]])
    assert "Also below random: MLP" in _plain(part([poor], make.run()).lead)


@pytest.mark.parametrize(("tested", "close"), [(40, True), (4000, False), (float("nan"), False)])
def test_a_headline_says_what_is_noise(make: Any, tested: float, close: bool) -> None:
    """Five points are within the noise of 40 held-out images."""
    rows = [make.row("distilled", "convnet", 10, [0.45]), make.row("random", "convnet", 10, [0.5])]
    (duel,) = figures.paired_results([make.evaluate(rows=rows).stage])
    text = _headline(duel, make.run(), tested)

    assert ("%, a difference within the noise of 40 held-out images." in text) == close


def test_the_best_of_late_epochs_is_a_column_of_its_own(make: Any) -> None:
    """Next to the last epoch's accuracy, which is then named; without it no column is added."""
    row = make.row("distilled", "convnet", 10, [0.49, 0.51])
    (line,) = shown("distill", [{**row, "best": {"mean": 0.6, "std": 0.01}}])
    assert line["accuracy % (last epoch)"].startswith("50.0")
    assert line["best of late epochs %"] == "60.0 ± 1.0"
    assert shown("distill", [row])[0]["accuracy %"] == "50.0 ± 1.0"
    assert shown("distill", [make.row("distilled", "convnet", 10, [0.5])])[0]["accuracy %"] == "50.0"

    table = comparison([make.evaluate(rows=[{**row, "best": {"mean": 0.6, "std": 0.01}}]).stage], 10).tables[
        0
    ]  # type: ignore[union-attr]
    names = [column.name for column in table.columns]
    assert names[3:5] == ["Mean accuracy (last epoch)", "Best of late epochs"]
    assert [cell.text for cell in table.rows[0]][3:5] == [numbers.percent(0.5), numbers.percent(0.6)]
    assert len(table.rows[0]) == len(names)
    plain = comparison([make.evaluate(rows=[row]).stage], 10).tables[0]  # type: ignore[union-attr]
    assert "Best of late epochs" not in [column.name for column in plain.columns]


def test_accuracy_class_by_class(make: Any) -> None:
    """The share of right answers of each class, over all students, for each training data; none for no images."""
    table = {
        "data": np.array(["distilled"] * 3 + ["random"]),
        "net": np.array(["convnet"] * 4),
        "true": np.array([0, 0, 1, 1]),
        "predicted": np.array([0, 1, 1, 0]),
        "count": np.array([30, 10, 20, 5]),
    }
    rows = [make.row("distilled", "convnet", 2, [0.8]), make.row("random", "convnet", 2, [0.4])]
    found = replace(make.evaluate(rows=rows), confusion=table, classes=("cat", "dog"))

    shown = section(found, alone=True).tables[0]

    assert shown.caption == "Accuracy class by class: ConvNet"
    assert [c.name for c in shown.columns] == ["Class", "distilled", "random"]
    assert [[cell.text for cell in line] for line in shown.rows] == [
        ["cat", numbers.percent(0.75), numbers.ABSENT],
        ["dog", numbers.percent(1.0), numbers.percent(0.0)],
    ]


def test_the_scale_has_the_shades_of_the_fields() -> None:
    """A field of a share is as opaque as that share on the scale below the matrix."""
    shares = (0, 25, 50, 75, 100)
    true, predicted = np.divmod(np.arange(25), 5)
    count = np.where(predicted == true, [shares[t] for t in true], 0)
    count += np.where(predicted == (true + 1) % 5, [100 - shares[t] for t in true], 0)
    named = {"data": np.full(25, "distilled"), "net": np.full(25, "n")}
    made = matrix({**named, "true": true, "predicted": predicted, "count": count}, "n", tuple("abcde"), "n")
    assert made is not None
    picture = Image.open(io.BytesIO(base64.b64decode(made.src.partition(",")[2])))
    fields = np.diagonal(np.array(picture)[..., 3]) / 255
    scale = [float(found) for found in re.findall(r'fill-opacity="([\d.]+)"', made.draw())]

    assert scale == pytest.approx(list(fields), abs=0.003)
    assert ">100 %</text>" in made.draw()


@pytest.mark.parametrize("count", [3, 24, 25])
def test_the_confusion_matrix_has_axes_and_names(count: int) -> None:
    """True classes at the left, answers above; names up to 24 classes, shortened, and only as text."""
    names = ("<b>&", *(f"class {i} of a long name" for i in range(1, count)))
    true = np.arange(count)
    table = {
        "data": np.full(count, "distilled"), "net": np.full(count, "convnet"), "true": true,
        "predicted": true, "count": np.full(count, 5),
    }  # fmt: skip
    made = matrix(table, "convnet", names, "ConvNet")
    assert made is not None
    drawn = made.draw()

    assert ">true class</text>" in drawn
    assert ">taken for</text>" in drawn
    assert drawn.count("class 1 of …</text>") == (2 if count <= 24 else 0)
    assert drawn.count("&lt;b&gt;&amp;</text>") == (2 if count <= 24 else 0)
    assert "<b>" not in drawn
