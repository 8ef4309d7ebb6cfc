"""Writes a draft as a commented YAML file."""

from __future__ import annotations

from rayddl.data.sources.path_contents import PathContents
from rayddl.stages.drafting import Draft, key


def written(contents: PathContents, made: Draft, name: str, command: str, takes: str = "") -> str:
    """The definition's text; ``command`` runs it, and ``takes`` is how long that takes."""
    head = [
        f"{name}: {contents.lines()[0]}.",
        f"{contents.lines()[1]}.",
        "",
        f"Written by `rayddl init`{takes and f'; on this machine about {takes}'}.",
        "",
        f"  {command}",
    ]
    lines = [f"# {line}".rstrip() for line in head]
    lines += [f"name: {name}", *_source(contents, made), "stages:", *made.lines]
    lines += ["  report: {kind: report}          # one HTML page with all figures"]
    return "\n".join(lines) + "\n"


def _source(contents: PathContents, made: Draft) -> list[str]:
    lines = ["source:"]
    lines += [key(name, value, indent=2) for name, value in contents.source.items() if name != "holdout"]
    if set(contents.sides) != {(made.size, made.size)}:
        why = "stored larger" if contents.one_size else "stored in several sizes"
        lines += [key("size", made.size, f"side in pixels that all are brought to; {why}", 2)]
    if contents.bad_fraction:
        broken = f"{len(contents.unreadable)} of {contents.looked_at} images looked at cannot be read"
        why = f"{broken}; with more than this share a run ends"
        lines += [key("max_bad_fraction", contents.bad_fraction, why, 2)]
    if "holdout" in contents.source:
        why = "share of each class held out: there is no held-out split"
        lines += [key("holdout", contents.source["holdout"], why, 2)]
    return lines
