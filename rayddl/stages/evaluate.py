"""``kind: evaluate``: nets x seeds as Ray tasks, beside random real images (hard-label protocol)."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rayddl import seeds
from rayddl.data import picking
from rayddl.data.config import SourceConfig, augmentation_names
from rayddl.data.distilled import DistilledSet
from rayddl.errors import ArtifactError
from rayddl.nets.config import NetConfig
from rayddl.nets.cost import worth_compiling
from rayddl.stages import cluster, pool, students, tables
from rayddl.stages.configs.evaluate import EvaluateConfig
from rayddl.stages.context import Context, Progress, Result, Silent
from rayddl.stages.shared import SharedSource, publish, tensor
from rayddl.storage import Folder
from rayddl.training.hard import Protocol

TYPES = {"data": "string", "net": "string", "seed": "int64", "accuracy": "double", "seconds": "double"}


def run(config: EvaluateConfig, context: Context) -> Result:
    """Train the students whose results are not there yet, and judge the set."""
    began = time.perf_counter()
    cluster.start()
    source = publish(context.source)
    made = DistilledSet.load(context.inputs[config.set].folder.child("set"))
    refuse_other_classes(made, source)
    config = settled(config, made, source)
    found = judge(config, made, source, context.out, context.seed_of(), context.progress)
    rows = summarise(found)
    protocol = {**recipe(config, made), "seed": context.seed_of()}
    judged = replace(made, info={**made.info, "metrics": {"accuracy": rows}, "protocol": protocol})
    judged.save(context.out.child("set"))
    columns = {name: [result[name] for result in found] for name in TYPES}
    tables.write(context.out, "students.parquet", columns, TYPES)
    for name in context.out.names():
        if name.startswith("student-"):
            context.out.delete(name)
    seconds = time.perf_counter() - began
    summary = {"rows": rows, "set": config.set, "protocol": protocol, "seconds": seconds}
    return Result(summary, tuple(_shown(config.set, row) for row in rows))


def evaluate_set(
    folder: Folder,
    *,
    nets: tuple[str, ...] | None = None,
    seeds: int | None = None,
    epochs: int | None = None,
    root: str | None = None,
    progress: Progress | None = None,
) -> Result:
    """Judge a distilled set by the protocol stored with it; arguments override single settings.

    ``root`` is where the source's files lie now, if they have moved. Raises
    :class:`ArtifactError` for a set that says nothing about its source.
    """
    import tempfile

    made = DistilledSet.load(folder)
    if "source" not in made.info:
        raise ArtifactError(
            f"{folder} does not say which images it was made from, so nothing can be held out."
        )
    stored: dict[str, Any] = dict(made.info.get("protocol", {}))
    asked = {"nets": nets, "seeds": seeds, "epochs": epochs}
    known = {k: v for k, v in stored.items() if k in EvaluateConfig.model_fields}
    given = {k: v for k, v in asked.items() if v is not None}
    config = EvaluateConfig.model_validate({**known, **given, "kind": "evaluate", "set": "set"})
    cluster.start()
    described = SourceConfig.model_validate(made.info["source"])
    source = publish(described if root is None else described.model_copy(update={"root": root}))
    refuse_other_classes(made, source)
    config = settled(config, made, source)
    with tempfile.TemporaryDirectory() as scratch:
        seed = int(stored.get("seed", 0))
        found = judge(config, made, source, Folder(scratch), seed, progress or Silent())
    rows = summarise(found)
    summary = {"rows": rows, "set": str(folder), "protocol": recipe(config, made)}
    return Result(summary, tuple(_shown(str(folder), row) for row in rows))


def refuse_other_classes(made: DistilledSet, source: SharedSource) -> None:
    """Labels are positions: the set's classes must be the source's, in the same order."""
    if tuple(made.classes) != tuple(source.classes):
        first = next(
            (pair for pair in zip(made.classes, source.classes, strict=False) if pair[0] != pair[1]),
            (f"{len(made.classes)} classes", f"{len(source.classes)} classes"),
        )
        raise ArtifactError(
            f"the set's classes are not the source's: {first[0]!r} stands where the source has {first[1]!r}. "
            "Evaluate on the source that the set was made from."
        )


def judge(
    config: EvaluateConfig,
    made: DistilledSet,
    source: SharedSource,
    out: Folder,
    seed: int,
    progress: Progress,
) -> list[dict[str, Any]]:
    """The result of every student: lessons x nets x seeds, in that order. ``config`` is settled."""
    import ray

    nets = _nets(config, made)
    lessons = _lessons(config, made, source, seed)
    plan = [
        students.Student(lesson.name, net, s, f"student-{lesson.name}-{n}-{s}.json")
        for lesson, per_seed in lessons
        for n, net in enumerate(nets)
        for s in range(config.seeds)
    ]
    missing = [s for s in plan if not out.has(s.file)]
    share = cluster.share(config.resources, cpus=1, gpus=0.25, units=max(len(missing), 1))
    shared = ray.put(
        students.Class(
            source,
            ray.put(made.space),
            out,
            seed,
            config.precision,
            bool(config.compile),
            share.threads,
        )
    )
    sent = {
        (lesson.name, s): ray.put(per_seed(s)) if s == 0 or lesson.name == "random" else None
        for lesson, per_seed in lessons
        for s in range(config.seeds)
    }
    task = cluster.task(students.teach, share)

    def submit(student: students.Student) -> Any:
        lesson = sent[student.lesson, student.seed] or sent[student.lesson, 0]
        return task.remote(shared, lesson, student)

    done = len(plan) - len(missing)
    progress.update(done, len(plan))
    for student, result in pool.as_they_finish(missing, submit, share.at_once):
        done += 1
        shown = f"{student.lesson} {student.net.label} seed {student.seed}: {100 * result['accuracy']:.1f} %"
        progress.update(done, len(plan), shown)
    return [out.read_json(student.file) for student in plan]


def _lessons(
    config: EvaluateConfig, made: DistilledSet, source: SharedSource, seed: int
) -> list[tuple[Any, Any]]:
    import ray

    augmented, lr = augmentation_names(config.augment), config.lr or made.lr_student
    protocol = Protocol(config.epochs, lr, augmented, config.batch)
    distilled = students.Lesson("distilled", made.images, made.labels, None, protocol)
    lessons: list[tuple[Any, Any]] = [(distilled, lambda _: distilled)]
    if config.random:
        train_labels = tensor(ray.get(source.refs[1])).clone()

        def draw(s: int) -> students.Lesson:
            draws = seeds.generator(seed, "random", s)
            picked = picking.per_class(train_labels, source.classes, made.ipc, draws)
            return students.Lesson("random", None, None, picked, protocol)

        lessons.append((draw(0), draw))
    if config.whole:
        whole = students.Lesson(
            "whole", None, None, None, Protocol(config.whole_epochs, WHOLE_LR, augmented, config.batch)
        )
        lessons.append((whole, lambda _: whole))
    return lessons


WHOLE_LR = 0.01
"""The literature's rate for the ConvNet on all real images."""


