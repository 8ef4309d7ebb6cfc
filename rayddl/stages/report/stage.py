"""``kind: report``: one self-contained page about the stages it names."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping
from importlib import metadata
from typing import Any

import numpy as np
import pyarrow as pa

import rayddl
from rayddl.data.distilled import KIND, DistilledSet
from rayddl.errors import ArtifactError
from rayddl.report.page import render
from rayddl.report.run import Columns, Evaluate, Experts, Match, Pictures, Run, Selected, Stage, Tune
from rayddl.stages import parquet as tables
from rayddl.stages.context import Context, Input, Result
from rayddl.stages.report.settings import ReportConfig

FILE = "report.html"

EXPERTS = ("expert", "epoch", "train_loss", "test_accuracy", "step_norm")
MATCH = ("iteration", "loss", "lr_student", "start", "seconds")
ACCURACY = ("iteration", "seed", "accuracy")
TRIALS = ("trial", "ended", "reason", "value", "iteration", "seconds")
TRIAL_PROGRESS = ("trial", "iteration", "metric", "seconds")
SETTING = "setting."
"""What the columns of settings begin with."""
CONFUSION = ("data", "net", "true", "predicted", "count")
STUDENTS = ("data", "net", "seed", "accuracy", "seconds")


def run(config: ReportConfig, context: Context) -> Result:
    """Write ``report.html``. Raises :class:`ArtifactError` for an input that is not whole."""
    del config
    inputs = in_order(context)
    total = len(inputs) + 1
    read: dict[str, list[Any]] = {kind: [] for kind in READERS}
    for done, found in enumerate(inputs):
        context.progress.update(done, total, found.stage)
        if found.kind in READERS:
            read[found.kind].append(READERS[found.kind](found))
    page = render(
        Run(
            definition=context.definition,
            source=context.source.model_dump(mode="json"),
            seed=context.seed,
            versions=versions(),
            stages=tuple(as_stage(i) for i in inputs),
            experts=tuple(read["experts"]),
            matches=tuple(read["match"]),
            selections=(*read["rded"], *read["coreset"], *read["imported"]),
            tunes=tuple(read["tune"]),
            evaluations=tuple(read["evaluate"]),
        )
    ).encode()
    context.out.write(FILE, page)
    context.progress.update(total, total)
    return Result({"file": FILE, "bytes": len(page)})


def _experts(found: Input) -> Experts:
    return Experts(as_stage(found), columns(found, "metrics.parquet", EXPERTS))


def pictures(made: DistilledSet) -> Pictures:
    """The set's images to look at."""
    return Pictures(made.pixels().numpy(), made.hard_labels.numpy(), made.classes)


def _selected(found: Input) -> Selected:
    return Selected(as_stage(found), pictures(DistilledSet.load(found.folder.child("set"))))


def _match(found: Input) -> Match:
    made = DistilledSet.load(found.folder.child("set"))
    return Match(
        as_stage(found),
        columns(found, "metrics.parquet", MATCH),
        columns(found, "accuracy.parquet", ACCURACY),
        pictures(made),
        _provenance(made.info),
    )


def _evaluate(found: Input) -> Evaluate:
    confusion = None
    if found.folder.has("confusion.parquet"):
        confusion = columns(found, "confusion.parquet", CONFUSION)
    classes = KIND.read(found.folder.child("set"))["classes"] if confusion is not None else ()
    return Evaluate(as_stage(found), columns(found, "students.parquet", STUDENTS), confusion, tuple(classes))


def _tune(found: Input) -> Tune:
    searched = [f"{SETTING}{key}" for key in found.summary["space"]]
    trials = columns(found, "trials.parquet", (*TRIALS, *searched))
    made = found.folder.child("set")
    return Tune(
        as_stage(found),
        {name: trials[name] for name in TRIALS},
        columns(found, "progress.parquet", TRIAL_PROGRESS),
        {key: trials[f"{SETTING}{key}"] for key in found.summary["space"]},
        pictures(DistilledSet.load(made)) if made.has("set.json") else None,
    )


READERS = {
    "experts": _experts,
    "match": _match,
    "evaluate": _evaluate,
    "rded": _selected,
    "coreset": _selected,
    "imported": _selected,
    "tune": _tune,
}
"""How each kind is read. Stages of other kinds appear with their folder and time only."""


def in_order(context: Context) -> list[Input]:
    """The inputs in the definition's order; those that it does not name come last."""
    names: Iterable[str] = context.definition.get("stages") or ()
    rank = {name: i for i, name in enumerate(names)}
    return sorted(context.inputs.values(), key=lambda i: (rank.get(i.stage, len(rank)), i.stage))


def as_stage(found: Input) -> Stage:
    """A finished stage as pages show it."""
    return Stage(found.stage, found.kind, found.folder.name, found.config, found.summary)


def columns(found: Input, name: str, wanted: Iterable[str]) -> Columns:
    """The ``wanted`` columns of a stage's table. Raises :class:`ArtifactError` where they are not there."""
    where = found.folder.path(name)
    again = "delete the stage's folder and run again to make it anew"
    try:
        table = tables.read(found.folder, name)
    except FileNotFoundError as error:
        raise ArtifactError(
            f"{where} is missing, though stage {found.stage!r} is finished; {again}"
        ) from error
    except pa.ArrowInvalid as error:
        raise ArtifactError(f"{where} is no Parquet file: {error}; {again}") from error
    lacking = [column for column in wanted if column not in table]
    if lacking:
        raise ArtifactError(
            f"{where} lacks the column {lacking[0]!r}; it has {', '.join(table)}. Another version of rayddl "
            f"made it: {again}"
        )
    # Nulls become NaN here, and texts stay texts.
    return {
        column: np.array(
            [np.nan if v is None else v for v in table[column]], None if table[column] else float
        )
        for column in wanted
    }


def _provenance(info: Mapping[str, Any]) -> dict[str, Any]:
    known = {key: info[key] for key in ("source_fingerprint", "net") if info.get(key) is not None}
    more = info.get("provenance")
    return {**known, **(more if isinstance(more, Mapping) else {})}


def versions() -> dict[str, str]:
    """What a page was made with."""
    packages = {name: metadata.version(name) for name in ("torch", "ray", "numpy")}
    return {"rayddl": rayddl.__version__, **packages, "python": platform.python_version()}
