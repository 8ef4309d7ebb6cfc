"""``kind: compare``: one table and one page over the sets that evaluate stages evaluated."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rayddl import documents
from rayddl.data.distilled import DistilledSet
from rayddl.errors import ArtifactError
from rayddl.report import numbers
from rayddl.report.numbers import duration
from rayddl.report.sections import net_name
from rayddl.stages import parquet as tables
from rayddl.stages.compare.differences import as_rows, differences, unique
from rayddl.stages.compare.entries import Comparison, Entry, Judged, below, entries, nets_of, randoms
from rayddl.stages.compare.page import render
from rayddl.stages.compare.protocols import unlike
from rayddl.stages.compare.settings import MANIFEST, CompareConfig
from rayddl.stages.context import Context, Input, Result
from rayddl.stages.evaluate.figures import BELOW, Row, confusion_of
from rayddl.stages.finished import PAGE, as_stage, in_order, pictures, versions
from rayddl.stages.kinds import known, produced
from rayddl.storage import Folder

TYPES = {
    "set": "string", "method": "string", "run": "string", "ipc": "int64", "images": "int64", "bytes": "int64",
    "net": "string", "accuracy": "double", "std": "double", "best": "double", "own_labels": "double", "top5": "double",
    "seconds_to_make": "double",
}  # fmt: skip


def run(config: CompareConfig, context: Context) -> Result:
    """Write ``report.html`` and ``comparison.parquet``. Raises :class:`ArtifactError` for an incomplete set."""
    own = str(context.definition.get("name") or "run")
    found = [(own, "d0", each) for each in in_order(context)]
    definitions: dict[str, Mapping[str, Any]] = {"d0": context.definition}
    for i, where in enumerate(config.runs, 1):
        judged, name, definition = outside(Folder(where))
        given = config.names[i - 1] if config.names else ""
        key = next((k for k, known in definitions.items() if known == definition), f"d{i}")
        definitions[key] = definition
        found.append((given or name, key, judged))
    if not found:
        raise ArtifactError(
            "there is nothing to compare: the definition has no evaluate stage, and runs names none.",
            code="no-judgements",
        )
    shown = {key: d for key, d in definitions.items() if key in {k for _, k, _ in found}}
    kinds = {name: kind.config for name, kind in known().items()}
    comparison = Comparison(own, tuple(_judged(*each) for each in found), shown, versions(), kinds)
    page = render(comparison).encode()
    context.out.write(PAGE, page)
    listed = entries(comparison)
    nets = nets_of(listed)
    lines = list(_lines(listed))
    tables.write(context.out, "comparison.parquet", {n: [line[n] for line in lines] for n in TYPES}, TYPES)
    labels = unique([entry.label for entry in listed])
    differ = differences(listed, comparison)
    summary = {
        "file": PAGE,
        "bytes": len(page),
        "rows": lines,
        "unlike": unlike(listed),
        "differences": [
            {"setting": each.setting, "values": dict(zip(labels, each.values, strict=True))}
            for each in differ
        ],
    }
    table = tuple(_shown(entry, nets, listed) for entry in (*listed, *randoms(listed)))
    return Result(summary, table, {"what differs": as_rows(differ, labels)} if differ else {})


def outside(folder: Folder) -> tuple[Input, str, Mapping[str, Any]]:
    """The finished evaluate stage in ``folder``, the name of its run, and the definition that evaluated the set."""
    try:
        manifest = folder.read_document(MANIFEST, documents.Manifest, "run its definition again")
        kind, stage = manifest["kind"], manifest["stage"]
    except OSError as error:
        raise ArtifactError(
            f"{folder} is no finished stage ({type(error).__name__}: {error}); name the folder of an evaluate stage.",
            code="judgement-not-finished",
        ) from error
    if produced(kind) != "judgement":
        raise ArtifactError(
            f"{folder} is of kind {kind}; name the folder of an evaluate stage.", code="not-a-judgement"
        )
    found = Input(stage, kind, folder, manifest["config"], manifest["summary"])
    info = _kept(folder).info
    each = (manifest.get("definition"), info.get("evaluated_by"), info.get("definition"))
    definition: Mapping[str, Any] = next((one for one in each if isinstance(one, Mapping) and one), {})
    return found, str(definition.get("name") or str(folder).rstrip("/").rsplit("/", 1)[-1]), definition


def _kept(folder: Folder) -> DistilledSet:
    return DistilledSet.load(folder.child("set"))


def _judged(name: str, key: str, found: Input) -> Judged:
    made = _kept(found.folder)
    origin = made.info.get("definition")
    return Judged(
        name, key, as_stage(found), pictures(made), confusion_of(found),
        origin if isinstance(origin, Mapping) else {}, "imported" in made.info,
    )  # fmt: skip


def _lines(listed: tuple[Entry, ...]) -> Iterator[dict[str, Any]]:
    for entry in listed:
        for row in entry.rows:
            yield {
                "set": entry.label,
                "method": entry.method,
                "run": entry.judged.run,
                "ipc": entry.ipc,
                "images": row.images,
                "bytes": entry.judged.stage.summary.get("bytes"),
                "net": row.net,
                "accuracy": row.mean,
                "std": row.std,
                "best": _or_none(row.best),
                "own_labels": _or_none(entry.by_own_labels(row.net)),
                "top5": _or_none(row.top5),
                "seconds_to_make": _or_none(entry.seconds),
            }


def _or_none(value: float) -> float | None:
    return value if value == value else None  # noqa: PLR0124 - NaN is not itself


def _shown(entry: Entry, nets: Sequence[str], listed: Sequence[Entry]) -> dict[str, str]:
    rows = {net: entry.of(net) for net in nets}
    cells = {net_name(net): _accuracy(row) if row else "" for net, row in rows.items()}
    return {
        "set": entry.label + (BELOW if below(entry, listed) else ""),
        "images": f"{entry.images:,}",
        **cells,
        "time to make": "" if entry.baseline else duration(entry.seconds),
    }


def _accuracy(row: Row) -> str:
    late = f" (best of late epochs {100 * row.best:.1f})" if math.isfinite(row.best) else ""
    return numbers.in_percent(row.mean, row.std, len(row.accuracies)) + late
