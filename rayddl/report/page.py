"""The whole page as text. The same run gives the same page, byte for byte."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib import resources
from typing import Any

import jinja2
import yaml
from markupsafe import Markup, escape

from rayddl.report import compare, evaluate, experts, match, methods, numbers, selected, tune
from rayddl.report.bars import Bar, Bars, Group
from rayddl.report.drawing import draw
from rayddl.report.headline import Headline, headline
from rayddl.report.run import Comparison, Run, Stage
from rayddl.report.sections import Link, Panel, Section, slug
from rayddl.report.tables import Cell, Column, Table

PICTURE_BYTES = 3_500_000
"""Bytes of pictures on a page, shared by its sets."""
LARGE_BYTES, PER_IMAGE = 16_000_000, 1_600
"""Where sets are large: at most so many for all, and for each image. A page of 16 MB opens in well under a second,
since pictures are decoded as they come into sight."""


def render(run: Run) -> str:
    """The page of a run as HTML."""
    shown = [_linked(run, s) for s in sections(run) if s is not None]
    return _assembled(run.name, headline(run), shown, run.versions)


def render_comparison(comparison: Comparison) -> str:
    """The page of several sets as HTML."""
    shown = [*compare.sections(comparison, PICTURE_BYTES), *_definitions(comparison)]
    return _assembled(comparison.name, compare.headline(comparison), shown, comparison.versions)


def _definitions(comparison: Comparison) -> Iterable[Section]:
    """The definitions that made the sets, each to be found from its figures."""
    several = len(comparison.definitions) > 1
    for key, definition in comparison.definitions.items():
        name = str(definition.get("name") or key)
        yield Section(
            f"{key}-definition",
            f"Definition of {name}" if several else "Definition",
            short=name if several else "",
            lead="What was run. Save it as a file to run it again.",
            code=_yaml(definition),
            code_key=f"{key}-",
        )


def _linked(run: Run, section: Section) -> Section:
    """The section with links to the stages that made its figures."""
    names = section.made_by or tuple(Link(s.name, slug("stage", s.name)) for s in _makers(run, section))
    return replace(section, made_by=names)


def _makers(run: Run, section: Section) -> Iterable[Stage]:
    if section.key == "accuracy":
        return [e.stage for e in run.evaluations]
    if section.key == "storage":
        return [e.stage for e in run.experts]
    return [s for s in run.stages if slug(s.kind, s.name) == section.key]


def _assembled(name: str, lead: Headline, shown: Sequence[Section], versions: Mapping[str, str]) -> str:
    script = _file("sort.js")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    # The template begins with its macros, which leave empty lines.
    page = environment.from_string(_file("page.html")).render(
        name=name,
        headline=lead,
        sections=shown,
        versions=versions,
        style=_file("style.css"),
        script=script,
        # Even if a text ever slipped through unescaped, a browser runs no script but this one.
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        highlighted=highlighted,
        draw=draw,
    )
    return page.lstrip()


def picture_bytes(many: int) -> int:
    """Bytes for the pictures of a page with so many images."""
    return max(PICTURE_BYTES, min(LARGE_BYTES, PER_IMAGE * many))


def sections(run: Run) -> Iterable[Section | None]:
    """The page's sections in order; ``None`` where the run has nothing for one."""
    held = [m.pictures for m in run.matches] + [m.pictures for m in run.selections]
    held += [t.pictures for t in run.tunes if t.pictures is not None]
    budget = picture_bytes(sum(len(each.labels) for each in held)) // max(1, len(held))
    yield evaluate.comparison(run)
    yield methods.section(run.matches)
    for made in run.matches:
        yield match.section(made, len(run.matches) == 1, budget)
    for picked in run.selections:
        alone = len(run.selections) == 1 and not run.matches
        yield selected.section(picked, alone, budget)
    for searched in run.tunes:
        yield tune.section(searched, len(run.tunes) == 1, budget)
    for trained in run.experts:
        yield experts.section(trained, len(run.experts) == 1)
    yield experts.storage(run.experts)
    for judged in run.evaluations:
        yield evaluate.section(judged, len(run.evaluations) == 1)
    yield _times(run)
    yield Section(
        "definition",
        "Definition",
        lead="What was run. Save it as a file to run it again.",
        code=_yaml(run.definition),
    )
    yield _provenance(run)


def highlighted(text: str, key: str = "") -> Markup:
    """YAML with its keys marked up; stages have anchors, ``stage-<name>`` with ``key`` before it."""
    lines, inside = [], False
    for line in text.splitlines():
        inside = line == "stages:" or (inside and line.startswith(" "))
        stage = re.match(r"^  ([\w.-]+):", line) if inside else None
        lines.append(_line(line, f"{key}{slug('stage', stage[1])}" if stage else ""))
    return Markup("\n").join(lines)


def redacted(value: Any) -> Any:
    """``value`` with user names, passwords and queries taken out of every address in it."""
    if isinstance(value, str):
        return re.sub(r"(?<=://)[^\s'\"]+", _public, value)
    if isinstance(value, Mapping):
        return {str(k): redacted(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [redacted(v) for v in value]
    return value


def _public(address: re.Match[str]) -> str:
    rest = address[0].split("?", 1)[0]
    user, at, behind = rest.rpartition("@")
    # A secret key may hold "/", a path may hold "@": only a user part tells them apart.
    return behind if at and (":" in user or "/" not in user) else rest


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
            _tint(s.kind),
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
        *((f"source {k}", _plain(v)) for k, v in redacted(run.source).items() if v not in (None, False)),
    ]
    known += [(f"{name} version", version) for name, version in run.versions.items()]
    for made in run.matches:
        many = len(run.matches) > 1
        known += [
            (f"{made.stage.name}: {k}" if many else k.replace("_", " "), _plain(v))
            for k, v in redacted(made.provenance).items()
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
        else yaml.safe_dump(value, default_flow_style=True, width=10_000).split("\n")[0]
    )


def _yaml(definition: Mapping[str, Any]) -> str:
    plain = redacted(definition)
    if isinstance(plain.get("stages"), dict):
        plain["stages"] = {k: _Block(v) if isinstance(v, dict) else v for k, v in plain["stages"].items()}
    text: str = yaml.dump(
        plain, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=None, width=96
    )
    return text.rstrip()


class _Block(dict[str, Any]):
    """A mapping written over several lines however short it is."""


class _Dumper(yaml.SafeDumper):
    """Writes :class:`_Block`; takes anything else that safe YAML takes."""


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


def _tint(kind: str) -> str:
    return {"experts": "experts", "match": "loss", "evaluate": "set"}.get(kind, "random")


def _file(name: str) -> str:
    return resources.files("rayddl.report").joinpath(name).read_text("utf-8")
