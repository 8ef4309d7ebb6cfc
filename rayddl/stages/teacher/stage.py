"""``kind: teacher``: an observer, trained on the real images by one worker or a team, or pretrained."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import torch

from rayddl import documents, seeds
from rayddl.data.config import SourceConfig
from rayddl.errors import ArtifactError, StageError
from rayddl.methods.training.checkpoint import SPARING
from rayddl.methods.training.input_spec import InputSpec
from rayddl.methods.training.observer import Observer, frozen, is_observer
from rayddl.methods.training.soft import Execution
from rayddl.methods.training.teacher import (
    COLUMNS,
    ObserverCheck,
    TeacherTraining,
    predictions,
)
from rayddl.methods.training.team import Team
from rayddl.nets.build import build
from rayddl.nets.cost import worth_compiling
from rayddl.stages import parquet as tables
from rayddl.stages.context import Context, Result
from rayddl.stages.revisions import zooms
from rayddl.stages.runtime import devices
from rayddl.stages.runtime.progress import ProgressCounter
from rayddl.stages.runtime.shards import Batches
from rayddl.stages.runtime.sources import (
    SharedSource,
    held_out,
    moments,
    note,
    on_device,
    publish,
    publish_held_out,
    train_images,
    train_labels,
)
from rayddl.stages.teacher.pretrained import observer_of
from rayddl.stages.teacher.settings import NAMED, TeacherConfig
from rayddl.storage import Folder

PARTIAL_SECONDS = 60.0
"""Seconds of training between two partial files."""
PARTIAL, CHECKED = "partial.safetensors", "checked.json"
TYPES = {
    "epoch": "int64",
    "train_loss": "double",
    "test_accuracy": "double",
    "lr": "double",
    "seconds": "double",
}


@dataclass(frozen=True)
class TeacherTask:
    """The arguments of the teacher's task."""

    config: TeacherConfig
    source: SharedSource
    out: Folder
    seed: int
    compile: bool
    threads: int
    ready: Any = None
    """Reference to a pretrained observer in the object store."""

    @property
    def zoom(self) -> bool:
        """True if test images are zoomed as published."""
        return zooms(self.config.zoom, self.source)

    @property
    def folder(self) -> Folder:
        """The observer's folder."""
        return self.out.child("observer")


def run(config: TeacherConfig, context: Context) -> Result:
    """Train the observer, or load a pretrained one, and check it; resumes from a partial training."""
    import ray

    began = time.perf_counter()
    context.backend.start()
    source = _published(config, context.source)
    note(source, context.progress.note)
    share = context.backend.sized(lambda have: config.asks(have)[0])
    given = None if config.weights is None else ray.put(observer_of(config, source))
    compile_ = config.weights is None and compiled(config, source)
    job = TeacherTask(config, source, context.out, context.seed_of(), compile_, share.threads, given)
    if not is_observer(job.folder):
        backend, shared = context.backend, context.backend.put(job)

        def show() -> None:
            done, metric = counter.read()
            context.progress.update(done, config.epochs if given is None else 1, metric or awaited)

        awaited = f"starting {share.at_once} workers" if share.team else "reading images"

        counter = backend.counter(show)
        with backend.opened(share, "teacher", note=context.progress.note) as free:
            for _ in free.each([0], lambda _: (train_teacher, shared, counter), lambda _: "teacher", show):
                show()
    return Result({**_summary(job), "seconds": time.perf_counter() - began})


def _published(config: TeacherConfig, source: SourceConfig) -> SharedSource:
    scaled = config.weights in NAMED or (config.mean is not None and config.std is not None)
    # Training needs the train split, and so does the pixel scaling if the weights come without one.
    return publish_held_out(source) if config.weights is not None and scaled else publish(source)


