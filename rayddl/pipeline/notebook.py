"""A run's result where a person looks: tables in a notebook, the page in a browser."""

from __future__ import annotations

import sys
import webbrowser
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path

HEIGHT = 720
"""CSS pixels of a page below a notebook's cell."""


def html(name: str, tables: Mapping[str, Sequence[Mapping[str, str]]], report: str | None) -> str:
    """The stages' tables under the run's name; nothing is fetched to show them."""
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
    return "".join(parts)


def page(where: str) -> None:
    """Open the page ``where``: below the cell of a notebook, else in the browser."""
    display = _notebook_display()
    if display is None:
        webbrowser.open(Path(where).absolute().as_uri())
        return
    text = escape(Path(where).read_text("utf-8"), quote=True)
    display(f'<iframe srcdoc="{text}" style="width:100%;height:{HEIGHT}px;border:0" title="report"></iframe>')


def _notebook_display() -> Callable[[str], object] | None:
    """Shows HTML below the cell that runs; ``None`` outside a notebook."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if shell is None or not hasattr(shell, "kernel"):
        return None
    from IPython.display import HTML, display  # type: ignore[import-not-found]  # notebooks bring it

    return lambda text: display(HTML(text))
