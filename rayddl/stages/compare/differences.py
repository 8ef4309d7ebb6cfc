"""The settings that differ between the compared sets: of the source, of the stages that made each set, and of its
evaluation, as recorded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic_core import to_jsonable_python

from rayddl import yaml_text
from rayddl.config import Config, marks
from rayddl.credentials import scrub
from rayddl.data.config import SourceConfig
from rayddl.escapes import on_one_line
from rayddl.report import numbers
from rayddl.report.sections import Section
from rayddl.report.tables import Cell, Column, Table
from rayddl.stages.compare.entries import Comparison, Entry
from rayddl.stages.settings import WITHOUT_EFFECT, Reads, StageConfig, Template

IN_TERMINAL = 10
"""Number of settings in the terminal's table."""
ON_PAGE = 12
"""Number of settings in the page's table; the others are folded."""
COLUMNS_IN_TERMINAL, COLUMNS_ON_PAGE = 4, 8
"""Numbers of sets up to which each has a column."""
LONGEST = 60
"""Characters of a value; longer ones lose their middle."""
SETTING, VALUES = "setting", "values"

Settings = Mapping[str, Any]


class _Missing:
    """The type of ``MISSING``."""


MISSING = _Missing()
"""The value of a setting for a set without such a stage."""


@dataclass(frozen=True)
class Difference:
    """A setting that differs."""

    setting: str
    """Where it stands and its key: ``source.size``, or kind and key of a stage."""
    values: tuple[str, ...]
    """Its value for each set in the order of the entries; empty for a set without such a stage."""


def differences(found: Sequence[Entry], comparison: Comparison) -> tuple[Difference, ...]:
    """The settings that differ between sets that have a stage of the same kind."""
    every = [dict(_settings(entry, comparison)) for entry in found]
    groups = dict.fromkeys(group for each in every for group in each)
    return tuple(
        Difference(_clean(f"{group}.{key}" if group else key), tuple(map(_text, values)))
        for group in groups
        for key, values in _differing([each.get(group) for each in every])
    )


def unique(labels: Sequence[str]) -> list[str]:
    """The sets' labels; equal ones, of runs of one name in several folders, are numbered."""
    many = Counter(labels)
    return [
        label if many[label] == 1 else f"{label} #{labels[: i + 1].count(label)}"
        for i, label in enumerate(labels)
    ]


def as_rows(differ: Sequence[Difference], labels: Sequence[str]) -> tuple[dict[str, str], ...]:
    """The first differences as rows for a terminal, and the number of the others: each set has a column; if there are
    many, values come with the number of their sets.
    """
    rows = _rows(differ[:IN_TERMINAL], labels, COLUMNS_IN_TERMINAL)
    if len(differ) > IN_TERMINAL:
        more = f"… and {numbers.counted(len(differ) - IN_TERMINAL, 'more setting')} on the page"
        rows.append({**dict.fromkeys(rows[0], ""), SETTING: more})
    return tuple(rows)


def section(differ: Sequence[Difference], labels: Sequence[str]) -> Section:
    """The page's section of :func:`differences`: each set has a column; if there are many,
    values come with the number of their sets.
    """
    first, rest = differ[:ON_PAGE], differ[ON_PAGE:]
    many = f"{numbers.counted(len(differ), 'setting')} {'differs' if len(differ) == 1 else 'differ'}"
    lead = f"{many} between the recorded definitions of these sets; equal settings are left out."
    if rest:
        lead += f" The table has the first {len(first)}, the folded one {len(rest)} more."
    return Section(
        "differences", "What differs", lead=lead,
        tables=(_table("Settings that differ", first, labels),),
        folded=(_table(f"{numbers.counted(len(rest), 'more setting')}", rest, labels),) if rest else (),
    )  # fmt: skip


def _table(caption: str, differ: Sequence[Difference], labels: Sequence[str]) -> Table:
    rows = _rows(differ, labels, COLUMNS_ON_PAGE)
    head = tuple(Column(key.capitalize() if key in (SETTING, VALUES) else key) for key in rows[0])
    return Table(caption, head, tuple(tuple(map(Cell, row.values())) for row in rows))


def _rows(differ: Sequence[Difference], labels: Sequence[str], columns: int) -> list[dict[str, str]]:
    row = _side_by_side if len(labels) <= columns else _summed
    return [row(each, labels) for each in differ]


def _side_by_side(differ: Difference, labels: Sequence[str]) -> dict[str, str]:
    """A row with a column for each set."""
    return {SETTING: differ.setting, **dict(zip(labels, differ.values, strict=True))}


def _summed(differ: Difference, labels: Sequence[str]) -> dict[str, str]:
    """A row with all values and the numbers of their sets."""
    by_value: dict[str, list[str]] = {}
    for label, value in zip(labels, differ.values, strict=True):
        if value:
            by_value.setdefault(value, []).append(label)
    texts = (
        f"{value} ({sets[0] if len(sets) == 1 else numbers.counted(len(sets), 'set')})"
        for value, sets in by_value.items()
    )
    return {SETTING: differ.setting, VALUES: "; ".join(texts)}


def _differing(every: Sequence[Settings | None]) -> Iterator[tuple[str, list[Any]]]:
    """Each key with unequal values, and the value of every set: ``MISSING`` for a set without such a stage."""
    for key in dict.fromkeys(key for each in every if each is not None for key in each):
        values = [MISSING if each is None else each.get(key) for each in every]
        known = [value for value in values if value is not MISSING]
        if any(value != known[0] for value in known):
            yield key, values