def compiled(config: TeacherConfig, source: SharedSource) -> bool:
    """True if the training steps are compiled: as set, else if the run is long enough to repay compilation."""
    if config.compile is not None:
        return config.compile
    steps = -(-source.counts[0] // config.batch) * config.epochs
    return worth_compiling(config.net, source.shape, len(source.classes), steps=steps, batch=config.batch)


def train_teacher(job: TeacherTask, counter: ProgressCounter) -> None:
    """Run :func:`make` on the worker's device. Every worker of a team runs it."""
    device = devices.enter(job.threads, job.config.precision, "teacher")
    make(job, device, lambda done, metric: counter.report("teacher", done, metric))


def make(job: TeacherTask, device: torch.device, report: Any) -> None:
    """Train the observer, or take the pretrained one; measure its accuracy, refuse a weak one, and write it."""
    import ray

    test = test_images, test_labels = held_out(job.source, _sample(job, job.source.counts[1]))
    observer = _trained(job, device, test, report) if job.ready is None else ray.get(job.ready)
    if observer is None:
        return
    seen = observer.on(device, job.config.precision)
    predicted = predictions(seen.module, observer.input_spec, test_images, device, zoom=job.zoom)
    check = ObserverCheck.of(predicted, test_labels, len(job.source.classes))
    if check.weak and not job.config.allow_weak:
        refuse_weak(check, job.config)
    report(job.config.epochs if job.ready is None else 1, f"test {100 * check.accuracy:.1f} %")
    job.out.write_json(CHECKED, {"accuracy": check.accuracy, "images": check.images})
    replace(observer, accuracy=check.accuracy).save(job.folder)
    job.out.delete(PARTIAL)


def refuse_weak(check: ObserverCheck, config: TeacherConfig) -> None:
    """Raise :class:`StageError`, or :class:`ArtifactError` for given weights, with the likeliest cause."""
    found = (
        f"the teacher is right on {100 * check.accuracy:.1f} % of {check.images:,} held-out images, where "
        f"guessing gives {100 / check.classes:.1f} %"
    )
    anyway = "Set allow_weak: true to use it all the same."
    if config.weights is None:
        raise StageError(
            f"{found}. Its training failed: try a lower lr, more epochs, or another net. {anyway}",
            code="teacher-training-failed",
        )
    order = (
        f"Its outputs do separate the classes ({100 * check.reordered:.1f} % under other names), so the order "
        "of the classes is wrong"
        if check.shuffled
        else "The commonest cause is the order of the classes"
    )
    raise ArtifactError(
        f"{found}. {order}: check classes, which must name the outputs of {config.weights!r} in their order. Then "
        f"mean, std and size, which must be those it was trained with. {anyway}",
        code="teacher-guesses",
    )


def _sample(job: TeacherTask, count: int) -> torch.Tensor:
    if count <= job.config.check_sample:
        return torch.arange(count)
    draws = seeds.generator(job.seed, "check")
    return torch.randperm(count, generator=draws)[: job.config.check_sample].sort().values


def _trained(
    job: TeacherTask, device: torch.device, test: tuple[Batches, torch.Tensor], report: Any
) -> Observer | None:
    """The trained observer; ``None`` in all workers of a team except the first."""
    config, source, team = job.config, job.source, Team.here()
    images, labels = train_images(source), train_labels(source)
    mean, std = moments(source)
    input_spec, classes = InputSpec(source.shape, mean, std), len(source.classes)
    start = seeds.derive(job.seed, "start")
    module = build(config.net, source.shape, classes, seed=start, precision=config.precision)
    training = TeacherTraining(
        module,
        config,
        input_spec,
        on_device(images, device),
        labels,
        Execution(device, job.compile, team),
        job.seed,
    )
    stored = job.out.read(PARTIAL) if team.first and job.out.has(PARTIAL) else None
    earlier = team.beginning(stored, training.dump)
    if earlier is not None:
        training.resume(earlier)
    saved = said = time.monotonic()
    took = 0.0

    def on_step(now: TeacherTraining) -> None:
        nonlocal saved, said, took
        if not team.first:
            return
        if time.monotonic() - said > 1 or now.done == len(now.history):
            metric = f"test {100 * now.history[-1].test_accuracy:.1f} %" if now.history else "first epoch"
            report(now.done, metric)
            said = time.monotonic()
        began = time.monotonic()
        often = not team.lasting and now.done == len(now.history)
        if began - saved > (min(PARTIAL_SECONDS, SPARING * took) if often else PARTIAL_SECONDS):
            job.out.write(PARTIAL, now.dump())
            saved = time.monotonic()
            took = saved - began

    def measure() -> float:
        rows = team.rows(len(test[1]))
        part, right = replace(test[0], picked=test[0].picked[rows]), test[1][rows]
        found = predictions(training.module, input_spec, part, device, zoom=job.zoom)
        return team.total(int((found == right).sum())) / team.total(len(right))

    training.run(measure, on_step)
    team.refuse_unlike(training.module)
    if not team.first:
        return None
    rows = training.history
    columns = {name: [getattr(row, name) for row in rows] for name in COLUMNS}
    tables.write(job.out, "metrics.parquet", columns, TYPES)
    # Kept until the check passes: the same command does not train a refused teacher again.
    job.out.write(PARTIAL, training.dump())
    made = build(config.net, source.shape, classes, seed=start)
    made.load_state_dict(training.module.state_dict())
    return Observer(frozen(made), config.net, source.classes, source.shape, mean, std)


def _summary(job: TeacherTask) -> dict[str, Any]:
    config, observer = job.config, Observer.load(job.folder)
    checked = job.out.read_document(CHECKED, documents.CheckedTeacher, "delete it to check the teacher again")
    trained = config.weights is None
    job.out.delete(PARTIAL)  # its worker was killed between writing the observer and deleting this file
    return {
        "net": config.net.model_dump(mode="json"),
        "classes": list(observer.classes),
        "shape": list(observer.shape),
        "accuracy": checked["accuracy"],
        "checked": checked["images"],
        "epochs": config.epochs if trained else None,
        "weights": config.weights,
        "mean": list(observer.mean),
        "std": list(observer.std),
        "parameters": sum(p.numel() for p in observer.module.parameters()),
    }
