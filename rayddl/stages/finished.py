"""Reads outputs of finished stages for reports."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from importlib import metadata

import numpy as np
import pyarrow as pa

from rayddl.data.distilled import DistilledSet
from rayddl.errors import ArtifactError
from rayddl.report.values import Columns, Pictures, Stage
from rayddl.stages import parquet as tables
from rayddl.stages.context import Context, Input
from rayddl.version import __version__

PAGE = "report.html"
"""The file name of a report."""


def in_order(context: Context) -> list[Input]:
    """The inputs in the definition's order; inputs that it does not name come last."""
    names: Iterable[str] = context.definition.get("stages") or ()
    rank = {name: i for i, name in enumerate(names)}
    return sorted(context.inputs.values(), key=lambda i: (rank.get(i.stage, len(rank)), i.stage))


def as_stage(found: Input, tint: str = "random") -> Stage:
    """A finished stage as reports show it, in the colour ``tint``."""
    return Stage(found.stage, found.kind, found.folder.name, found.config, found.summary, tint)


def pictures(made: DistilledSet) -> Pictures:
    """The set's images for display."""
    return Pictures(made.pixels().numpy(), made.hard_labels.numpy(), made.classes)


def columns(found: Input, name: str, wanted: Iterable[str]) -> Columns:
    """The ``wanted`` columns of a stage's table. Raises :class:`ArtifactError` for missing ones."""
    where = found.folder.path(name)
    again = "delete the stage's folder and run again to make it anew"
    try:
        table = tables.read(found.folder, name)
    except FileNotFoundError as error:
        raise ArtifactError(
            f"{where} is missing, though stage {found.stage!r} is finished; {again}",
            code="stage-table-missing",
        ) from error
    except pa.ArrowInvalid as error:
        raise ArtifactError(
            f"{where} is no Parquet file: {error}; {again}", code="stage-table-unreadable"
        ) from error
    lacking = [column for column in wanted if column not in table]
    if lacking:
        raise ArtifactError(
            f"{where} lacks the column {lacking[0]!r}; it has {', '.join(table)}. Another version of rayddl "
            f"made it: {again}",
            code="stage-table-lacks-column",
        )
    # Nulls become NaN; texts are unchanged.
    return {
        column: np.array(
            [np.nan if v is None else v for v in table[column]], None if table[column] else float
        )
        for column in wanted
    }


def versions() -> dict[str, str]:
    """Versions of the software that made the report."""
    packages = {name: metadata.version(name) for name in ("torch", "ray", "numpy")}
    return {"rayddl": __version__, **packages, "python": platform.python_version()}
