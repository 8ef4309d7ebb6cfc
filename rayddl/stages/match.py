"""``kind: match``: MTT and MCT. The loop runs in one actor; short evaluations run beside it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from rayddl import interrupts, seeds
from rayddl.data import picking
from rayddl.data.config import augmentation_names
from rayddl.data.distilled import DistilledSet
from rayddl.errors import ArtifactError, DivergedError
from rayddl.nets.config import NetConfig
from rayddl.nets.cost import worth_compiling
from rayddl.stages import matcher, students, tables
from rayddl.stages.configs.match import MatchConfig
from rayddl.stages.context import Context, Input, Result
from rayddl.stages.runtime import cluster, pool
from rayddl.stages.shared import SharedSource, publish, read_space, tensor
from rayddl.training.hard import Protocol

SLICE_SECONDS = 1.0
"""How long the loop runs between two looks at it."""
PAUSE_SECONDS = 5.0
"""How long an interrupted loop may take to finish its iteration and checkpoint."""
TYPES = {
    "iteration": "int64",
    "loss": "double",
    "lr_student": "double",
    "start": "double",
    "expert": "int64",
    "seconds": "double",
}
BATCH_NORM = (
    "the experts have batch norm: trajectories carry no running statistics, so students are matched by the "
    "statistics of each synthetic batch; the literature matches with norm: instance"
)
FIRST_AND_LAST = 10
"""Iterations whose mean loss stands for a run's start and end."""


def run(config: MatchConfig, context: Context) -> Result:
    """Distil, or go on distilling, and write the set."""
    began = time.perf_counter()
    experts = context.inputs[config.experts]
    cluster.start()
    source = publish(context.source)
    refuse_other_experts(experts, source, context.source.name)
    job, share = _job(config, context, experts, source)
    if job.net.norm == "batch":
        context.progress.note(BATCH_NORM)
    short = _ShortEvaluations(job, context)
    name = "last.safetensors"
    with _at_work(job, share) as worker:
        where = _distil(worker, job, context, short)
        pool.get(worker.keep.remote(name, config.iterations), "keeping the set")
        rows = pool.get(worker.rows.remote(config.iterations), "reading the metrics")
    images, labels, lr = matcher.read_snapshot(context.out, name)
    tables.write(context.out, "metrics.parquet", _typed(rows), TYPES)
    accuracies = short.finish()
    made = DistilledSet(
        images,
        labels,
        lr,
        source.classes,
        read_space(experts.folder, source),
        info(config, context, job, where.iteration),
    )
    made.save(context.out.child("set"))
    for leftover in (name, matcher.CHECKPOINT, *short.files):
        context.out.delete(leftover)
    seconds = time.perf_counter() - began
    return Result(_summary(config, source, rows, where, made, accuracies, seconds))


def refuse_other_experts(experts: Input, source: SharedSource, name: str) -> None:
    """Experts must come from the same images, in the same pixel space, with the same classes."""
    theirs, ours = experts.summary["space"], source.space_id
    if theirs != ours:
        kind, _, images = str(theirs).partition(":")
        raise ArtifactError(
            f"the experts of {experts.stage!r} were trained in pixel space {kind} on images {images[:12]}; the "
            f"source {name!r} is {source.space_kind} on {source.fingerprint[:12]}. "
            "Match with the source that trained them, or train new ones."
        )
    if list(experts.summary["classes"]) != list(source.classes):
        raise ArtifactError(
            f"the experts of {experts.stage!r} know the classes {_short(experts.summary['classes'])}, the source has "
            f"{_short(source.classes)}. Classes are matched by name and order; train new experts."
        )


