"""The report section of ``kind: evaluate``: one comparison over all stages, and the students of each."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from markupsafe import Markup

from rayddl.data.distilled import KIND
from rayddl.report import numbers
from rayddl.report.bars import Bar, Bars, Group
from rayddl.report.confusion import Matrix, matrix
from rayddl.report.headline import held_out
from rayddl.report.run import Part, Place, ReportedStage, Run
from rayddl.report.sections import Fact, Panel, Section, links_to, net_name, slug
from rayddl.report.tables import Cell, Column, Table
from rayddl.report.values import Columns, Stage, number
from rayddl.stages.cautions import in_noise
from rayddl.stages.context import Input
from rayddl.stages.evaluate.figures import (
    BELOW,
    HOW,
    PairedResult,
    Row,
    best,
    confusion_of,
    paired_results,
    rows,
    rows_of,
)
from rayddl.stages.evaluate.recorded import PROTOCOL, observers_text
from rayddl.stages.evaluate.script import FREE, SCRIPT, reads_held_out
from rayddl.stages.finished import as_stage, columns

SCORES = {
    "over_random": ("Over random (points)", "points"),
    "of_whole": ("Of the whole data's accuracy", "percent"),
    "hlr": ("Hard-label recovery, HLR (points)", "points"),
    "slr": ("Soft-label recovery (points)", "points"),
    "lrs": ("Label-robust score", "percent"),
    "ars": ("Augmentation-robust score", "percent"),
}
"""Scores in the order shown, with title and unit."""
OPEN_CLASSES = 12
"""Number of classes above which their accuracies are collapsed."""
OPEN_STUDENTS = 12
"""Number of students above which their table is collapsed."""
NAMED = 3
"""Number of results below random images that the headline names."""
TINT = "set"
STUDENTS = ("data", "net", "seed", "accuracy", "seconds")


@dataclass(frozen=True)
class Evaluate(ReportedStage):
    """A finished evaluation: one row of ``students`` per trained student.

    ``confusion`` has one row per student and nonzero entry of its confusion matrix.
    """

    place: ClassVar[Place] = Place.STUDENTS

    students: Columns
    confusion: Columns | None = None
    classes: tuple[str, ...] = ()


def read(found: Input) -> Evaluate:
    """Read a finished evaluate stage."""
    confusion = confusion_of(found)
    classes = KIND.read(found.folder.child("set"))["classes"] if confusion is not None else ()
    students = columns(found, "students.parquet", STUDENTS)
    return Evaluate(as_stage(found, TINT), students, confusion, tuple(classes))


def part(evaluations: Sequence[Evaluate], run: Run) -> Part:
    """The comparison of all evaluations, then a section for the students of each."""
    stages = [evaluation.stage for evaluation in evaluations]
    duels = paired_results(stages)
    duel = best(duels)
    compared = comparison(stages, _classes(run))
    sections = [] if compared is None else [(Place.RESULT, compared)]
    alone = len(evaluations) == 1
    sections += [(Place.STUDENTS, section(evaluation, alone)) for evaluation in evaluations]
    sections += [(Place.PICKED, use(evaluations, run))] if compared is not None else []
    if duel is None:
        return Part(Place.RESULT, tuple(sections))
    summary = next(stage.summary for stage in stages if stage.name == duel.distilled.stage)
    lead = _headline(duel, run, number(summary.get("tested"))) + _others_below(duel, duels)
    return Part(Place.RESULT, tuple(sections), lead, summary.get("set"), tuple(_gains(duel)))


def _headline(duel: PairedResult, run: Run, tested: float) -> Markup:
    mine = duel.distilled
    lead = Markup("<strong>{}</strong> {} {} <strong>{}</strong> on {}").format(
        numbers.counted(mine.images, "image"),
        "teaches" if mine.images == 1 else "teach",
        net_name(mine.net),
        numbers.percent(mine.mean),
        held_out(run.source),
    )
    if duel.random is None:
        return lead + Markup(".")
    below = duel.gain < 0
    close = in_noise(mine.mean, duel.random.mean, tested)
    why = f", a difference within the noise of {tested:,.0f} held-out images" if close else ""
    text = Markup('; <span class="against">{}{} {}{}.</span>')
    return lead + text.format(
        "less than " if below else "", duel.random.what, numbers.percent(duel.random.mean), why
    )


def _others_below(duel: PairedResult, duels: Sequence[PairedResult]) -> Markup:
    """A sentence on the results that the headline does not show and that are below random images."""
    others = [each.distilled for each in duels if each is not duel and each.gain < 0]
    if not others:
        return Markup("")
    several = len({each.distilled.stage for each in duels}) > 1
    names = [f"{r.stage} with {net_name(r.net)}" if several else net_name(r.net) for r in others[:NAMED]]
    more = [f"{len(others) - NAMED} more"] if len(others) > NAMED else []
    text = Markup(' <span class="against">{}: {}.</span>')
    return text.format("Also below random" if duel.gain < 0 else "Below random", ", ".join([*names, *more]))


def _gains(duel: PairedResult) -> Iterable[Fact]:
    if math.isfinite(duel.gain):
        yield Fact(f"{numbers.points(duel.gain)} points", "over random real images")
    if duel.whole is not None and duel.whole.mean > 0:
        yield Fact(numbers.percent(duel.distilled.mean / duel.whole.mean, 0), "of the whole data's accuracy")
    if duel.whole is not None and duel.whole.images > 0:
        yield Fact(numbers.percent(duel.distilled.images / duel.whole.images), "of the images")


def comparison(stages: Sequence[Stage], classes: int) -> Section | None:
    """All evaluate rows on one axis and in one table; a line marks chance among ``classes``, unless that is 0."""
    found = rows(stages)
    if not found:
        return None
    several = len(stages) > 1
    keys = list(dict.fromkeys((r.stage, r.net) for r in found))
    groups = tuple(
        Group(
            net_name(net),
            f"in {stage}" if several else "",
            tuple(_bar(r) for r in found if (r.stage, r.net) == (stage, net)),
        )
        for stage, net in keys
    )
    bars = Bars(
        groups,
        shares=True,
        level=1 / classes if classes else math.nan,
    )
    note = "Bar: mean over students. Whisker: ± one standard deviation. Dots: single students."
    if classes:
        note += f" Dotted line: guessing among {classes} classes, {numbers.percent(1 / classes)}."
    return Section(
        key="accuracy",
        title="Accuracy",
        lead="Students trained from scratch on the data named, and tested on held-out images.",
        made_by=links_to(stages),
        panels=(Panel("Test accuracy", bars, note),),
        tables=(_table(found, [*paired_results(stages), *paired_results(stages, "own")], several),),
    )


def section(evaluation: Evaluate, alone: bool) -> Section:
    """The section of one evaluate stage: its protocol and every student."""
    stage = evaluation.stage
    students = _students(evaluation)
    folded = len(students.rows) > OPEN_STUDENTS
    protocol = stage.summary.get("protocol")
    by_class, many = tuple(_by_class(evaluation)), len(evaluation.classes) > OPEN_CLASSES
    return Section(
        key=slug("evaluate", stage.name),
        title="Students" if alone else f"Students of {stage.name}",
        short="Students" if alone else stage.name,
        lead="Every student that was trained, with the seed that made it.",
        made_by=links_to([stage]),
        facts=tuple(_protocol(protocol, stage.summary, stage.seconds)),
        tables=(*_scores(stage), *(() if many else by_class), *(() if folded else (students,))),
        folded=(*(by_class if many else ()), *((students,) if folded else ())),
        matrices=_matrices(evaluation),
    )


def _by_class(evaluation: Evaluate) -> Iterable[Table]:
    """For each network, the accuracy of every class, by training data."""
    confusion, found = evaluation.confusion, rows_of(evaluation.stage)
    if confusion is None:
        return
    for net in dict.fromkeys(r.net for r in found):
        shares = {
            r.data: _right(confusion, net, r.data, len(evaluation.classes)) for r in found if r.net == net
        }
        lines = tuple(
            (Cell(name), *(Cell(numbers.percent(each[i]), each[i]) for each in shares.values()))
            for i, name in enumerate(evaluation.classes)
        )
        head = (Column("Class"), *(Column(_data(data), True) for data in shares))
        yield Table(f"Accuracy class by class: {net_name(net)}", head, lines)


def _right(confusion: Columns, net: str, data: str, classes: int) -> list[float]:
    """The accuracy of each class over all students of ``net`` trained on ``data``; NaN for one without images."""
    mine = (confusion["net"] == net) & (confusion["data"] == data)
    true, count = confusion["true"][mine].astype(int), confusion["count"][mine]
    shown = np.bincount(true, count, classes)
    right = np.bincount(true, count * (confusion["predicted"][mine] == true), classes)
    return [float(hits / of) if of else math.nan for hits, of in zip(right, shown, strict=True)]


def _data(data: str) -> str:
    """``distilled-own`` as ``distilled, own labels``."""
    plain, _, how = data.partition("-")
    return plain + HOW.get(how, f", {how}")


def use(evaluations: Sequence[Evaluate], run: Run) -> Section:
    """Commands that bring the set into a program of its reader."""
    name = shlex.quote(run.name)
    own = reads_held_out(run.source)
    test = "" if own or run.source.get("name") in FREE else " --with-test"
    train = f"python shared/{SCRIPT}{' TEST' if own else ''}"
    tested_on = " on TEST, the folder of the held-out images (-h says in what form)" if own else ""
    stage = f" --stage {shlex.quote(evaluations[0].stage.name)}" if len(evaluations) > 1 else ""
    given = f", stage={evaluations[0].stage.name!r}" if len(evaluations) > 1 else ""
    return Section(
        key="use",
        title="Use this set",
        short="Use",
        lead="The first command writes a folder for others: images, labels, a card, and train.py, which trains on them "
        f"in plain PyTorch as it was measured here, and tests{tested_on}. "
        "Run it where the run was started, or add --out.",
        commands=f"rayddl export {name}{stage} --format hf{test} --to shared\n{train}\n\n"
        f"# in Python\nimport rayddl\nmade = rayddl.load_set({run.name!r}{given})\n"
        "made.images, made.labels, made.lr_student, made.space.encode  # for test images",
    )


def _matrices(evaluation: Evaluate) -> tuple[Matrix, ...]:
    """The confusion matrix of the set's students, for each network."""
    confusion, nets = evaluation.confusion, dict.fromkeys(r.net for r in rows_of(evaluation.stage))
    if confusion is None:
        return ()
    found = (matrix(confusion, net, evaluation.classes, net_name(net)) for net in nets)
    return tuple(made for made in found if made is not None)


