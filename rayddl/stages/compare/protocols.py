"""The evaluation protocols of a comparison's sets: settings they share, and settings that differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rayddl.report import numbers
from rayddl.report.sections import Fact, Section
from rayddl.report.tables import Cell, Column, Table
from rayddl.stages.compare.entries import Entry
from rayddl.stages.evaluate.figures import PROTOCOL


def section(found: Sequence[Entry]) -> Section:
    """The section with the protocol settings that all sets share, and those that differ."""
    protocols = [entry.judged.stage.summary.get("protocol") or {} for entry in found]
    keys = [key for key in (*PROTOCOL, "lr_grid", "seeds") if any(p.get(key) is not None for p in protocols)]
    texts = {key: [_plain(p.get(key)) for p in protocols] for key in keys}
    differ = [key for key in keys if len(set(texts[key])) > 1]
    facts = tuple(Fact(texts[key][0], _named(key)) for key in keys if key not in differ)
    others = [key for key in differ if key != "lr"]
    if not others:
        lead = "All sets were judged by one protocol"
        lead += ", each at its own learning rate." if differ else "."
    else:
        lead = f"These sets were not all judged alike: {', '.join(_named(key) for key in others)} differ."
    table = Table(
        "What differs in how the sets were judged",
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