def _settings(entry: Entry, comparison: Comparison) -> Iterator[tuple[str, Settings]]:
    """Groups of a set's settings by what they belong to: the source, and its stages by kind, numbered from the second
    one of a kind.
    """
    judged, kinds = entry.judged, comparison.kinds
    own = comparison.definitions.get(judged.key) or {}
    config = {**judged.stage.config, "kind": judged.stage.kind}
    made = _behind(_stages(own), _reads(config, _stages(own), kinds), kinds)
    if judged.imported or not made:
        # The set comes from another run, whose definition it keeps.
        own = judged.origin or own
        made |= _behind(_stages(own), _last_sets(_stages(own), kinds), kinds)
    if own:
        yield "", {"seed": own.get("seed", 0)}
        source = own.get("source")
        yield "source", _flat(_whole(SourceConfig, source if isinstance(source, Mapping) else {}))
    counted: Counter[str] = Counter()
    # An evaluation last, in the words of its run.
    for each, stages in (*((s, _stages(own)) for s in made.values()), (config, made)):
        kind = str(each.get("kind"))
        counted[kind] += 1
        group = kind if counted[kind] == 1 else f"{kind} {counted[kind]}"
        yield group, _flat(_plain(each, stages, kinds))


def _stages(definition: Settings) -> dict[str, Settings]:
    stages = definition.get("stages")
    found = stages if isinstance(stages, Mapping) else {}
    return {str(name): each for name, each in found.items() if isinstance(each, Mapping)}


def _behind(
    stages: Mapping[str, Settings], names: Iterable[str], kinds: Mapping[str, type[StageConfig]]
) -> dict[str, Settings]:
    """The named stages and all that they read, directly or through others, in the definition's order."""
    wanted: set[str] = set()
    growing = {name for name in names if name in stages}
    while growing:
        wanted |= growing
        growing = {read for name in growing for read in _reads(stages[name], stages, kinds)} - wanted
    return {name: each for name, each in stages.items() if name in wanted}


def _last_sets(stages: Mapping[str, Settings], kinds: Mapping[str, type[StageConfig]]) -> list[str]:
    """The stage whose set no stage changes further, if there is one of this sort alone."""
    sets = [name for name, s in stages.items() if (kind := _class(s, kinds)) and kind.produces == "set"]
    read = {each for name in sets for each in _reads(stages[name], stages, kinds)}
    last = [name for name in sets if name not in read]
    return last if len(last) == 1 else []


def _reads(
    config: Settings, stages: Mapping[str, Settings], kinds: Mapping[str, type[StageConfig]]
) -> list[str]:
    """The stages that the settings name."""
    found: list[Any] = []
    for key in _naming(config, stages, kinds):
        value = config[key]
        found += value if isinstance(value, list | tuple) else [value]
    return [name for name in found if isinstance(name, str) and name in stages]


def _naming(
    config: Settings, stages: Mapping[str, Settings], kinds: Mapping[str, type[StageConfig]]
) -> list[str]:
    """The keys that name stages; of an unknown kind, those whose value is a stage's name."""
    model = _class(config, kinds)
    if model is None:
        return [key for key, value in config.items() if isinstance(value, str) and value in stages]
    marked = (name for name, f in model.model_fields.items() if marks(f, Reads) or marks(f, Template))
    return [name for name in marked if name in config]


def _plain(
    config: Settings, stages: Mapping[str, Settings], kinds: Mapping[str, type[StageConfig]]
) -> Settings:
    """The settings that affect a result, with defaults; names of stages, which say nothing, are replaced by kinds."""
    model = _class(config, kinds)
    naming = _naming(config, stages, kinds)
    whole = dict(config) if model is None else _whole(model, config)

    def kind(name: Any) -> Any:
        return stages[name].get("kind") if isinstance(name, str) and name in stages else name

    for key in naming:
        value = whole.get(key)
        whole[key] = [kind(name) for name in value] if isinstance(value, list | tuple) else kind(value)
    return {key: value for key, value in whole.items() if key not in WITHOUT_EFFECT and key != "kind"}


def _class(config: Settings, kinds: Mapping[str, type[StageConfig]]) -> type[StageConfig] | None:
    return kinds.get(str(config.get("kind")))


def _whole(model: type[Config], given: Settings) -> dict[str, Any]:
    """The settings with their defaults as JSON values; those of another version, as far as they are known."""
    try:
        return model.model_validate(dict(given)).model_dump(mode="json")
    except ValueError:
        known = {
            name: to_jsonable_python(field.get_default(call_default_factory=True, validated_data={}))
            for name, field in model.model_fields.items()
            if not field.is_required()
        }
        return {**known, **given}


def _flat(settings: Settings, before: str = "") -> dict[str, Any]:
    """The settings with nested keys joined by dots."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        name = f"{before}{key}"
        found |= _flat(value, f"{name}.") if isinstance(value, Mapping) and value else {name: value}
    return found


def _text(value: Any) -> str:
    if value is MISSING:
        return ""
    if value is None:
        return numbers.ABSENT
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple | Mapping):
        value = yaml_text.dump(to_jsonable_python(value), default_flow_style=True, width=10_000)
    return _clean(str(value).strip() or '""')


def _clean(text: str) -> str:
    """The text on one line, without credentials and control characters, and without its middle if it is long."""
    plain = on_one_line(str(scrub(text)))
    half = (LONGEST - 1) // 2
    return plain if len(plain) <= LONGEST else f"{plain[:half]}…{plain[-half:]}"
