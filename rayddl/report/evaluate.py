"""Evaluate stages: one comparison over all of them, and each one's students."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rayddl.report import numbers
from rayddl.report.bars import Bar, Bars, Group
from rayddl.report.confusion import Matrix, matrix
from rayddl.report.run import Evaluate, Match, Run, Stage, number
from rayddl.report.sections import Fact, Panel, Section, net_name, slug
from rayddl.report.tables import Cell, Column, Table

ORDER = ("distilled", "random", "whole", "distilled-bare", "random-bare", "distilled-hard", "whole-hard")
HOW = {"": "", "bare": ", not augmented", "hard": ", hard labels"}
"""What the endings of lessons' names mean."""
SCORES = {
    "over_random": ("Over random (points)", "points"),
    "of_whole": ("Of the whole data's accuracy", "percent"),
    "hlr": ("Hard-label recovery, HLR (points)", "points"),
    "slr": ("Soft-label recovery (points)", "points"),
    "lrs": ("Label-robust score", "percent"),
    "ars": ("Augmentation-robust score", "percent"),
}
"""Scores in the order shown: what they are called, and their unit."""
PROTOCOL = {
    "name": "protocol",
    "labels": "labels",
    "epochs": "epochs each",
    "lr": "learning rate",
    "batch": "batch",
    "augment": "augmentation",
    "precision": "precision",
}
"""The settings of a protocol that are shown, and what they are called."""

OPEN_STUDENTS = 12
"""Students above which their table is folded away."""


@dataclass(frozen=True)
class Row:
    """One line of an evaluate stage's result: a net taught by one kind of data."""

    stage: str
    data: str
    net: str
    images: int
    mean: float
    std: float
    accuracies: tuple[float, ...]
    top5: float = math.nan
    """The mean share of right answers among the five likeliest; NaN where it says nothing."""

    @property
    def text(self) -> str:
        """``71.2 ± 1.3 %``."""
        return numbers.spread(self.mean, self.std, len(self.accuracies) > 1)

    @property
    def what(self) -> str:
        """``10 distilled images``."""
        plain, _, how = self.data.partition("-")
        kind = {"distilled": "distilled ", "random": "random real ", "whole": ""}.get(plain, f"{plain} ")
        every = "all " if plain == "whole" else ""
        return every + numbers.counted(self.images, f"{kind}image") + HOW.get(how, f", {how}")


@dataclass(frozen=True)
class Duel:
    """A net taught by the distilled set, and by what it is held against."""

    distilled: Row
    random: Row | None
    whole: Row | None

    @property
    def gain(self) -> float:
        """Distilled minus random, as a share."""
        return self.distilled.mean - self.random.mean if self.random else math.nan


def rows(evaluations: Iterable[Evaluate]) -> list[Row]:
    """The rows of all evaluate stages, by stage, then net, distilled first."""
    found = [row for e in evaluations for row in rows_of(e.stage)]
    nets = list(dict.fromkeys((r.stage, r.net) for r in found))
    rank = {data: i for i, data in enumerate(ORDER)}
    return sorted(found, key=lambda r: (nets.index((r.stage, r.net)), rank.get(r.data, len(rank))))


def rows_of(stage: Stage) -> list[Row]:
    """The rows of one evaluate stage as they come."""
    return [_row(stage.name, r) for r in stage.summary.get("rows", ())]


def duels(found: Sequence[Row]) -> list[Duel]:
    """One for every distilled row, in order."""
    by_key = {(r.stage, r.net, r.data): r for r in found}
    return [
        Duel(r, by_key.get((r.stage, r.net, "random")), by_key.get((r.stage, r.net, "whole")))
        for r in found
        if r.data == "distilled"
    ]


def best(found: Sequence[Duel]) -> Duel | None:
    """The duel whose distilled accuracy is highest."""
    finite = [d for d in found if math.isfinite(d.distilled.mean)]
    return max(finite, key=lambda d: d.distilled.mean, default=None)


