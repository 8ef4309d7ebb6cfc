"""Plans and results as tables for a terminal or a log."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from rayddl.credentials import scrub
from rayddl.pipeline.plan import Plan

if TYPE_CHECKING:
    from rayddl.pipeline.estimating import Estimates
    from rayddl.stages.estimates import Estimate

PIPED_WIDTH = 240
"""Columns where nobody's window limits them: a log keeps whole folder names."""

_STATE_STYLES = {
    "done": "green",
    "cached": "green",
    "partial": "yellow",
    "new": "",
    "failed": "red",
    "interrupted": "yellow",
    "waiting": "dim",
    "altered": "red",
}


def plan_table(plan: Plan) -> RenderableType:
    """A line about the run and a row for each stage."""
    definition = plan.definition
    source = definition.source
    head = Text.assemble(
        (definition.name, "bold"),
        (
            f"  seed {definition.seed}  source {source.name} ({source.space})  out {scrub(str(plan.out))}",
            "dim",
        ),
    )
    rows = [
        {
            "stage": stage.name,
            "kind": stage.stage.kind.name,
            "reads": ", ".join(stage.stage.reads),
            "state": stage.state,
            "folder": stage.folder_name,
        }
        for stage in plan.stages
    ]
    return Group(head, rows_table(rows))


def estimates_table(estimates: Estimates) -> RenderableType:
    """A line about the machine, a row for each stage that says what it will take, and notes."""
    machine, told = estimates.machine, {name: e for name, e in estimates.stages.items() if e is not None}
    gpus = f"{len(machine.gpus)} GPUs" if machine.gpus else "no GPU"
    head = f"expected on this machine: {machine.cpus} CPUs, {_size(machine.memory)} free, {gpus}"
    notes = [f"{name}: {note}" for name, found in told.items() for note in found.notes]
    if any(found.memory and not found.measured for found in told.values()):
        notes.append("~ is an estimate by formula; with --measure a matching step is tried")
    rows = [{"stage": name, **_expected(found)} for name, found in estimates.stages.items()]
    return Group(Text(f"\n{head}", "dim"), rows_table(rows), *(Text(note, "dim") for note in notes))


def _expected(found: Estimate | None) -> dict[str, str]:
    if found is None:
        return {"work": "?"}
    peak = "?" if found.memory is None else f"{'' if found.measured else '~'}{_size(found.memory)}"
    return {
        "work": found.work,
        "at once": str(found.at_once),
        "peak memory each": f"{peak} {'measured' if found.measured else ''}".strip(),
        "of": found.device,
        "written": "?" if found.written is None else f"~{_size(found.written)}",
    }


def _size(count: int) -> str:
    from rayddl.stages.estimates import shown

    return shown(count)


def rows_table(rows: Sequence[Mapping[str, str]], title: str = "") -> Table:
    """Rows with the same keys as a table; figures stand right."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = Table(
        box=box.SIMPLE_HEAD,
        title=Text(title, style="bold") if title else None,
        title_justify="left",
        header_style="dim",
        show_edge=False,
        pad_edge=False,
        padding=(0, 1),
    )
    for name in columns:
        figures = all(_is_figure(str(row.get(name, ""))) for row in rows)
        table.add_column(name, justify="right" if figures else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(name, str(row.get(name, ""))) for name in columns))
    return table


def places_table(places: Mapping[str, str]) -> Table:
    """Names and paths; a path is never cut, so that it can be copied."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, path in places.items():
        table.add_row(Text(name), Text(path))
    return table


def as_text(renderable: RenderableType, width: int = PIPED_WIDTH) -> str:
    """What is drawn, without colours or trailing blanks."""
    stream = io.StringIO()
    Console(file=stream, width=width, color_system=None, force_terminal=False).print(renderable)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines())


def _cell(column: str, value: str) -> Text:
    return Text(value, style=_STATE_STYLES.get(value, "") if column == "state" else "")


def _is_figure(text: str) -> bool:
    return not text or text[0].isdigit() or (text[0] in "-+±" and text[1:2].isdigit())