def _nets(config: EvaluateConfig, made: DistilledSet) -> tuple[NetConfig, ...]:
    return config.nets if config.nets is not None else (NetConfig.model_validate(made.info["net"]),)


def settled(config: EvaluateConfig, made: DistilledSet, source: SharedSource) -> EvaluateConfig:
    """``config`` with ``compile`` decided: as asked, else where it pays.

    Figures are reached again to the last bit only with the same decision, so it is stored with the set.
    """
    if config.compile is not None:
        return config
    compile_ = _worthwhile(config, _nets(config, made), source, made)
    return config.model_copy(update={"compile": compile_})


def _worthwhile(
    config: EvaluateConfig, nets: Sequence[NetConfig], source: SharedSource, made: DistilledSet
) -> bool:
    classes, count = len(source.classes), len(made.images)
    batch = min(config.batch, count)
    steps = (config.epochs + 1) * -(-count // batch) * config.seeds
    if config.whole:
        return True
    return any(worth_compiling(net, source.shape, classes, steps=steps, batch=batch) for net in nets)


def recipe(config: EvaluateConfig, made: DistilledSet) -> dict[str, Any]:
    """What another judge needs to reach the same figures: an evaluate stage's settings, as JSON."""
    nets = [net.model_dump(mode="json") for net in _nets(config, made)]
    kept = config.model_dump(
        mode="json", include={"seeds", "epochs", "batch", "augment", "precision", "compile"}
    )
    return {"name": "hard", "nets": nets, "lr": config.lr or made.lr_student, **kept}


def summarise(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and standard deviation per lesson and net, over seeds."""
    groups: dict[tuple[str, str], list[float]] = {}
    for result in found:
        groups.setdefault((result["data"], result["net"]), []).append(float(result["accuracy"]))
    return [
        {
            "data": data,
            "net": net,
            "images": next(r["images"] for r in found if r["data"] == data),
            "mean": statistics.fmean(values),
            "std": statistics.pstdev(values),
            "accuracies": values,
        }
        for (data, net), values in groups.items()
    ]


def _shown(name: str, row: dict[str, Any]) -> dict[str, str]:
    what = {"distilled": f"distilled ({name})", "random": "random real images", "whole": "all real images"}
    return {
        "data": what[row["data"]],
        "images": f"{row['images']:,}",
        "net": row["net"],
        "accuracy %": f"{100 * row['mean']:.1f} ± {100 * row['std']:.1f}",
        "seeds": "  ".join(f"{100 * a:.1f}" for a in row["accuracies"]),
    }
