"""Shows a run's result: tables in a notebook, the page in a notebook or a browser."""

from __future__ import annotations

import sys
import webbrowser
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path

from rayddl.escapes import visible

HEIGHT = 720
"""Height in CSS pixels of a page below a notebook's cell."""


def html(name: str, tables: Mapping[str, Sequence[Mapping[str, str]]], report: str | None) -> str:
    """Return HTML with the run's name and the stages' tables; it loads nothing from elsewhere."""
    parts = [f"<h4>{escape(name)}</h4>"]
    for stage, rows in tables.items():
        head = "".join(f'<th scope="col">{escape(key)}</th>' for key in rows[0])
        lines = ["".join(f"<td>{escape(str(row.get(key, '')))}</td>" for key in rows[0]) for row in rows]
        body = "".join(f"<tr>{line}</tr>" for line in lines)
        parts.append(
            f"<table><caption>{escape(stage)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        )
    if report is not None:
        parts.append(f"<p>Page: <code>{escape(report)}</code>; <code>.show()</code> opens it.</p>")
    return visible("".join(parts))


def page(where: str) -> None:
    """Open the page at the path ``where``: in a notebook below the cell, otherwise in the browser."""
    display = _notebook_display()
    if display is None:
        webbrowser.open(Path(where).absolute().as_uri())
        return
    text = escape(Path(where).read_text("utf-8"), quote=True)
    display(f'<iframe srcdoc="{text}" style="width:100%;height:{HEIGHT}px;border:0" title="report"></iframe>')


def _notebook_display() -> Callable[[str], object] | None:
    """Return a function that shows HTML below the running cell; ``None`` outside a notebook."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if shell is None or not hasattr(shell, "kernel"):
        return None
    from IPython.display import HTML, display  # type: ignore[import-not-found]  # notebooks bring it

    return lambda text: display(HTML(text))
