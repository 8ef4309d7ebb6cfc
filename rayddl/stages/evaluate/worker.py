"""Units of work that train students by the hard-label or the soft-label protocol, one result file each."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch

from rayddl import seeds
from rayddl.methods.training.checkpoint import SPARING
from rayddl.methods.training.hard import Protocol, train_student, train_together
from rayddl.methods.training.input_spec import BATCH, InputSpec
from rayddl.methods.training.metrics import Score, scored
from rayddl.methods.training.observers import Labeller
from rayddl.methods.training.soft import (
    OWN,
    EpochData,
    Execution,
    Lectures,
    SoftProtocol,
    SoftTraining,
)
from rayddl.methods.training.softlabels import StoredLabels
from rayddl.methods.training.steps import steps_for
from rayddl.methods.training.teacher import outputs
from rayddl.methods.training.team import Team
from rayddl.methods.trajectories.expert import HeldOut
from rayddl.nets.build import build, initial
from rayddl.nets.config import NetConfig
from rayddl.stages.evaluate.student_data import (
    Shared,
    Student,
    TrainingData,
    as_pixels,
    in_model_space,
    only,
    trials_on,
)
from rayddl.stages.runtime import devices, model_space
from rayddl.stages.runtime.shards import Batches
from rayddl.stages.runtime.sources import on_device

PARTIAL_SECONDS = 60.0
"""Seconds of a student's soft-label training between two partial files."""
REPORT_SECONDS = 2.0
"""Seconds between two progress reports of a training."""


def train_one(shared: Shared, data: TrainingData, student: Student) -> dict[str, Any]:
    """Train and test one student, and write its result file; an existing file is read instead.

    In a team the first worker tests and writes, and the others return nothing.
    """
    team = Team.here()
    if team.broadcast(b"there" if team.first and shared.out.has(student.file) else None):
        result: dict[str, Any] = shared.out.read_json(student.file) if team.first else {}
        return result
    device = devices.enter(shared.threads, shared.precision, named([student]))
    began = time.perf_counter()
    train = train_soft if isinstance(data.protocol, SoftProtocol) else train_hard
    images, score = train(shared, data, student, _seed(shared, student), device)
    lr = student.lr or data.protocol.lr
    if not team.first:
        return {}
    written = _written(shared, student, images, score, lr, time.perf_counter() - began)
    if isinstance(data.protocol, SoftProtocol):
        shared.out.delete(partial_name(student))
    return written


def train_in_turn(shared: Shared, group: Sequence[Student], data: Sequence[Any]) -> None:
    """Train one student of ``group`` after the other, each on its own of ``data``: references, or the data."""
    import ray

    for student, own in zip(group, data, strict=True):
        train_one(shared, ray.get(own) if isinstance(own, ray.ObjectRef) else own, student)


def named(group: Sequence[Student]) -> str:
    """The name of these students on the dashboard."""
    first = group[0]
    seeds_ = f"seed {first.seed}" if len(group) == 1 else f"seeds {first.seed}–{group[-1].seed}"
    trial = f" at {first.lr:g}" if first.trial and first.lr is not None else ""
    return f"student {first.data} {first.net.label} {seeds_}{trial}"


def tried(shared: Shared, data: TrainingData, net: NetConfig) -> None:
    """Train a student for one epoch of one batch, without a result file, so that the caller can measure GPU memory."""
    device = devices.enter(shared.threads, shared.precision, "student tried")
    student = Student(data.name, net, 0, "student-tried.json", data.protocol.lr)
    train = train_soft if isinstance(data.protocol, SoftProtocol) else train_hard
    train(shared, data, student, _seed(shared, student), device)
    shared.out.delete(partial_name(student))


def partial_name(student: Student) -> str:
    """The file from which the training of a student of soft labels goes on."""
    return student.file.removesuffix(".json") + ".partial.safetensors"


def train_group(shared: Shared, group: Sequence[Student], *kinds: TrainingData) -> list[dict[str, Any]]:
    """Train the students of ``group`` together, each on its own data, and write their result files.

    They share the network and the learning rate, and use hard labels. Students that have a result file are
    trained too: the last bits of a result depend on the number of students trained together.
    """
    device = devices.enter(shared.threads, shared.precision, named(group))
    began, first = time.perf_counter(), kinds[0]
    assert isinstance(first.protocol, Protocol)
    source, net, classes = shared.source, group[0].net, len(shared.source.classes)
    steps = steps_for(net, source.shape, classes, shared.precision, shared.compile)
    protocol = first.protocol.at(group[0].lr)
    test = model_space.test(source, shared.space, device)
    own = [in_model_space(shared, data, None, device) for data in kinds]
    own_seeds = [_seed(shared, student) for student in group]
    starts = [initial(net, source.shape, classes, seed=seeds.derive(seed, "start")) for seed in own_seeds]
    trained = train_together(
        steps, protocol, torch.stack(starts).to(device),
        [each.x[:] for each in own], [each.y for each in own], classes, own_seeds,
        reporter(shared, group, protocol.epochs),
    )  # fmt: skip
    scores = [scored(steps, theta, test.x, test.y, classes) for theta in trained]
    seconds = (time.perf_counter() - began) / len(group)
    results = zip(group, own, scores, strict=True)
    return [
        _written(shared, student, len(each.x), score, protocol.lr, seconds)
        for student, each, score in results
    ]


def reporter(shared: Shared, group: Sequence[Student], epochs: int) -> Callable[[int], None]:
    """A callback for the number of epochs done: reports every :data:`REPORT_SECONDS` and at the end."""
    last = time.monotonic()

    def report(done: int) -> None:
        nonlocal last
        if shared.counter is None or (done < epochs and time.monotonic() - last < REPORT_SECONDS):
            return
        last = time.monotonic()
        shared.counter.report(group[0].file, len(group) * min(done / epochs, 1.0), "")

    return report


