"""Renders the page as HTML. The same run gives the same bytes."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup, escape

from rayddl import yaml_text
from rayddl.credentials import scrub
from rayddl.escapes import visible
from rayddl.report import numbers
from rayddl.report.bars import Bar, Bars, Group
from rayddl.report.drawing import draw
from rayddl.report.gallery import sets_gallery
from rayddl.report.headline import Headline, headline
from rayddl.report.run import Part, Place, Run
from rayddl.report.sections import Panel, Section, slug
from rayddl.report.tables import Cell, Column, Table

SETS = 3
"""Number of sets that are shown next to real images."""


def render(run: Run) -> str:
    """Return the page of a run as HTML."""
    parts = run.parts
    return assembled(run.name, headline(run, parts), list(sections(run, parts)), run.versions)


def sections(run: Run, parts: Sequence[Part]) -> Iterable[Section]:
    """Yield the sections in order: those of the parts by place, then times, definition and provenance."""
    if run.warnings:
        yield Section("warnings", "Warnings", points=tuple(f"{text}." for text in run.warnings))
    placed = [each for part in parts for each in part.sections]
    real = _next_to_real(run)
    placed += [] if real is None else [(Place.MADE, real)]
    yield from (section for _, section in sorted(placed, key=lambda each: each[0]))
    times = _times(run)
    if times is not None:
        yield times
    yield definition_section(run.definition)
    yield _provenance(run)


def _next_to_real(run: Run) -> Section | None:
    """Return the first sets next to real images; ``None`` without either."""
    made = [(one.stage.name, one.pictures) for one in run.reported if one.pictures is not None][:SETS]
    if run.real is None or not made:
        return None
    return Section(
        "real",
        "Next to real images",
        short="Real images",
        lead="The same classes in the set and in the train split, from which the real images are drawn at random.",
        sets_gallery=sets_gallery([*made, ("real images", run.real)], run.budget),
    )


def definition_section(
    definition: Mapping[str, Any], *, name: str = "", key: str = "", title: str = "Definition"
) -> Section:
    """Return the section with the definition as YAML. ``key`` and ``name`` distinguish several on one page."""
    return Section(
        f"{key}definition",
        title,
        short=name,
        lead="What was run. Save it as a file to run it again.",
        code=_yaml(definition),
        code_key=key,
    )


def assembled(name: str, lead: Headline, contents: Sequence[Section], versions: Mapping[str, str]) -> str:
    """Return a page with the sections ``contents`` as HTML."""
    script = _file("sort.js")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    # The macros at the beginning of the template leave empty lines.
    page = environment.from_string(_file("page.html")).render(
        name=name,
        headline=lead,
        sections=contents,
        versions=versions,
        style=_file("style.css"),
        script=script,
        # With this hash in its content policy, a browser runs no other script, even from unescaped text.
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        highlighted=highlighted,
        draw=draw,
    )
    return visible(page.lstrip())


def highlighted(text: str, key: str = "") -> Markup:
    """Return YAML with highlighted keys; stages have the anchors ``<key>stage-<name>``."""
    lines, inside = [], False
    for line in text.splitlines():
        inside = line == "stages:" or (inside and line.startswith(" "))
        stage = re.match(r"^  ([\w.-]+):", line) if inside else None
        lines.append(_line(line, f"{key}{slug('stage', stage[1])}" if stage else ""))
    return Markup("\n").join(lines)


def _times(run: Run) -> Section | None:
    timed = [s for s in run.stages if math.isfinite(s.seconds)]
    if not timed:
        return None
    total = sum(s.seconds for s in timed)
    bars = tuple(
        Bar(
            s.name,
            s.seconds,
            numbers.duration(s.seconds),
            s.tint,
            note=s.kind if s.kind != s.name else "",
        )
        for s in timed
    )
    lead = f"{numbers.duration(total)} for {numbers.counted(len(timed), 'stage')}."
    return Section(
        "time", "Time", lead=lead, panels=(Panel("Seconds per stage", Bars((Group("", "", bars),))),)
    )


def _provenance(run: Run) -> Section:
    known = [
        ("seed", str(run.seed)),
        *((f"source {k}", _plain(v)) for k, v in scrub(run.source).items() if v not in (None, False)),
    ]
    known += [(what, f"{many:,}") for what, many in run.size.items()]
    known += [(f"{name} version", version) for name, version in run.versions.items()]
    noted = [(one.stage.name, one.provenance) for one in run.reported if one.provenance is not None]
    for name, provenance in noted:
        known += [
            (f"{name}: {k}" if len(noted) > 1 else k.replace("_", " "), _plain(v))
            for k, v in scrub(provenance).items()
        ]
    facts = Table(
        "Where the numbers come from",
        (Column("What"), Column("Value")),
        tuple((Cell(k), Cell(v)) for k, v in known),
    )
    folders = Table(
        "Stages and the folders that hold their results",
        (Column("Stage"), Column("Kind"), Column("Folder"), Column("Time", True)),
        tuple(
            (Cell(s.name), Cell(s.kind), Cell(s.folder), Cell(numbers.duration(s.seconds), s.seconds))
            for s in run.stages
        ),
    )
    lead = "A folder's name ends in the fingerprint of everything that decides its content."
    return Section("provenance", "Provenance", lead=lead, tables=(folders, facts) if run.stages else (facts,))


def _plain(value: Any) -> str:
    return (
        value
        if isinstance(value, str)
        else yaml_text.dump(value, default_flow_style=True, sort_keys=True, width=10_000).split("\n")[0]
    )


def _yaml(definition: Mapping[str, Any]) -> str:
    plain = scrub(definition)
    if isinstance(plain.get("stages"), dict):
        plain["stages"] = {k: _Block(v) if isinstance(v, dict) else v for k, v in plain["stages"].items()}
    text = yaml_text.dump(plain, dumper=_Dumper, allow_unicode=True, default_flow_style=None, width=96)
    return text.rstrip()


class _Block(dict[str, Any]):
    """A mapping that is always written over several lines."""


class _Dumper(yaml_text.Dumper):
    """A safe YAML dumper that also writes :class:`_Block`."""


_Dumper.add_representer(
    _Block,
    lambda dumper, data: dumper.represent_mapping("tag:yaml.org,2002:map", data.items(), flow_style=False),
)


def _line(line: str, anchor: str = "") -> Markup:
    found = re.match(r"^(\s*(?:- )?)([\w.$-]+)(:)(.*)$", line)
    if found is None:
        return escape(line)
    before, key, colon, rest = found.groups()
    named = Markup(' id="{}"').format(anchor) if anchor else ""
    return Markup('{}<span class="key"{}>{}</span>{}{}').format(before, named, key, colon, rest)


def _file(name: str) -> str:
    return resources.files("rayddl.report").joinpath(name).read_text("utf-8")
