"""The page of a comparison: the sets that evaluate stages evaluated, side by side."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rayddl.report import numbers
from rayddl.report.charts import Chart, Hint, Line, Mark, Spots, Whiskers
from rayddl.report.confusion import Matrix, matrix, mistakes
from rayddl.report.gallery import sets_gallery
from rayddl.report.page import assembled, definition_section
from rayddl.report.run import PICTURE_BYTES
from rayddl.report.sections import Section, net_name, slug
from rayddl.report.tables import Cell, Column, Table
from rayddl.report.values import number
from rayddl.stages.compare import differences, protocols
from rayddl.stages.compare.entries import (
    RANDOM,
    TINTS,
    Comparison,
    Entry,
    entries,
    nets_of,
    random_of,
    randoms,
)
from rayddl.stages.compare.headline import headline
from rayddl.stages.evaluate.figures import BELOW, Row

SCORES = {
    "of_whole": "Of whole data's",
    "hlr": "Hard-label recovery",
    "lrs": "Label-robust",
    "ars": "Augmentation-robust",
}
"""Scores that get a column if any set has them, with the column's title."""
DODGE = 0.05
"""Offset of neighbouring error bars, as a share of the distance between two numbers of images."""


def render(comparison: Comparison) -> str:
    """The page of several sets as HTML."""
    shown = [*sections(comparison, PICTURE_BYTES), *_definitions(comparison)]
    return assembled(comparison.name, headline(comparison), shown, comparison.versions)


def _definitions(comparison: Comparison) -> Iterable[Section]:
    """A section with each set's definition, linked from its results."""
    several = len(comparison.definitions) > 1
    for key, definition in comparison.definitions.items():
        name = str(definition.get("name") or key)
        title = f"Definition of {name}" if several else "Definition"
        yield definition_section(definition, name=name if several else "", key=f"{key}-", title=title)


def sections(comparison: Comparison, budget: int) -> Iterator[Section]:
    """The page's sections in order."""
    found = entries(comparison)
    links = tuple(entry.link for entry in found)
    yield Section(
        key="accuracy", title="Accuracy", made_by=links,
        lead="Students trained from scratch on each set, and tested on held-out images.",
        charts=tuple(_by_ipc(found, net) for net in nets_of(found)),
        tables=(_table(found),),
    )  # fmt: skip
    if any(math.isfinite(entry.seconds) for entry in found):
        yield Section(
            key="cost", title="Cost", made_by=links,
            lead="What was spent on a set, experts and teachers included, against what it teaches.",
            charts=tuple(_by_time(found, net) for net in nets_of(found)),
        )  # fmt: skip
    if len(nets_of(found)) > 1:
        yield Section(
            key="networks", title="Networks", made_by=links,
            lead="Each set with every network: a set is worth what it teaches networks that did not make it.",
            tables=(_heat(found),),
        )  # fmt: skip
    yield Section(
        key="images", title="Images", made_by=links,
        lead="The same classes in every set.",
        sets_gallery=sets_gallery([(e.label, e.judged.pictures) for e in found], budget),
    )  # fmt: skip
    firsts = {entry.rows[0].net for entry in found if entry.rows}
    matrices = [(entry, made) for entry in found if (made := _matrix(entry, len(firsts) > 1)) is not None]
    if matrices:
        whose = "the network that each names" if len(firsts) > 1 else net_name(next(iter(firsts)))
        yield Section(
            key="mistakes", title="Mistakes", made_by=links,
            lead=f"What students of each set take for what: {whose}, all seeds together. Rows "
            "are the true classes, columns the answers; a field of stronger colour is a larger share of its row.",
            matrices=tuple(made for _, made in matrices),
            tables=(_mistakes(matrices),),
        )  # fmt: skip
    differ = differences.differences(found, comparison)
    if differ:
        yield differences.section(differ, differences.unique([entry.label for entry in found]))
    yield protocols.section(found)
    yield _provenance(found)


def _provenance(found: Sequence[Entry]) -> Section:
    """The evaluate stage behind every accuracy, what it was tested on, and each student."""
    head = ("Set", "Net", "Run", "Stage", "Folder")
    numeric = ("Held-out images", "Learning rate", "Each student (percent)")
    lines = []
    for entry in (*found, *randoms(found)):
        stage = entry.judged.stage
        rate = number((stage.summary.get("protocol") or {}).get("lr"))
        for row in entry.rows:
            texts = (entry.label, net_name(row.net), entry.judged.run, stage.name, stage.folder)
            each = "  ".join(f"{100 * accuracy:.1f}" for accuracy in row.accuracies)
            figures = (numbers.count(entry.tested), numbers.figure(rate), each)
            lines.append(tuple(map(Cell, (*texts, *figures))))
    columns = (*map(Column, head), *(Column(name, True) for name in numeric))
    return Section(
        key="provenance", title="Provenance",
        lead="The evaluate stage behind each accuracy. Its folder is in that of its run; rayddl show and the folder's "
        "name tell what made it.",
        tables=(Table("Stages, folders and students", columns, tuple(lines)),),
    )  # fmt: skip


