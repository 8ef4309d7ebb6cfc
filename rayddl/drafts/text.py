"""Writes a draft as a commented YAML file."""

from __future__ import annotations

from rayddl.data.sources.look import Look
from rayddl.stages.drafting import Draft, key


def written(look: Look, made: Draft, name: str, command: str, takes: str = "") -> str:
    """The definition's text; ``command`` runs it, and ``takes`` is how long that takes."""
    head = [
        f"{name}: {look.lines()[0]}.",
        f"{look.lines()[1]}.",
        "",
        f"Written by `rayddl init`{takes and f'; on this machine about {takes}'}.",
        "",
        f"  {command}",
    ]
    lines = [f"# {line}".rstrip() for line in head]
    lines += [f"name: {name}", *_source(look, made), "stages:", *made.lines]
    lines += ["  report: {kind: report}          # one HTML page with all figures"]
    return "\n".join(lines) + "\n"


def _source(look: Look, made: Draft) -> list[str]:
    lines = ["source:"]
    lines += [key(name, value, indent=2) for name, value in look.source.items() if name != "holdout"]
    if set(look.sides) != {(made.size, made.size)}:
        why = "stored larger" if look.one_size else "stored in several sizes"
        lines += [key("size", made.size, f"side in pixels that all are brought to; {why}", 2)]
    if "holdout" in look.source:
        why = "share of each class held out: there is no held-out split"
        lines += [key("holdout", look.source["holdout"], why, 2)]
    return lines