def _scores(stage: Stage) -> tuple[Table, ...]:
    """The scores by network; empty if the set is compared with random images only."""
    scores = stage.summary.get("scores") or {}
    known = [name for name in SCORES if any(name in found for found in scores.values())]
    if not set(known) - {"over_random"}:
        return ()
    rows = []
    for net, found in scores.items():
        cells = [Cell(net_name(net))]
        for name in known:
            mean, std = (number((found.get(name) or {}).get(part)) for part in ("mean", "std"))
            text = numbers.points(mean) if SCORES[name][1] == "points" else numbers.percent(mean)
            cells.append(Cell(f"{text} ± {100 * std:.1f}" if math.isfinite(std) else text, mean))
        rows.append(tuple(cells))
    head = (Column("Net"), *(Column(SCORES[name][0], True) for name in known))
    return (Table("What the accuracy is worth", head, tuple(rows)),)


def _bar(row: Row) -> Bar:
    return Bar(
        label=row.what,
        value=row.mean,
        text=row.text,
        tint={"distilled": "set", "whole": "whole"}.get(row.data.partition("-")[0], "random"),
        std=row.std,
        singles=row.accuracies,
        hints=tuple(
            f"student {i} of {len(row.accuracies)}: {numbers.percent(a)}"
            for i, a in enumerate(row.accuracies, 1)
        ),
    )


