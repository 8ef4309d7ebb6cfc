"""Students trained as Ray tasks, by the hard- or the soft-label protocol, one result file each."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import torch

from rayddl import seeds
from rayddl.nets.build import build, initial
from rayddl.nets.config import NetConfig
from rayddl.stages import cluster
from rayddl.stages.shared import SharedSource, on_device, splits, tensor
from rayddl.storage import Folder
from rayddl.training.frame import Frame
from rayddl.training.hard import Protocol, train_student
from rayddl.training.metrics import accuracy
from rayddl.training.observer import Observer
from rayddl.training.soft import Answers, Lecture, Lectures, Manner, SoftProtocol, SoftTraining, labelled
from rayddl.training.softlabels import Index, StoredLabels, pack
from rayddl.training.steps import steps_for
from rayddl.training.teacher import predictions, share_right

PARTIAL_SECONDS = 60.0
"""Seconds of a student's soft-label training that a lost worker may cost."""


@dataclass(frozen=True)
class Lesson:
    """What students are taught: images and labels, or indices into the train split."""

    name: str
    """Names the lesson in results: ``distilled``, ``random``, ``whole``."""
    images: torch.Tensor | None
    """In model space, or for soft labels uint8."""
    labels: torch.Tensor | None
    picked: torch.Tensor | None
    protocol: Protocol | SoftProtocol
    stored: Folder | None = None
    """Where the soft labels of ``images`` are, if the observer is not to be asked."""


@dataclass(frozen=True)
class Student:
    """One student: a lesson, a network, a seed, and where its result goes."""

    lesson: str
    net: NetConfig
    seed: int
    file: str
    lr: float | None = None
    """For soft labels, in place of the lesson's."""


@dataclass(frozen=True)
class Class:
    """What all students share."""

    source: SharedSource
    space: Any
    """The reference of the pixel space."""
    out: Folder
    seed: int
    precision: str
    compile: bool
    threads: int
    frame: Frame | None = None
    """What is shown to students of soft labels."""
    observer: Any = None
    """The reference of their observer."""


def teach(shared: Class, lesson: Lesson, student: Student) -> dict[str, Any]:
    """Train and test one student; writes its result file, or reads it where it is there already."""
    if shared.out.has(student.file):
        result: dict[str, Any] = shared.out.read_json(student.file)
        return result
    device = cluster.enter_worker(shared.threads, shared.precision)
    began = time.perf_counter()
    seed = seeds.derive(shared.seed, "student", student.lesson, student.net.model_dump_json(), student.seed)
    taught = softly if isinstance(lesson.protocol, SoftProtocol) else _hard
    images, right = taught(shared, lesson, student, seed, device)
    result = {
        "data": student.lesson,
        "net": student.net.label,
        "seed": student.seed,
        "images": images,
        "accuracy": right,
        "seconds": time.perf_counter() - began,
    }
    shared.out.write_json(student.file, result)
    return result


def _hard(
    shared: Class, lesson: Lesson, student: Student, seed: int, device: torch.device
) -> tuple[int, float]:
    """The number of images, and the student's accuracy."""
    assert isinstance(lesson.protocol, Protocol)
    source, classes = shared.source, len(shared.source.classes)
    steps = steps_for(student.net, source.shape, classes, shared.precision, shared.compile)
    train, test = splits(source, shared.space, device)
    if lesson.picked is not None:
        picked = lesson.picked.to(device)
        images, labels = train.x[picked], train.y[picked]
    elif lesson.images is not None and lesson.labels is not None:
        images, labels = lesson.images.to(device), lesson.labels.to(device)
    else:
        images, labels = train.x, train.y
    start = initial(student.net, source.shape, classes, seed=seeds.derive(seed, "start")).to(device)
    theta = train_student(steps, lesson.protocol, start, images, labels, classes, seed)
    return len(images), accuracy(steps, theta, test.x, test.y)


def softly(
    shared: Class, lesson: Lesson, student: Student, seed: int, device: torch.device
) -> tuple[int, float]:
    """The number of images, and the accuracy after the last epoch of soft labels.

    A long training leaves a partial file once a minute, and goes on from it.
    """
    import ray

    assert isinstance(lesson.protocol, SoftProtocol)
    assert shared.frame is not None
    frame, manner = shared.frame, Manner(device, shared.compile)
    test, labels = (tensor(a) for a in ray.get(list(shared.source.refs[2:])))
    images = lesson.images if lesson.images is not None else tensor(ray.get(shared.source.refs[0]))
    images = frame.fitted(images if lesson.picked is None else images[lesson.picked])
    protocol = replace(lesson.protocol, lr=student.lr or lesson.protocol.lr)
    observer = None
    if lesson.stored is None:
        seen: Observer = ray.get(shared.observer)
        observer = seen.on(device, shared.precision).module
    start = seeds.derive(seed, "start")
    module = build(
        student.net, frame.shape, len(shared.source.classes), seed=start, precision=shared.precision
    )
    training = SoftTraining(
        module,
        protocol,
        frame,
        on_device(images, device),
        lectures(lesson, protocol, images, frame, seed),
        observer,
        manner,
        seed,
    )
    partial = student.file.removesuffix(".json") + ".partial.safetensors"
    if shared.out.has(partial):
        training.resume(shared.out.read(partial))
    saved = time.monotonic()

    def on_epoch(now: SoftTraining) -> None:
        nonlocal saved
        if time.monotonic() - saved > PARTIAL_SECONDS and now.epoch < protocol.epochs:
            shared.out.write(partial, now.dump())
            saved = time.monotonic()

    trained = training.run(on_epoch)
    right = share_right(predictions(trained, frame, test, device), labels)
    shared.out.delete(partial)
    return len(images), right


def lectures(
    lesson: Lesson, protocol: SoftProtocol, images: torch.Tensor, frame: Frame, seed: int
) -> Lectures:
    """What is shown in each epoch: as stored, or drawn for the student whose ``seed`` it is."""
    if lesson.stored is not None:
        return StoredLabels(lesson.stored)
    sides = (int(images.shape[2]), int(images.shape[3]))
    return lambda epoch: Lecture(protocol.draw(epoch, len(images), sides, frame, seed))


def label(shared: Class, lesson: Lesson, index: Index, part: tuple[str, range]) -> None:
    """Ask the observer about some epochs of ``lesson``, and write its answers into ``lesson.stored``."""
    import ray

    assert lesson.stored is not None
    assert lesson.images is not None
    name, epochs = part
    if lesson.stored.has(name):
        return
    device = cluster.enter_worker(shared.threads, shared.precision)
    seen: Observer = ray.get(shared.observer)
    answers = Answers(seen.on(device, shared.precision).module, Manner(device, shared.compile))
    images = on_device(lesson.images, device)
    sides, seed = (int(images.shape[2]), int(images.shape[3])), seeds.derive(shared.seed, "labels")
    found = []
    for epoch in epochs:
        draws = index.protocol.draw(epoch, len(images), sides, index.frame, seed)
        logits = labelled(answers, images, draws, index.protocol, index.frame, device)
        found.append(Lecture(draws, logits))
    lesson.stored.write(name, pack(found))