def started(config: MatchConfig, source: SharedSource, seed: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The synthetic images' labels, and the real images that they start from."""
    import ray

    classes = len(source.classes)
    if config.start_from == "noise":
        return torch.arange(classes).repeat_interleave(config.ipc), None
    labels = tensor(ray.get(source.refs[1])).clone()
    draws = seeds.generator(seed, "images")
    picked = picking.per_class(labels, source.classes, config.ipc, draws, config.short_class)
    return labels[picked], picked


def _short(names: Any) -> str:
    listed = [str(n) for n in names]
    return ", ".join(listed[:5]) + (f" … ({len(listed)})" if len(listed) > 5 else "")


def _job(
    config: MatchConfig, context: Context, experts: Input, source: SharedSource
) -> tuple[matcher.Job, cluster.Share]:
    beside = 1 if config.evaluate_every else 0
    cpus = max(1, cluster.node_cpus() - beside) if config.workers == 1 else 1
    gpus = 1 if config.workers == 1 else 0.5
    share = cluster.share(config.resources, cpus=cpus, gpus=gpus, units=config.workers, together=True)
    net = NetConfig.model_validate(experts.summary["net"])
    labels, picked = started(config, source, context.seed_of())
    import ray

    job = matcher.Job(
        config,
        net,
        source,
        ray.put(read_space(experts.folder, source)),
        experts.folder,
        int(experts.summary["count"]),
        context.out,
        context.seed_of(),
        labels,
        picked,
        compiled(config, net, source, len(labels)),
        share.threads,
        matcher.CHECKPOINT_SECONDS,
    )
    return from_set(job, config, context.inputs), share


def from_set(job: matcher.Job, config: MatchConfig, inputs: Mapping[str, Input]) -> matcher.Job:
    """The job with ``start_set``'s images and learning rate to start from, if the definition names one.

    Raises :class:`ArtifactError` for a set of other classes, another shape or another number of images.
    """
    if config.start_set is None:
        return job
    made = DistilledSet.load(inputs[config.start_set].folder.child("set"))
    theirs = (list(made.classes), made.space.shape, made.ipc)
    ours = (list(job.source.classes), job.source.shape, config.ipc)
    for what, their, our in zip(("classes", "image shape", "images per class"), theirs, ours, strict=True):
        if their != our:
            raise ArtifactError(
                f"the set of {config.start_set!r} cannot be started from: its {what} are {their}, and {our} are "
                "wanted. Make it from the same source, with the same ipc."
            )
    config = config.model_copy(update={"lr_student": config.lr_student or made.lr_student})
    return replace(job, config=config, labels=made.hard_labels, picked=None, given=made)


def compiled(config: MatchConfig, net: NetConfig, source: SharedSource, images: int) -> bool:
    """Whether the student's steps on so many synthetic images are compiled: as asked, else where it pays."""
    if config.compile is not None or config.cuda_graphs:
        return config.compile is not False
    batch, steps = min(config.batch_syn or images, images), config.iterations * config.syn_steps
    return worth_compiling(net, source.shape, len(source.classes), steps=steps, batch=batch, passes=12)


@contextmanager
def _at_work(job: matcher.Job, share: cluster.Share) -> Iterator[Any]:
    """The loop's actor, with its helpers.

    They end with the block, whatever still knows of them: short evaluations may wait for their CPUs.
    """
    import ray

    options = {**share.options, "max_restarts": cluster.RETRIES, "max_task_retries": cluster.RETRIES}
    sent = cluster.packed(job)
    helpers: list[Any] = [
        ray.remote(matcher.WindowWorker).options(**options).remote(sent)
        for _ in range(job.config.workers - 1)
    ]
    worker: Any = ray.remote(matcher.MatchWorker).options(**options).remote(sent, helpers)
    try:
        yield worker
    except KeyboardInterrupt:
        with interrupts.held(), suppress(Exception):
            ray.wait([worker.pause.remote()], timeout=PAUSE_SECONDS)
        raise
    finally:
        for actor in (worker, *helpers):
            ray.kill(actor)


def _distil(worker: Any, job: matcher.Job, context: Context, short: _ShortEvaluations) -> matcher.Where:
    config, progress = job.config, context.progress
    progress.update(0, config.iterations, "compiling the student's steps" if job.compile else "starting")
    where: matcher.Where = pool.get(worker.advance.remote(0, 0.0), "the matching loop")
    for stop in _stops(config):
        while where.iteration < stop:
            told = where.retries
            where = pool.get(worker.advance.remote(stop, SLICE_SECONDS), "the matching loop")
            if where.retries > told:
                progress.note(
                    f"iteration {where.iteration}: went astray and was taken back; rates are now "
                    f"{0.1**where.retries:g} of the definition's"
                )
            if where.diverged is not None:
                pool.get(worker.keep.remote("last-good.safetensors", None), "keeping the set")
                raise DivergedError(where.diverged)
            shown = f"loss {where.loss:.3f}  lr {where.lr:.4f}{short.latest()}"
            progress.update(where.iteration, config.iterations, shown)
        short.begin(worker, stop)
    return where


def _stops(config: MatchConfig) -> Iterator[int]:
    if config.evaluate_every:
        yield from range(0, config.iterations, config.evaluate_every)
    yield config.iterations


@dataclass
class _ShortEvaluations:
    """Students trained on the set as it stands at some iterations, beside the loop."""

    job: matcher.Job
    context: Context
    running: dict[Any, tuple[int, int]] = field(default_factory=dict)
    found: dict[tuple[int, int], float] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)

    def begin(self, worker: Any, iteration: int) -> None:
        """Start the students of ``iteration``: the loop stands there, or has left a snapshot of it."""
        if not self.job.config.evaluate_every:
            return
        import ray

        config, snapshot = self.job.config, f"snapshot-{iteration:06d}.safetensors"
        if not self.context.out.has(snapshot):
            pool.get(worker.keep.remote(snapshot, iteration), "keeping a snapshot")
        images, labels, lr = matcher.read_snapshot(self.context.out, snapshot)
        protocol = Protocol(config.evaluate_epochs, lr, augmentation_names(config.augment))
        lesson = ray.put(students.Lesson(f"iteration {iteration}", images, labels, None, protocol))
        job = self.job
        shared = students.Class(
            job.source, job.space, job.out, job.seed, config.precision, job.compile, threads=1
        )
        task = ray.remote(students.teach).options(num_cpus=1, max_retries=cluster.RETRIES)
        self.files.append(snapshot)
        for seed in range(config.evaluate_seeds):
            file = f"student-{iteration:06d}-{seed}.json"
            student = students.Student("short", job.net, seed, file)
            self.running[task.remote(shared, lesson, student)] = (iteration, seed)
            self.files.append(file)

    def _collect(self, timeout: float | None) -> None:
        import ray

        if self.running:
            done, _ = ray.wait(list(self.running), num_returns=len(self.running), timeout=timeout)
            for ref in done:
                self.found[self.running.pop(ref)] = pool.get(ref, "a short evaluation")["accuracy"]

    def latest(self) -> str:
        """The newest accuracy, for the progress line."""
        self._collect(0)
        if not self.found:
            return ""
        iteration = max(i for i, _ in self.found)
        return (
            f"  accuracy {100 * self.found[iteration, min(s for i, s in self.found if i == iteration)]:.1f} %"
        )

    def finish(self) -> list[tuple[int, int, float]]:
        """Wait for the rest; the table of all, which is also written."""
        self._collect(None)
        rows = sorted((iteration, seed, value) for (iteration, seed), value in self.found.items())
        columns = {name: [row[k] for row in rows] for k, name in enumerate(("iteration", "seed", "accuracy"))}
        types = {"iteration": "int64", "seed": "int64", "accuracy": "double"}
        tables.write(self.context.out, "accuracy.parquet", columns, types)
        return rows