def _by_ipc(found: Sequence[Entry], net: str) -> Chart:
    """The accuracy of one network over the images per class, a line per method."""
    sizes = sorted({entry.ipc for entry in found})
    methods = list(dict.fromkeys(entry.method for entry in found))
    marks: list[Mark] = []
    hints: dict[int, list[str]] = {}
    for m, method in enumerate(methods):
        own = [(e, row) for e in found if e.method == method and (row := e.of(net)) is not None]
        if not own:
            continue
        aside = (m - (len(methods) - 1) / 2) * DODGE
        xs = [sizes.index(e.ipc) + aside for e, _ in own]
        tint, dash = own[0][0].tint, "" if m < TINTS else " dashed"
        if _one_each([e for e, _ in own]):
            marks.append(Line(xs, [row.mean for _, row in own], f"mean{dash}", tint=tint))
        low, high = ([row.mean + side * _spread(row) for _, row in own] for side in (-1, 1))
        marks += [Whiskers(xs, low, high, tint), Spots(xs, [row.mean for _, row in own], tint)]
        for e, row in own:
            hints.setdefault(sizes.index(e.ipc), []).append(f"{e.label}: {row.text}")
    baselines = [(e, row) for e in randoms(found) if (row := e.of(net)) is not None]
    if baselines:
        at = [float(sizes.index(e.ipc)) for e, _ in baselines]
        means = [row.mean for _, row in baselines]
        single = len(set(at)) == len(at)
        marks += [Line(at, means, "mean dashed", tint=RANDOM)] if single and len(at) > 1 else []
        marks += [Spots(at, means, RANDOM)]
        for e, row in baselines:
            hints.setdefault(sizes.index(e.ipc), []).append(f"{e.label}: {row.text}")
    return Chart(
        key=slug("ipc", net),
        title=f"{net_name(net)}: accuracy against images per class",
        summary="; ".join(line for at in sorted(hints) for line in hints[at]),
        x_label="images per class",
        marks=tuple(marks),
        note="Bars: ± one standard deviation over seeds.",
        shares=True,
        x_range=(-0.35, len(sizes) - 0.65),
        x_names=tuple(str(size) for size in sizes),
        hints=tuple(Hint(float(at), "\n".join(lines)) for at, lines in sorted(hints.items())),
        legend=(*_legend(found), *(((RANDOM, "random real images"),) if baselines else ())),
    )


def _by_time(found: Sequence[Entry], net: str) -> Chart:
    """The accuracy of one network over the seconds to make the set, a point per set."""
    own = [(e, row) for e in found if (row := e.of(net)) is not None and e.seconds > 0]
    seconds = [e.seconds for e, _ in own]
    lines = [
        Line([e.seconds for e, _ in group], [row.mean for _, row in group], "raw", tint=group[0][0].tint)
        for method in dict.fromkeys(e.method for e, _ in own)
        if len(group := [each for each in own if each[0].method == method]) > 1
        and _one_each([e for e, _ in group])
    ]
    spots = [Spots([e.seconds], [row.mean], e.tint) for e, row in own]
    bars = [
        Whiskers([e.seconds], [row.mean - _spread(row)], [row.mean + _spread(row)], e.tint) for e, row in own
    ]
    texts = [(e.seconds, f"{e.label}: {row.text} in {numbers.duration(e.seconds)}") for e, row in own]
    return Chart(
        key=slug("time", net),
        title=f"{net_name(net)}: accuracy against seconds to make",
        summary="; ".join(text for _, text in texts),
        x_label="seconds (logarithmic)",
        marks=(*lines, *bars, *spots),
        note="Lines lead from a method's smallest set to its largest. Stages that several sets share count for "
        "each. Bars: ± one standard deviation over seeds.",
        shares=True,
        x_log=True,
        x_range=(min(seconds) / 1.5, max(seconds) * 1.5) if seconds else (1.0, 10.0),
        hints=tuple(Hint(x, text) for x, text in sorted(texts)),
        legend=_legend(found),
    )


def _one_each(found: Sequence[Entry]) -> bool:
    """True if the sets differ in size. Several of one size are made with different settings: no line joins them."""
    return len({entry.ipc for entry in found}) == len(found)


def _spread(row: Row) -> float:
    return row.std if math.isfinite(row.std) and len(row.accuracies) > 1 else 0.0


def _legend(found: Sequence[Entry]) -> tuple[tuple[str, str], ...]:
    return tuple(dict.fromkeys((entry.tint, entry.method) for entry in found))


