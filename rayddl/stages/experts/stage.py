"""``kind: experts``: training of expert trajectories in parallel, one file per finished expert (MTT section 3.1)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from rayddl.data.pixels.space import PixelSpace
from rayddl.methods.training.observer import Observer
from rayddl.methods.trajectories import files
from rayddl.nets.cost import worth_compiling
from rayddl.report import numbers
from rayddl.stages.context import Context, Result
from rayddl.stages.experts import import_buffers
from rayddl.stages.experts.artifact import PARTIAL, ExpertsTask, summary
from rayddl.stages.experts.settings import ExpertsConfig
from rayddl.stages.experts.worker import SCORES, measured, score, train_some, tried
from rayddl.stages.runtime.sizes import Share
from rayddl.stages.runtime.sources import SharedSource, fit_space, note, publish
from rayddl.stages.runtime.workers import Workers


def run(config: ExpertsConfig, context: Context) -> Result:
    """Train the experts that have no file yet."""
    import ray

    began = time.perf_counter()
    context.backend.start()
    source = publish(context.source)
    note(source, context.progress.note)
    fitted = fit_space(source, context.out)
    if config.replay is not None:
        return Result(
            {**import_experts(config, context, source, fitted), "seconds": time.perf_counter() - began}
        )
    earlier = _reuse(config, context, source)
    missing = [i for i in range(config.count) if not context.out.has(files.file_name(i))]
    share = context.backend.spread(config.resources, units=-(-len(missing) // (config.experts_per_task or 1)))
    job = ExpertsTask(
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
        if name.startswith(
            PARTIAL
        ):  # its worker was killed between writing the expert and deleting this file
            context.out.delete(name)
    found = summary(job, config.count)
    if missing or earlier:
        total, accuracy = config.count * config.length, found["test_accuracy"]
        several = numbers.in_percent(accuracy["mean"], accuracy["std"], config.count)
        text = f"test {several} %" + " over experts" * (config.count > 1)
        context.progress.update(total, total, text)
    return Result({**found, "seconds": time.perf_counter() - began + earlier}, earlier=earlier)


def import_experts(
    config: ExpertsConfig, context: Context, source: SharedSource, fitted: PixelSpace
) -> dict[str, Any]:
    """Import the experts from MTT's buffers, and return the stage's summary."""
    import ray

    job = ExpertsTask(
        config, source, ray.put(fitted), context.out, context.seed_of(), compile=False, threads=1
    )
    return summary(job, import_buffers.import_all(job, context, str(config.replay)))


def compiled(config: ExpertsConfig, source: SharedSource) -> bool:
    """True if the experts' steps are compiled: as set, else if the run is long enough to repay compilation."""
    if config.compile is not None or config.cuda_graphs:
        return config.compile is not False
    steps = -(-source.counts[0] // config.batch) * config.length * config.count
    return worth_compiling(config.net, source.shape, len(source.classes), steps=steps, batch=config.batch)


def _reuse(config: ExpertsConfig, context: Context, source: SharedSource) -> float:
    """Copy the experts that are missing from finished stages of another ``count`` that train them in the same way, and
    return the seconds that were spent on these.
    """
    how, out, seconds = compiled(config, source), context.out, 0.0
    for other in context.reusable:
        count = int(other.summary["count"])
        if compiled(config.model_copy(update={"count": count}), source) != how:
            continue
        names = [SCORES, *(files.file_name(i) for i in range(min(count, config.count)))]
        wanted = [name for name in names if not out.has(name) and other.folder.has(name)]
        for done, name in enumerate(wanted):
            context.progress.update(done, len(wanted), f"copying experts of {other.folder.name}")
            out.write(name, other.folder.read(name))
        copied = len([name for name in wanted if name != SCORES])
        if copied:
            seconds += float(other.summary["seconds"]) * copied / count
            context.progress.note(
                f"{copied} of {numbers.counted(config.count, 'expert')} are those of {other.folder.name}, which "
                "differs in count alone"
            )
    return seconds


def _train_missing(job: ExpertsTask, share: Share, missing: list[int], context: Context) -> None:
    config, epochs = job.config, job.config.length
    backend, shared = context.backend, context.backend.put(job)
    total = config.count * epochs
    before = (config.count - len(missing)) * epochs

    waiting = "compiling, then the first epoch" if job.compile else "the first epoch"

    def show() -> None:
        done, metric = counter.read()
        context.progress.update(before + done, total, metric or waiting)

    counter = backend.counter(show)
    if config.scores is not None and not context.out.has(SCORES):
        # Before the other workers: the first one that measures memory reads them.
        seen = Observer.load(context.inputs[config.scores].folder.child("observer"))
        observer = backend.put(seen.pruned(job.source.classes))
        with backend.opened(share, "experts", note=context.progress.note) as free:
            free.one((score, shared, observer), "EL2N scores")
    with backend.opened(share, "experts", need=(tried, shared), note=context.progress.note) as free:
        context.progress.update(before, total, "starting the workers")
        together = _together(job, shared, share, free, len(missing))
        if together > 1:
            context.progress.note(f"a worker trains {together} experts in turns")
        units = [tuple(missing[i : i + together]) for i in range(0, len(missing), together)]
        for _ in free.each(units, lambda unit: (train_some, shared, unit, counter), _named, show):
            show()


def _named(indices: Sequence[int]) -> str:
    """The name of a unit of experts: ``experts 12–15``."""
    return f"expert {indices[0]}" if len(indices) == 1 else f"experts {indices[0]}–{indices[-1]}"


def _together(job: ExpertsTask, shared: Any, share: Share, free: Workers, missing: int) -> int:
    """The number of experts per task, trained in turns: as set, else measured on a GPU."""
    config = job.config
    if config.experts_per_task is not None:
        return min(config.experts_per_task, missing)
    # Spread evenly: no worker is idle while another trains several experts.
    most = -(-missing // share.at_once)
    if most == 1 or not share.num_gpus or (job.compile and config.cuda_graphs is not False):
        return 1
    return int(free.one((measured, shared, most, min(share.num_gpus, 1.0)), "experts measured"))
