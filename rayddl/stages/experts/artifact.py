"""The output of an experts stage: a file per expert, the table of their epochs, the summary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from rayddl.errors import ArtifactError
from rayddl.methods.training.steps import Steps
from rayddl.methods.trajectories import files
from rayddl.methods.trajectories.convex import convexify
from rayddl.methods.trajectories.expert import Training
from rayddl.stages import parquet as tables
from rayddl.stages.context import Input
from rayddl.stages.experts.settings import ExpertsConfig
from rayddl.stages.runtime.sources import SharedSource
from rayddl.storage import Folder

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TYPES = {
    "expert": "int64",
    "epoch": "int64",
    "train_loss": "double",
    "test_accuracy": "double",
    "step_norm": "double",
    "seconds": "double",
}
PARTIAL = "partial-"
"""Prefix of the names of unfinished experts' files."""
COLUMNS = ("epoch", "train_loss", "test_accuracy", "step_norm", "seconds")


@dataclass(frozen=True)
class ExpertsTask:
    """The arguments that all tasks of the stage share."""

    config: ExpertsConfig
    source: SharedSource
    space: Any
    """Reference to the pixel space in the object store."""
    out: Folder
    seed: int
    compile: bool
    threads: int


def partial_name(index: int) -> str:
    """The name of the partial file of expert ``index``."""
    return f"{PARTIAL}{index:04d}.safetensors"


def contents(job: ExpertsTask, steps: Steps, training: Training) -> bytes:
    """The bytes of an expert's file."""
    config, dtype = job.config, DTYPES[job.config.disk]
    snapshots, sizes = torch.stack(training.snapshots), steps.net.sizes
    info = {
        "net": config.net.model_dump(mode="json"),
        "space": job.source.space_id,
        "classes": list(job.source.classes),
        "shape": list(job.source.shape),
    }
    points = config.waypoints or (0, len(snapshots) - 1)
    header = files.Header(sizes, points, info)
    if config.keep == "all":
        return files.dump_snapshots(snapshots, header, dtype, training.table())
    return files.dump_convex(convexify(snapshots, sizes, points), header, dtype, training.table())


def summary(job: ExpertsTask, count: int) -> dict[str, Any]:
    """Write the table of all epochs, and return the summary of ``count`` finished experts as JSON values."""
    config, out = job.config, job.out
    names = [files.file_name(i) for i in range(count)]
    histories = [files.read_history(out, name) for name in names]
    columns: dict[str, Any] = {
        "expert": [i for i, table in enumerate(histories) for _ in range(len(table))],
        **{c: [row[k] for table in histories for row in table.tolist()] for k, c in enumerate(COLUMNS)},
    }
    columns["epoch"] = [int(e) for e in columns["epoch"]]
    tables.write(out, "metrics.parquet", columns, TYPES)
    _, header = files.read_header(out, names[0])
    parameters = sum(header.sizes)
    final = torch.tensor([float(table[-1, 2]) for table in histories], dtype=torch.float64)
    return {
        "count": count,
        "epochs": len(histories[0]) - 1,
        "keep": config.keep,
        "net": config.net.model_dump(mode="json"),
        "parameters": parameters,
        "waypoints": list(header.epochs) if config.keep == "convex" else None,
        "bytes_kept": sum(out.size(name) for name in names),
        "bytes_snapshots": sum(len(table) for table in histories) * parameters * 4,
        "test_accuracy": {"mean": float(final.mean()), "std": float(final.std(correction=0))},
        "space": job.source.space_id,
        "classes": list(job.source.classes),
        "shape": list(job.source.shape),
    }


def refuse_other_experts(experts: Input, source: SharedSource, name: str) -> None:
    """Raise :class:`ArtifactError` unless the experts have the source's images, pixel space and classes."""
    theirs, ours = experts.summary["space"], source.space_id
    if theirs != ours:
        kind, _, images = str(theirs).partition(":")
        raise ArtifactError(
            f"the experts of {experts.stage!r} were trained in pixel space {kind} on images {images[:12]}; the "
            f"source {name!r} is {source.space_kind} on {source.fingerprint[:12]}. "
            "Match with the source that trained them, or train new ones.",
            code="experts-of-another-source",
        )
    if list(experts.summary["classes"]) != list(source.classes):
        raise ArtifactError(
            f"the experts of {experts.stage!r} know the classes {_short(experts.summary['classes'])}, the source has "
            f"{_short(source.classes)}. Classes are matched by name and order; train new experts.",
            code="experts-of-other-classes",
        )


def _short(names: Any) -> str:
    listed = [str(n) for n in names]
    return ", ".join(listed[:5]) + (f" … ({len(listed)})" if len(listed) > 5 else "")