def _seed(shared: Shared, student: Student) -> int:
    kind = "trial" if student.trial else "student"
    return seeds.derive(shared.seed, kind, student.data, student.net.model_dump_json(), student.seed)


def _written(
    shared: Shared, student: Student, images: int, score: Score, lr: float, seconds: float
) -> dict[str, Any]:
    result = {
        "data": student.data,
        "net": student.net.label,
        "seed": student.seed,
        "images": images,
        "accuracy": score.accuracy,
        "top5": score.top5,
        "unanswered": score.unanswered,
        **({} if score.best is None else {"best": score.best}),
        "confused": asdict(score.confused()),
        "lr": lr,
        "seconds": seconds,
    }
    if not shared.out.has(student.file):
        shared.out.write_json(student.file, result)
    return result


def train_hard(
    shared: Shared, data: TrainingData, student: Student, seed: int, device: torch.device
) -> tuple[int, Score]:
    """Train with hard labels: the number of training images, and the score."""
    assert isinstance(data.protocol, Protocol)
    source, classes = shared.source, len(shared.source.classes)
    steps = steps_for(student.net, source.shape, classes, shared.precision, shared.compile)
    used = in_model_space(shared, data, shared.trials_on if student.trial else None, device)
    if student.trial:
        held = only(model_space.train(source, shared.space, device), trials_on(shared, data).to(device))
        test = HeldOut(held.x, held.y)
    else:
        test = model_space.test(source, shared.space, device)
    protocol = data.protocol.at(student.lr)
    start = initial(student.net, source.shape, classes, seed=seeds.derive(seed, "start")).to(device)
    report = reporter(shared, [student], protocol.epochs)
    theta = train_student(steps, protocol, start, used.x, used.y, classes, seed, report)
    return len(used.x), scored(steps, theta, test.x, test.y, classes)


def train_soft(
    shared: Shared, data: TrainingData, student: Student, seed: int, device: torch.device
) -> tuple[int, Score]:
    """Train with soft labels: the number of training images, and the score after the last epoch. In a team it is
    empty except in the first worker.

    A long training writes a partial file once a minute, and resumes from it.
    """
    import ray

    assert isinstance(data.protocol, SoftProtocol)
    assert shared.input_spec is not None
    input_spec, team = shared.input_spec, Team.here()
    images, own, test, labels = as_pixels(shared, data, student.trial)
    protocol = data.protocol.at(student.lr)
    observer = None
    if data.stored is None and protocol.loss != OWN:
        seen: Labeller = ray.get(shared.observer)
        observer = seen.on(device, shared.precision).module
    start = seeds.derive(seed, "start")
    module = build(
        student.net, input_spec.shape, len(shared.source.classes), seed=start, precision=shared.precision
    )
    training = SoftTraining(
        module,
        protocol,
        input_spec,
        on_device(images, device),
        epoch_data(data, protocol, images, input_spec, seed),
        observer,
        Execution(device, shared.compile, team),
        seed,
        own if protocol.with_own_labels else None,
    )
    partial = partial_name(student)
    stored = shared.out.read(partial) if team.first and shared.out.has(partial) else None
    earlier = team.beginning(stored, training.dump)
    if earlier is not None:
        training.resume(earlier)
    saved, took, report = time.monotonic(), 0.0, reporter(shared, [student], protocol.epochs)

    def on_epoch(now: SoftTraining) -> None:
        nonlocal saved, took
        if not team.first:
            return
        report(now.epoch)
        if shared.best and looked_at(now.epoch, protocol.epochs):
            now.looks.append(_tested(now.tested, shared, protocol, test, labels, device).accuracy)
        began = time.monotonic()
        interval = PARTIAL_SECONDS if team.lasting else min(PARTIAL_SECONDS, SPARING * took)
        if began - saved > interval and now.epoch < protocol.epochs:
            shared.out.write(partial, now.dump())
            saved = time.monotonic()
            took = saved - began

    trained = training.run(on_epoch)
    team.refuse_unlike(trained)
    if not team.first:
        return len(images), Score(len(shared.source.classes))
    score = _tested(trained, shared, protocol, test, labels, device)
    score.best = max(training.looks, default=None)
    return len(images), score


def looked_at(done: int, epochs: int) -> bool:
    """True if RDED's published code tests after ``done`` of ``epochs`` epochs: each tenth of the last fifth, and the
    last.
    """
    return done - 1 > 0.8 * epochs and (done % 10 == 0 or done == epochs)


def _tested(
    module: torch.nn.Module,
    shared: Shared,
    protocol: SoftProtocol,
    test: torch.Tensor | Batches,
    labels: torch.Tensor,
    device: torch.device,
) -> Score:
    assert shared.input_spec is not None
    score = Score(len(shared.source.classes))
    answers = outputs(module, shared.input_spec, test, device, zoom=protocol.zoom)
    for logits, right in zip(answers, labels.split(BATCH), strict=True):
        score.add(logits, right)
    return score


def epoch_data(
    data: TrainingData, protocol: SoftProtocol, images: torch.Tensor, input_spec: InputSpec, seed: int
) -> Lectures:
    """The crops of each epoch: as stored, or drawn at random with ``seed``."""
    if data.stored is not None:
        return StoredLabels(data.stored)
    sides = (int(images.shape[2]), int(images.shape[3]))
    return lambda epoch: EpochData(protocol.draw(epoch, len(images), sides, input_spec, seed))
