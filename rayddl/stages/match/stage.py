"""``kind: match``: MTT and MCT. The loop runs in one actor, in parallel to short evaluations."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from typing import Any

import torch

from rayddl import interrupts, seeds
from rayddl.data.distilled import DistilledSet
from rayddl.data.sources import picking
from rayddl.errors import ArtifactError, DivergedError
from rayddl.nets.build import has_batch_norm
from rayddl.nets.config import NetConfig
from rayddl.nets.cost import worth_compiling
from rayddl.stages import parquet as tables
from rayddl.stages.context import Context, Input, Result
from rayddl.stages.experts.artifact import refuse_other_experts
from rayddl.stages.match import short_evaluations
from rayddl.stages.match import worker as matcher
from rayddl.stages.match.settings import MatchConfig
from rayddl.stages.match.short_evaluations import ShortEvaluations
from rayddl.stages.runtime import cluster, failures, groups, workers
from rayddl.stages.runtime.groups import Group
from rayddl.stages.runtime.sizes import Share
from rayddl.stages.runtime.sources import SharedSource, publish, read_space, train_labels

SLICE_SECONDS = 1.0
"""Seconds of the loop between two progress updates."""
PAUSE_SECONDS = 5.0
"""Time limit for an interrupted loop to finish its iteration and write a checkpoint."""
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
"""Number of iterations over which the loss at a run's start and end is averaged."""


def run(config: MatchConfig, context: Context) -> Result:
    """Distil, or resume distilling, and write the set."""
    began = time.perf_counter()
    context.backend.start()
    job, share = prepared(config, context)
    if has_batch_norm(job.net, job.source.shape, len(job.source.classes)):
        context.progress.note(BATCH_NORM)
    name = "last.safetensors"
    with (
        groups.opened(share, "match", context.progress.note) as group,
        closing(ShortEvaluations(job, context, group)) as short,
    ):
        with _at_work(job, group) as worker:
            where = _distil(worker, job, context, short)
            # What follows may take minutes: the last evaluation, and the files of a large set.
            workers.get(worker.pause.remote(), "writing a checkpoint")
            workers.get(worker.keep.remote(name, config.iterations), "keeping the set")
            rows = workers.get(worker.rows.remote(config.iterations), "reading the metrics")
        accuracies = short.finish()
    # The line that stays on the screen has the last evaluation, which ends after the last iteration.
    context.progress.update(where.iteration, config.iterations, _figures(where, short))
    tables.write(context.out, "metrics.parquet", _typed(rows), TYPES)
    made = made_of(matcher.read_snapshot(context.out, name), config, context, job, where.iteration)
    made.save(context.out.child("set"))
    leftovers = tuple(
        leftover
        for leftover in context.out.names()
        if leftover in (name, matcher.CHECKPOINT) or leftover.startswith(short_evaluations.LEFT)
    )
    seconds = time.perf_counter() - began
    summary = _summary(config, job.source, rows, where, made, accuracies, seconds)
    return Result(summary, leftovers=leftovers)


