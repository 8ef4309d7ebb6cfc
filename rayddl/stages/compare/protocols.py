"""The evaluation protocols of a comparison's sets: settings they share, and settings that differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rayddl.report import numbers
from rayddl.report.sections import Fact, Section
from rayddl.report.tables import Cell, Column, Table
from rayddl.stages.compare.entries import Entry
from rayddl.stages.evaluate.recorded import PROTOCOL, observers_text

AGAIN = "judge all by one protocol: `rayddl compare` does with --again"
PIXELS = "image size"
"""The title of a difference that no protocol removes: the pixels of the sets' images."""
OBSERVER = "observer"
"""The title of the teachers that labelled for the students, whom another evaluation needs."""


def unlike(found: Sequence[Entry]) -> list[str]:
    """Differences between the evaluations of the sets, by titles, but for the learning rate."""
    texts = _texts(found)
    return [_named(key) for key in texts if key != "lr" and len(set(texts[key])) > 1]


def advice(differ: Sequence[str]) -> str:
    """What to do about sets of which ``differ`` says what is :func:`unlike`."""
    if OBSERVER in differ:
        return "evaluate them with one teacher: write a definition with kind: imported for each set, and kind: teacher"
    if PIXELS in differ:
        return f"make them of images of one size (source.size; `rayddl init` has --size), then {AGAIN}"
    return AGAIN


def _texts(found: Sequence[Entry]) -> dict[str, list[str]]:
    """Each setting of a protocol that any set has, and the size of its images, with every set's value."""
    protocols = [entry.judged.stage.summary.get("protocol") or {} for entry in found]
    keys = [key for key in (*PROTOCOL, "lr_grid", "seeds") if any(p.get(key) is not None for p in protocols)]
    observers = [observers_text(p.get("observer")) or numbers.ABSENT for p in protocols]
    sizes = ["{3} x {2}".format(*entry.judged.pictures.images.shape) for entry in found]
    texts = {key: [_plain(p.get(key)) for p in protocols] for key in keys}
    watched = {OBSERVER: observers} if set(observers) != {numbers.ABSENT} else {}
    return {**texts, **watched, PIXELS: sizes}


def section(found: Sequence[Entry]) -> Section:
    """The section with the protocol settings that all sets share, and those that differ."""
    texts, others = _texts(found), unlike(found)
    differ = [key for key in texts if len(set(texts[key])) > 1]
    facts = tuple(Fact(texts[key][0], _named(key)) for key in texts if key not in differ)
    if not others:
        lead = "All sets were evaluated by one protocol"
        lead += ", each at its own learning rate." if differ else "."
    else:
        lead = f"These sets were not evaluated alike: {', '.join(others)} differ. To compare them, {advice(others)}."
    table = Table(
        "Differences between the evaluations of the sets",
        (Column("Set"), *(Column(_named(key)) for key in differ)),
        tuple((Cell(e.label), *(Cell(texts[key][i]) for key in differ)) for i, e in enumerate(found)),
    )
    return Section("protocol", "Protocol", lead=lead, facts=facts, tables=(table,) if differ else ())


def _named(key: str) -> str:
    return PROTOCOL.get(key, {"lr_grid": "learning rates tried", "seeds": "students each"}.get(key, key))


def _plain(value: Any) -> str:
    if value is None:
        return numbers.ABSENT
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(_plain(v) for v in value)
    return str(value).replace("_", ", ")
