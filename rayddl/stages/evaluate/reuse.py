"""Students of finished evaluations that differ from this one only in their number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from rayddl.report import numbers
from rayddl.stages import parquet as tables
from rayddl.stages.context import Input, Progress
from rayddl.stages.evaluate.distribution import faster_in_one, result_file
from rayddl.stages.evaluate.protocol import EvaluateTask, training_data_of
from rayddl.storage import Folder

Key: TypeAlias = tuple[str, str, int]
"""The training data of a student, its network's label and its seed."""


def reuse(task: EvaluateTask, others: Sequence[Input], out: Folder, progress: Progress) -> float:
    """Write to ``out`` the results that are missing and that the finished evaluations ``others`` have; return the
    seconds that were spent on these.

    Students that are trained together are trained again, as their last digits depend on how many they are; and all
    students if rates are searched, because the search is run again.
    """
    if not others or task.config.lr_grid:
        return 0.0
    kinds = training_data_of(task)
    wanted = {
        (data.name, net.label, seed): result_file(data.name, place, seed)
        for data, _ in kinds
        for place, net in enumerate(task.nets)
        if not faster_in_one(task, data, net)
        for seed in task.each_seed
    }
    students = numbers.counted(len(kinds) * len(task.nets) * len(task.each_seed), "student")
    seconds = 0.0
    for other in others:
        # Whether steps are compiled depends on the number of students, and counts in their last digits.
        if other.summary["protocol"].get("compile") != task.config.compile:
            continue
        known = _results(other)
        found = [key for key in known if key in wanted and not out.has(wanted[key])]
        for key in found:
            out.write_json(wanted[key], known[key])
        if found:
            seconds += float(other.summary["seconds"]) * len(found) / len(known)
            progress.note(
                f"{len(found)} of {students} are those of {other.folder.name}, which differs in seeds alone"
            )
    return seconds


def _results(other: Input) -> dict[Key, dict[str, Any]]:
    """What the result files of a finished evaluation held."""
    students = tables.read(other.folder, "students.parquet")
    confusion = tables.read(other.folder, "confusion.parquet")
    images = {(row["data"], row["net"]): row["images"] for row in other.summary["rows"]}
    confused: dict[Key, dict[str, list[int]]] = {}
    columns = ("true", "predicted", "count")
    for data, net, seed, *entry in zip(
        *(confusion[name] for name in ("data", "net", "seed", *columns)), strict=True
    ):
        entries = confused.setdefault((data, net, seed), {name: [] for name in columns})
        for name, value in zip(columns, entry, strict=True):
            entries[name].append(value)
    found = {}
    for row in zip(*students.values(), strict=True):
        result = {name: value for name, value in zip(students, row, strict=True) if value is not None}
        key = (result["data"], result["net"], result["seed"])
        found[key] = {**result, "images": images[key[:2]], "confused": confused[key]}
    return found