def started(config: MatchConfig, source: SharedSource, seed: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """int64 labels of the synthetic images, and indices of random real images of their initialisation, if any."""
    classes = len(source.classes)
    if config.start_from != "real":
        return torch.arange(classes).repeat_interleave(config.ipc), None
    labels = train_labels(source).clone()
    draws = seeds.generator(seed, "images")
    picked = picking.per_class(labels, source.classes, config.ipc, draws, config.short_class)
    return labels[picked], picked


def prepared(config: MatchConfig, context: Context) -> tuple[matcher.MatchTask, Share]:
    """The workers' arguments, and the resources of each worker. Raises :class:`ArtifactError` for experts, or an
    initial set, that do not fit the source.
    """
    import ray

    experts, source = context.inputs[config.experts], publish(context.source)
    refuse_other_experts(experts, source, context.source.name)
    share = context.backend.sized(lambda have: config.asks(have)[0])
    net = NetConfig.model_validate(experts.summary["net"])
    labels, picked = started(config, source, context.seed_of())
    job = matcher.MatchTask(
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
    return _from_set(job, config, context.inputs), share


def _from_set(job: matcher.MatchTask, config: MatchConfig, inputs: Mapping[str, Input]) -> matcher.MatchTask:
    """The job with images and learning rate of ``start_set``, if the definition names one.

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
                "wanted. Make it from the same source, with the same ipc.",
                code="start-set-does-not-fit",
            )
    config = config.model_copy(update={"lr_student": config.lr_student or made.lr_student})
    return replace(job, config=config, labels=made.hard_labels, picked=None, given=made)


def compiled(config: MatchConfig, net: NetConfig, source: SharedSource, images: int) -> bool:
    """True if the student's steps are compiled: as set, else if the run is long enough to repay compilation."""
    if config.compile is not None or config.cuda_graphs:
        return config.compile is not False
    batch, steps = min(config.batch_syn or images, images), config.iterations * config.syn_steps
    return worth_compiling(net, source.shape, len(source.classes), steps=steps, batch=batch, passes=12)


@contextmanager
def _at_work(job: matcher.MatchTask, group: Group) -> Iterator[Any]:
    """The loop's actor for the block; it and its helpers are killed at the end of the block."""
    import ray

    retries = {"max_restarts": failures.RETRIES, "max_task_retries": failures.RETRIES}

    def actor(made: type, index: int, *more: Any) -> Any:
        name = f"match window {index}" if index else "match"
        sent = cluster.packed(replace(job, name=name))
        return ray.remote(made).options(**group.options(index), **retries).remote(sent, *more)

    helpers = [actor(matcher.WindowWorker, index) for index in range(1, job.config.workers)]
    worker = actor(matcher.MatchWorker, 0, helpers)
    try:
        yield worker
    except KeyboardInterrupt:
        with interrupts.held(), suppress(Exception):
            ray.wait([worker.pause.remote()], timeout=PAUSE_SECONDS)
        raise
    finally:
        for one in (worker, *helpers):
            ray.kill(one)


def _distil(
    worker: Any, job: matcher.MatchTask, context: Context, short: ShortEvaluations
) -> matcher.MatchProgress:
    config, progress = job.config, context.progress
    progress.update(0, config.iterations, "compiling the student's steps" if job.compile else "starting")
    where: matcher.MatchProgress = workers.get(worker.advance.remote(0, 0.0), "the matching loop")
    for stop in _stops(config):
        while where.iteration < stop:
            noted = where.retries
            where = workers.get(worker.advance.remote(stop, SLICE_SECONDS), "the matching loop")
            if where.retries > noted:
                share = 0.1**where.retries
                progress.note(
                    f"iteration {where.iteration}: diverged; restored the last good state with lr_image at "
                    f"{share * config.lr_image:g} and lr_lr at {share * config.lr_lr:g}"
                )
            if where.diverged is not None:
                workers.get(worker.keep.remote("last-good.safetensors", None), "keeping the set")
                raise DivergedError(where.diverged, code="matching-diverged")
            progress.update(where.iteration, config.iterations, _figures(where, short))
        short.begin(worker, stop)
    return where


def _figures(where: matcher.MatchProgress, short: ShortEvaluations) -> str:
    return f"loss {where.loss:.3f}  lr {where.lr:.4f}{short.latest()}"


def _stops(config: MatchConfig) -> Iterator[int]:
    if config.evaluate_every:
        yield from range(0, config.iterations, config.evaluate_every)
    yield config.iterations


def _typed(rows: Mapping[str, list[float]]) -> dict[str, list[Any]]:
    whole = {name for name, kind in TYPES.items() if kind == "int64"}
    return {name: [int(v) for v in values] if name in whole else values for name, values in rows.items()}


def made_of(
    kept: matcher.Snapshot, config: MatchConfig, context: Context, job: matcher.MatchTask, iteration: int
) -> DistilledSet:
    """The set of ``iteration``, with its metadata."""
    images, labels, lr = kept
    info = {
        "method": _method(config, context),
        "net": job.net.model_dump(mode="json"),
        "source": context.source.model_dump(mode="json"),
        "source_fingerprint": job.source.fingerprint,
        "definition": dict(context.definition),
        "seed": context.seed,
        "iterations": iteration,
        "protocol": {"name": "hard", "augment": config.augment},
    }
    space = read_space(context.inputs[config.experts].folder, job.source)
    return DistilledSet(images, labels, lr, job.source.classes, space, info)


def _method(config: MatchConfig, context: Context) -> str:
    return config.method_name(flat=bool(context.inputs[config.experts].config.get("flat_rho")))


def _summary(
    config: MatchConfig,
    source: SharedSource,
    rows: Mapping[str, list[float]],
    where: matcher.MatchProgress,
    made: DistilledSet,
    accuracies: list[tuple[int, int, float]],
    seconds: float,
) -> dict[str, Any]:
    losses = rows["loss"]
    first, last = losses[:FIRST_AND_LAST], losses[-FIRST_AND_LAST:]
    return {
        "method": made.info["method"],
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
        # In force, also where the definition does not give them.
        "lr_image": config.lr_image,
        "lr_lr": config.lr_lr,
        "bytes": made.images.numel() * 4,
        "accuracy_last": short_evaluations.newest(accuracies) if accuracies else None,
    }
