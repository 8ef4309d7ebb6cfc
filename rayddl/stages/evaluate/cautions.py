"""Warnings about sets that are no better than random images, and about too few held-out images to tell."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rayddl.report import numbers
from rayddl.stages import cautions
from rayddl.stages.estimates import Outlook, Stages
from rayddl.stages.evaluate.recorded import same_protocol
from rayddl.stages.evaluate.settings import EvaluateConfig

FEWEST = 200
"""Held-out images below which an accuracy is uncertain by more than 7 points."""
_DATA = {"distilled": "the set", "random": "random real images", "whole": "all real images"}
MOST_HELD_OUT = 0.5
"""The largest share that is advised to be held out."""


def before(config: EvaluateConfig, stages: Stages, outlook: Outlook) -> Iterator[str]:
    """Too few held-out images."""
    del config, stages
    tested = outlook.source_summary.test
    if tested < FEWEST:
        yield (
            f"{tested} held-out images tell accuracies apart only if they differ by about {_points(tested)} points; "
            + _more(outlook)
        )


def _points(tested: int) -> str:
    return f"{100 * cautions.SURE * math.sqrt(0.25 / tested):.0f}"


def _more(outlook: Outlook) -> str:
    """How to have more held-out images, of a held-out share with what is to be had."""
    if outlook.source.holdout is None:
        return "hold out more images"
    both = outlook.source_summary.train + outlook.source_summary.test
    share = min(MOST_HELD_OUT, math.ceil(10 * FEWEST / both) / 10)
    if share <= outlook.source.holdout:
        return "add images"
    held = round(share * both)
    return f"raise source.holdout ({share:g} holds out about {held}: {_points(held)} points), or add images"


def after(summary: Mapping[str, Any]) -> Iterator[str]:
    """Students that diverged, and for each network a set below random images, or one within the noise of the held-out
    images.
    """
    for row in summary.get("rows", ()):
        lost = cautions.number(row, "diverged")
        if lost:
            yield (
                f"{lost:.0f} of {numbers.counted(len(row['accuracies']), 'student')} of {row['net']} on "
                f"{_DATA.get(row['data'], row['data'])} diverged: what they answer are no finite numbers, which counts "
                "as wrong or as the first class. Lower lr or lr_student, or train in fp32"
            )
    yield from _compared(summary, _means(summary, "random"))
    yield from _worse_by_own_labels(summary)


def beside(summary: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The same of a stage without random images, beside those of another stage with its protocol and as many images."""
    own = _means(summary, "random")
    known: dict[str, float] = {}
    for other in others:
        if same_protocol(summary, other) and _images(summary) == _images(other):
            known = {**_means(other, "random"), **known}
    yield from _compared(summary, {net: mean for net, mean in known.items() if net not in own})


def _means(summary: Mapping[str, Any], data: str) -> dict[str, float]:
    """The mean accuracy of each network on ``data``, without those whose students diverged."""
    rows = (row for row in summary.get("rows", ()) if not row.get("diverged"))
    return {row["net"]: float(row["mean"]) for row in rows if row["data"] == data}


def _images(summary: Mapping[str, Any]) -> Any:
    return next((row.get("images") for row in summary.get("rows", ()) if row["data"] == "distilled"), None)


def _worse_by_own_labels(summary: Mapping[str, Any]) -> Iterator[str]:
    """For each network a set whose own labels teach less than those of random images."""
    tested, random = cautions.number(summary, "tested"), _means(summary, "random-own")
    for net, accuracy in _means(summary, "distilled-own").items():
        other = random.get(net)
        if other is None or accuracy >= other or cautions.in_noise(accuracy, other, tested):
            continue
        yield (
            f"{net} reaches {100 * accuracy:.1f} % with the set's own labels and {100 * other:.1f} % with those of "
            "random real images: without an observer, the set is worse than a random choice"
        )


def _compared(summary: Mapping[str, Any], random: Mapping[str, float]) -> Iterator[str]:
    tested = cautions.number(summary, "tested")
    for net, accuracy in _means(summary, "distilled").items():
        other = random.get(net)
        if other is None:
            continue
        reached = f"{net} reaches {100 * accuracy:.1f} % with the set and {100 * other:.1f} % with random real images"
        if cautions.in_noise(accuracy, other, tested):
            yield (
                f"{reached}, a difference within the noise of {tested:,.0f} held-out images; hold out more images, or "
                "make the set with more iterations, epochs or images"
            )
        elif accuracy < other:
            yield (
                f"{reached}: the set is worse than a random choice; see the warnings of the stages that made it, or "
                "make it with more iterations or epochs, or by another method"
            )