def _table(found: Sequence[Row], duels: Sequence[PairedResult], several: bool) -> Table:
    gains = {(d.distilled.stage, d.distilled.net, d.distilled.data): d.gain for d in duels}
    columns = [Column("Net"), Column("Trained on"), Column("Images", True), Column("Mean accuracy", True)]
    late = any(math.isfinite(r.best) for r in found)
    columns[3] = Column("Mean accuracy (last epoch)" if late else "Mean accuracy", True)
    columns += [Column("Best of late epochs", True)] if late else []
    columns += [Column("Std (points)", True), Column("Students", True), Column("Over random (points)", True)]
    lines = []
    for r in found:
        gain = gains.get((r.stage, r.net, r.data), math.nan)
        line = [
            Cell(net_name(r.net)),
            Cell(r.data + (BELOW if gain < 0 else ""), strong=r.data == "distilled"),
            Cell(numbers.count(r.images), r.images),
            Cell(numbers.percent(r.mean), r.mean, strong=r.data == "distilled"),
            *([Cell(numbers.percent(r.best), r.best)] if late else []),
            Cell(_deviation(r), r.std),
            Cell(str(len(r.accuracies)), len(r.accuracies)),
            Cell(numbers.points(gain), gain),
        ]
        lines.append((Cell(r.stage), *line) if several else tuple(line))
    head = [Column("Stage"), *columns] if several else columns
    return Table("Test accuracy by net and training data", tuple(head), tuple(lines))