def _table(found: Sequence[Entry]) -> Table:
    """A table with a row for every set and network."""
    known = [name for name in SCORES if any(name in _scores(e, row) for e in found for row in e.rows)]
    top5 = any(math.isfinite(row.top5) for e in found for row in e.rows)
    timed = any(math.isfinite(e.seconds) for e in found)
    every = [(e, row) for e in (*found, *randoms(found)) for row in e.rows]
    late = any(math.isfinite(row.best) for _, row in every)
    own = any(e.own for e in found)
    stored = any(math.isfinite(e.label_bytes) for e in found)
    head = [Column("Set"), Column("IPC", True), Column("Images", True), Column("Size", True)]
    head += [Column("Stored labels", True)] * stored
    head += [Column("Net"), Column("Accuracy (last epoch)" if late else "Accuracy", True)]
    head += [Column("Std (points)", True), *[Column("Best of late epochs", True)] * late]
    head += (
        [Column("With own labels", True)] * own
        + [Column("Top-5", True)] * top5
        + [Column("Over random (points)", True)]
    )
    head += [Column(SCORES[name], True) for name in known] + [Column("Time to make", True)] * timed
    return Table(
        "Every set with every network",
        tuple(head),
        tuple(
            _line(e, row, found, known, stored=stored, late=late, own=own, top5=top5, timed=timed)
            for e, row in every
        ),
    )


def _line(
    entry: Entry,
    row: Row,
    found: Sequence[Entry],
    known: Sequence[str],
    *,
    stored: bool,
    late: bool,
    own: bool,
    top5: bool,
    timed: bool,
) -> tuple[Cell, ...]:
    best = max((r.mean for e in found if e.ipc == entry.ipc and (r := e.of(row.net))), default=math.nan)
    gain = _gain(entry, row, found)
    cells = [
        Cell(
            entry.label + (BELOW if gain < 0 else ""),
            link=f"#{entry.link.anchor}",
        ),
        Cell(numbers.count(entry.ipc), entry.ipc),
        Cell(numbers.count(row.images), row.images),
        Cell(numbers.size(entry.bytes), entry.bytes),
        *([Cell(numbers.size(entry.label_bytes), entry.label_bytes)] if stored else []),
        Cell(net_name(row.net)),
        Cell(numbers.percent(row.mean), row.mean, strong=row.mean == best),
        Cell(f"{row.std * 100:.1f}" if len(row.accuracies) > 1 else numbers.ABSENT, row.std),
    ]
    if late:
        cells.append(Cell(numbers.percent(row.best), row.best))
    if own:
        accuracy = entry.by_own_labels(row.net)
        cells.append(Cell(numbers.percent(accuracy), accuracy))
    if top5:
        cells.append(Cell(numbers.percent(row.top5), row.top5))
    cells.append(Cell(numbers.points(gain), gain))
    scores = _scores(entry, row)
    cells += [_score(name, number((scores.get(name) or {}).get("mean"))) for name in known]
    if timed:
        cells.append(Cell(numbers.duration(entry.seconds), entry.seconds))
    return tuple(cells)


def _score(name: str, value: float) -> Cell:
    if name == "hlr":
        return Cell(numbers.points(value), value)
    return Cell(numbers.percent(value), value)


def _scores(entry: Entry, row: Row) -> Mapping[str, Any]:
    scores = entry.judged.stage.summary.get("scores") or {}
    found = scores.get(row.net) or {}
    return found if isinstance(found, Mapping) else {}


def _gain(entry: Entry, row: Row, found: Sequence[Entry]) -> float:
    """Accuracy minus that of as many random images; NaN if there is none."""
    random = None if entry.baseline else random_of(entry, row, found)
    return row.mean - random.mean if random else math.nan


def _heat(found: Sequence[Entry]) -> Table:
    """A heat map of accuracies: a row per set, a column per network."""
    nets = nets_of(found)
    means = [row.mean for e in found for row in e.rows if math.isfinite(row.mean)]
    low, high = (min(means), max(means)) if means else (0.0, 1.0)

    def cell(row: Row | None) -> Cell:
        if row is None or not math.isfinite(row.mean):
            return Cell(numbers.ABSENT)
        return Cell(row.text, row.mean, heat=(row.mean - low) / (high - low) if high > low else 1.0)

    return Table(
        "Accuracy of every set with every network",
        (Column("Set"), *(Column(net_name(net), True) for net in nets)),
        tuple((Cell(e.label, link=f"#{e.link.anchor}"), *(cell(e.of(net)) for net in nets)) for e in found),
    )


def _matrix(entry: Entry, with_net: bool) -> Matrix | None:
    """The confusion of the first network's students, which its title names if ``with_net``."""
    confusion = entry.judged.confusion
    if confusion is None or not entry.rows:
        return None
    net = entry.rows[0].net
    label = f"{entry.label}, {net_name(net)}" if with_net else entry.label
    return matrix(confusion, net, entry.judged.pictures.classes, label)


def _mistakes(matrices: Iterable[tuple[Entry, Matrix]]) -> Table:
    lines = []
    for entry, made in matrices:
        for true, answer, share in mistakes(made, 1):
            lines.append((Cell(entry.label), Cell(true), Cell(answer), Cell(numbers.percent(share), share)))
    head = (Column("Set"), Column("True class"), Column("Taken for"), Column("Share of the class", True))
    return Table("The most frequent mistake of each set", head, tuple(lines))