def comparison(run: Run) -> Section | None:
    """All evaluate rows on one axis and in one table."""
    found = rows(run.evaluations)
    if not found:
        return None
    classes = _classes(run.matches)
    several = len(run.evaluations) > 1
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
        note += f" Dashed: guessing among {classes} classes, {numbers.percent(1 / classes)}."
    return Section(
        key="accuracy",
        title="Accuracy",
        lead="Students trained from scratch on the data named, and tested on held-out images.",
        panels=(Panel("Test accuracy", bars, note),),
        tables=(_table(found, several),),
    )


def section(evaluation: Evaluate, alone: bool) -> Section:
    """One evaluate stage: its protocol and every student."""
    stage = evaluation.stage
    students = _students(evaluation)
    folded = len(students.rows) > OPEN_STUDENTS
    protocol = stage.summary.get("protocol")
    return Section(
        key=slug("evaluate", stage.name),
        title="Students" if alone else f"Students of {stage.name}",
        short="Students" if alone else stage.name,
        lead="Every student that was trained, with the seed that made it.",
        facts=tuple(_protocol(protocol, stage.summary, stage.seconds)),
        tables=(*_scores(stage), *(() if folded else (students,))),
        folded=(students,) if folded else (),
        matrices=_matrices(evaluation),
    )


def _matrices(evaluation: Evaluate) -> tuple[Matrix, ...]:
    """What students of the set take for what, for each network."""
    confusion, nets = evaluation.confusion, dict.fromkeys(r.net for r in rows_of(evaluation.stage))
    if confusion is None:
        return ()
    found = (matrix(confusion, net, evaluation.classes, net_name(net)) for net in nets)
    return tuple(made for made in found if made is not None)


def _scores(stage: Stage) -> tuple[Table, ...]:
    """What the accuracies are worth, by network; nothing where only random images stand beside the set."""
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


def _row(stage: str, row: Any) -> Row:
    return Row(
        stage=stage,
        data=str(row.get("data")),
        net=str(row.get("net")),
        images=int(row.get("images") or 0),
        mean=number(row.get("mean")),
        std=number(row.get("std")),
        accuracies=tuple(number(a) for a in row.get("accuracies") or ()),
        top5=number((row.get("top5") or {}).get("mean")),
    )


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


def _table(found: Sequence[Row], several: bool) -> Table:
    gains = {(d.distilled.stage, d.distilled.net): d.gain for d in duels(found)}
    columns = [Column("Net"), Column("Trained on"), Column("Images", True), Column("Mean accuracy", True)]
    columns += [Column("Std (points)", True), Column("Students", True), Column("Over random (points)", True)]
    lines = []
    for r in found:
        gain = gains.get((r.stage, r.net), math.nan) if r.data == "distilled" else math.nan
        line = [
            Cell(net_name(r.net)),
            Cell(r.data, strong=r.data == "distilled"),
            Cell(numbers.count(r.images), r.images),
            Cell(numbers.percent(r.mean), r.mean, strong=r.data == "distilled"),
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
        yield from _observer(protocol.get("observer"))
    if math.isfinite(seconds):
        yield Fact(numbers.duration(seconds), "stage took")


def _observer(observer: Any) -> Iterable[Fact]:
    """The network that gave the soft labels, and how often it is right itself."""
    if isinstance(observer, dict) and observer.get("net"):
        right = number(observer.get("accuracy"))
        known = f", {numbers.percent(right)} right" if math.isfinite(right) else ""
        yield Fact(f"{net_name(str(observer['net']))}{known}", "observer")


def _spaced(value: Any) -> str:
    """``color_crop`` as ``color, crop``, so that a long one can break over lines."""
    return str(value).replace("_", ", ")


def _classes(matches: Sequence[Match]) -> int:
    sizes = {len(m.pictures.classes) for m in matches}
    return sizes.pop() if len(sizes) == 1 else 0
