"""Results of evaluate stages as pages read them: rows of accuracies, and comparisons with random images."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rayddl.report import numbers
from rayddl.report.values import Columns, Stage, number
from rayddl.stages.context import Input
from rayddl.stages.evaluate.recorded import same_protocol
from rayddl.stages.finished import columns

CONFUSION = ("data", "net", "true", "predicted", "count")
ORDER = (
    "distilled", "random", "distilled-own", "random-own", "whole", "distilled-bare", "random-bare", "distilled-hard",
    "whole-hard",
)  # fmt: skip
COMPARED = ("distilled", "distilled-own")
"""Training data that is compared with random images of the same suffix."""
HOW = {"": "", "own": ", own labels", "bare": ", not augmented", "hard": ", hard labels"}
"""Texts for the suffixes of training data's names."""
BELOW = ", below random"
"""Added to a set whose students are worse than those of random images."""


@dataclass(frozen=True)
class Row:
    """One row of an evaluate stage's result: a network trained on one kind of data."""

    stage: str
    data: str
    net: str
    images: int
    mean: float
    std: float
    accuracies: tuple[float, ...]
    top5: float = math.nan
    """Mean top-5 accuracy; NaN with at most five classes."""
    best: float = math.nan
    """Mean of the best accuracies of late epochs; NaN if only the last epoch was tested."""

    @property
    def text(self) -> str:
        """Mean and standard deviation as text: ``71.2 ± 1.3 %``."""
        return numbers.spread(self.mean, self.std, len(self.accuracies) > 1)

    @property
    def what(self) -> str:
        """The training data as text: ``10 distilled images``."""
        plain, _, how = self.data.partition("-")
        kind = {"distilled": "distilled ", "random": "random real ", "whole": ""}.get(plain, f"{plain} ")
        every = "all " if plain == "whole" else ""
        return every + numbers.counted(self.images, f"{kind}image") + HOW.get(how, f", {how}")


@dataclass(frozen=True)
class PairedResult:
    """The results of one network trained on the distilled set and on the data it is compared with."""

    distilled: Row
    random: Row | None
    whole: Row | None

    @property
    def gain(self) -> float:
        """Accuracy on distilled minus accuracy on random images, as a share of 1."""
        return self.distilled.mean - self.random.mean if self.random else math.nan


def rows(stages: Iterable[Stage]) -> list[Row]:
    """The rows of all evaluate stages, by stage, then network, distilled first."""
    found = [row for stage in stages for row in rows_of(stage)]
    nets = list(dict.fromkeys((r.stage, r.net) for r in found))
    rank = {data: i for i, data in enumerate(ORDER)}
    return sorted(found, key=lambda r: (nets.index((r.stage, r.net)), rank.get(r.data, len(rank))))


def rows_of(stage: Stage) -> list[Row]:
    """The rows of one evaluate stage, in stored order."""
    return [_row(stage.name, r) for r in stage.summary.get("rows", ())]


def paired_results(stages: Iterable[Stage], how: str = "") -> list[PairedResult]:
    """One duel for every distilled row, in order; with ``how`` ``"own"``, of students of the images' own labels.

    Random images are those of the stage, else those of another stage with the same protocol and as many images.
    """
    suffix = f"-{how}" if how else ""
    given = list(stages)
    found = rows(given)
    by_key = {(r.stage, r.net, r.data): r for r in found}
    summaries = {stage.name: stage.summary for stage in given}

    def random(mine: Row) -> Row | None:
        others = (
            by_key.get((name, mine.net, f"random{suffix}"))
            for name, summary in summaries.items()
            if (its := by_key.get((name, mine.net, f"distilled{suffix}"))) is not None
            and its.images == mine.images
            and same_protocol(summary, summaries[mine.stage])
        )
        return by_key.get((mine.stage, mine.net, f"random{suffix}")) or next(filter(None, others), None)

    return [
        PairedResult(r, random(r), None if how else by_key.get((r.stage, r.net, "whole")))
        for r in found
        if r.data == f"distilled{suffix}"
    ]


def best(found: Sequence[PairedResult]) -> PairedResult | None:
    """The duel with the highest distilled accuracy."""
    finite = [d for d in found if math.isfinite(d.distilled.mean)]
    return max(finite, key=lambda d: d.distilled.mean, default=None)


def confusion_of(found: Input) -> Columns | None:
    """One row per student and nonzero entry of its confusion matrix; ``None`` in older folders."""
    return columns(found, "confusion.parquet", CONFUSION) if found.folder.has("confusion.parquet") else None


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
        best=number((row.get("best") or {}).get("mean")),
    )
