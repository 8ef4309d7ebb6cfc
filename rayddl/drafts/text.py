"""Writes a draft as a commented YAML file, with an estimate of its duration."""

from __future__ import annotations

from rayddl.data.sources.look import Look
from rayddl.stages.drafting import Draft, key

FIXED_SECONDS = 60
"""Starting Ray, importing and reading images."""


def duration(made: Draft) -> str:
    """``about 12 min: training 2 min, …``; right within a factor of about three."""
    return (
        f"about {_time(made.seconds + FIXED_SECONDS)}: training networks {_time(made.training)}, making the set "
        f"{_time(made.making)}, evaluating it {_time(made.evaluating)}"
    )


def written(look: Look, made: Draft, name: str, command: str) -> str:
    """The definition's text; ``command`` runs it."""
    head = [
        f"{name}: {look.lines()[0]}.",
        f"{look.lines()[1]}.",
        "",
        f"Written by `rayddl init`; on this machine {duration(made)}.",
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


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{max(5, round(seconds / 5) * 5)} s"
    if seconds < 5400:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.0f} h" if seconds >= 36_000 else f"{seconds / 3600:.1f} h"