def _deviation(row: Row) -> str:
    known = math.isfinite(row.std) and len(row.accuracies) > 1
    return f"{row.std * 100:.1f}" if known else numbers.ABSENT


def _students(evaluation: Evaluate) -> Table:
    t = evaluation.students
    columns = [t[name].tolist() for name in ("data", "net", "seed", "accuracy", "seconds")]
    lines = tuple(
        (
            Cell(net_name(str(net))),
            Cell(str(data), strong=data == "distilled"),
            Cell(str(seed), seed),
            Cell(numbers.percent(accuracy), accuracy),
            Cell(numbers.duration(seconds), seconds),
        )
        for data, net, seed, accuracy, seconds in zip(*columns, strict=True)
    )
    head = (
        Column("Net"),
        Column("Trained on"),
        Column("Seed", True),
        Column("Test accuracy", True),
        Column("Time", True),
    )
    return Table(f"Students of {evaluation.stage.name}", head, lines)


def _protocol(protocol: Any, summary: Any, seconds: float) -> Iterable[Fact]:
    if summary.get("set"):
        yield Fact(str(summary["set"]), "set judged")
    if isinstance(protocol, dict):
        for key, label in PROTOCOL.items():
            if protocol.get(key) is not None:
                value = protocol[key]
                yield Fact(numbers.figure(value) if isinstance(value, float) else _spaced(value), label)
        if observers := observers_text(protocol.get("observer")):
            single = not isinstance(protocol["observer"], list) or len(protocol["observer"]) == 1
            yield Fact(observers, "observer" if single else "observers, averaged")
    if summary.get("label_bytes"):
        # Stored labels can be many times as large as the images that they are made for.
        images = numbers.size(number(summary.get("bytes")))
        yield Fact(f"{numbers.size(number(summary['label_bytes']))}, images {images}", "stored labels")
    if math.isfinite(seconds):
        yield Fact(numbers.duration(seconds), "stage took")


def _spaced(value: Any) -> str:
    """``color_crop`` as ``color, crop``, so that long values can wrap."""
    return str(value).replace("_", ", ")


def _classes(run: Run) -> int:
    sizes = {len(made.pictures.classes) for made in run.at(Place.MADE) if made.pictures is not None}
    return sizes.pop() if len(sizes) == 1 else 0