def _typed(rows: Mapping[str, list[float]]) -> dict[str, list[Any]]:
    whole = {name for name, kind in TYPES.items() if kind == "int64"}
    return {name: [int(v) for v in values] if name in whole else values for name, values in rows.items()}


def _method(config: MatchConfig) -> str:
    return "MCT" if config.trajectory == "convex" else "MTT"


def info(config: MatchConfig, context: Context, job: matcher.Job, iteration: int) -> dict[str, Any]:
    """What the set says of itself."""
    return {
        "method": _method(config),
        "net": job.net.model_dump(mode="json"),
        "source": context.source.model_dump(mode="json"),
        "source_fingerprint": job.source.fingerprint,
        "definition": dict(context.definition),
        "seed": context.seed,
        "iterations": iteration,
        "protocol": {"name": "hard", "augment": config.augment},
    }


def _summary(
    config: MatchConfig,
    source: SharedSource,
    rows: Mapping[str, list[float]],
    where: matcher.Where,
    made: DistilledSet,
    accuracies: list[tuple[int, int, float]],
    seconds: float,
) -> dict[str, Any]:
    losses = rows["loss"]
    first, last = losses[:FIRST_AND_LAST], losses[-FIRST_AND_LAST:]
    return {
        "method": _method(config),
        "ipc": config.ipc,
        "classes": list(source.classes),
        "images": len(made.images),
        "iterations": where.iteration,
        "loss_first": sum(first) / len(first),
        "loss_last": sum(last) / len(last),
        "lr_student": made.lr_student,
        "seconds": seconds,
        "seconds_per_iteration": sorted(rows["seconds"])[len(losses) // 2],
        "skipped": where.skipped,
        "retries": where.retries,
        "bytes": made.images.numel() * 4,
        "accuracy_last": accuracies[-1][2] if accuracies else None,
    }
