"""``kind: experts``: expert trajectories as Ray tasks, one file per expert as it finishes."""

from __future__ import annotations

import time
from typing import Any

import torch

from rayddl import seeds
from rayddl.data.config import augmentation_names
from rayddl.data.space import PixelSpace
from rayddl.nets.build import initial
from rayddl.nets.cost import worth_compiling
from rayddl.stages import cluster, pool, replayed, tally
from rayddl.stages.configs.experts import ExpertsConfig
from rayddl.stages.context import Context, Result
from rayddl.stages.expertfiles import Job, contents, summary
from rayddl.stages.shared import SharedSource, fit_space, publish, splits
from rayddl.training.steps import steps_for
from rayddl.trajectories import files
from rayddl.trajectories.expert import Recipe, Training, load_training, train_expert

PARTIAL_SECONDS = 60.0
"""Seconds of training that a lost worker may cost."""


def run(config: ExpertsConfig, context: Context) -> Result:
    """Train the experts that are not there yet."""
    import ray

    began = time.perf_counter()
    cluster.start()
    source = publish(context.source)
    for line in source.bad[:3]:
        context.progress.note(f"skipped an unreadable image: {line}")
    fitted = fit_space(source, context.out)
    if config.replay is not None:
        return Result(
            {**import_experts(config, context, source, fitted), "seconds": time.perf_counter() - began}
        )
    missing = [i for i in range(config.count) if not context.out.has(files.file_name(i))]
    share = cluster.share(config.resources, cpus=1, gpus=0.25, units=max(len(missing), 1))
    job = Job(
        config,
        source,
        ray.put(fitted),
        context.out,
        context.seed_of(),
        compiled(config, source),
        share.threads,
    )
    if missing:
        _train_missing(job, share, missing, context)
    for name in context.out.names():
        if name.startswith("partial-"):  # of a worker killed between writing its file and removing this
            context.out.delete(name)
    return Result({**summary(job, config.count), "seconds": time.perf_counter() - began})


def import_experts(
    config: ExpertsConfig, context: Context, source: SharedSource, fitted: PixelSpace
) -> dict[str, Any]:
    """Take the experts from the published code's buffers; the stage's summary."""
    import ray

    job = Job(config, source, ray.put(fitted), context.out, context.seed_of(), compile=False, threads=1)
    return summary(job, replayed.import_all(job, context, str(config.replay)))


def compiled(config: ExpertsConfig, source: SharedSource) -> bool:
    """Whether the experts' steps are compiled: as asked, else where it pays."""
    if config.compile is not None:
        return config.compile
    steps = -(-source.counts[0] // config.batch) * _epochs(config) * config.count
    return worth_compiling(config.net, source.shape, len(source.classes), steps=steps, batch=config.batch)


def _epochs(config: ExpertsConfig) -> int:
    assert config.epochs is not None  # filled in by ``resolved`` when the definition was read
    return config.epochs


def _train_missing(job: Job, share: cluster.Share, missing: list[int], context: Context) -> None:
    import ray

    config, epochs = job.config, _epochs(job.config)
    board = tally.open_tally()
    shared = ray.put(job)
    task = cluster.task(train_one, share)
    total = config.count * epochs
    before = (config.count - len(missing)) * epochs

    waiting = "compiling, then the first epoch" if job.compile else "the first epoch"

    def show() -> None:
        done, metric = tally.read(board)
        context.progress.update(before + done, total, metric or waiting)

    finished = pool.as_they_finish(
        missing, lambda index: task.remote(shared, index, board), share.at_once, show
    )
    for _ in finished:
        show()


def train_one(job: Job, index: int, board: Any) -> None:
    """Train expert ``index`` and write its file; goes on from a partial one if there is any."""
    device = cluster.enter_worker(job.threads, job.config.precision)
    config, name = job.config, files.file_name(index)
    partial = f"partial-{index:04d}.safetensors"
    if job.out.has(name):
        return
    classes, seed = len(job.source.classes), seeds.derive(job.seed, "expert", index)
    steps = steps_for(config.net, job.source.shape, classes, config.precision, job.compile)
    train, test = splits(job.source, job.space, device)
    start: Training | torch.Tensor
    if job.out.has(partial):
        start = load_training(job.out.read(partial))
    else:
        start = initial(config.net, job.source.shape, classes, seed=seeds.derive(seed, "start"))
    saved = time.monotonic()

    def on_epoch(training: Training) -> None:
        nonlocal saved
        last = training.history[-1]
        board.say.remote(
            f"expert {index}", last.epoch, f"expert {index}: test {100 * last.test_accuracy:.1f} %"
        )
        if time.monotonic() - saved > PARTIAL_SECONDS and last.epoch < _epochs(config):
            job.out.write(partial, training.dump())
            saved = time.monotonic()

    training = train_expert(steps, _recipe(config), start, train, test, classes, seed, on_epoch)
    job.out.write(name, contents(job, steps, training))
    job.out.delete(partial)


def _recipe(config: ExpertsConfig) -> Recipe:
    return Recipe(
        _epochs(config),
        config.lr,
        config.momentum,
        config.weight_decay,
        config.batch,
        augmentation_names(config.augment),
    )
