"""Students trained by the hard-label protocol as Ray tasks, one result file each."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch

from rayddl import seeds
from rayddl.nets.build import initial
from rayddl.nets.config import NetConfig
from rayddl.stages import cluster
from rayddl.stages.shared import SharedSource, splits
from rayddl.storage import Folder
from rayddl.training.hard import Protocol, train_student
from rayddl.training.metrics import accuracy
from rayddl.training.steps import steps_for


@dataclass(frozen=True)
class Lesson:
    """What students are taught: images in model space and labels, or indices into the train split."""

    name: str
    """Names the lesson in results: ``distilled``, ``random``, ``whole``."""
    images: torch.Tensor | None
    labels: torch.Tensor | None
    picked: torch.Tensor | None
    protocol: Protocol


@dataclass(frozen=True)
class Student:
    """One student: a lesson, a network, a seed, and where its result goes."""

    lesson: str
    net: NetConfig
    seed: int
    file: str


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


def teach(shared: Class, lesson: Lesson, student: Student) -> dict[str, Any]:
    """Train and test one student; writes its result file, or reads it where it is there already."""
    if shared.out.has(student.file):
        result: dict[str, Any] = shared.out.read_json(student.file)
        return result
    device = cluster.enter_worker(shared.threads, shared.precision)
    began = time.perf_counter()
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
    seed = seeds.derive(shared.seed, "student", student.lesson, student.net.model_dump_json(), student.seed)
    start = initial(student.net, source.shape, classes, seed=seeds.derive(seed, "start")).to(device)
    theta = train_student(steps, lesson.protocol, start, images, labels, classes, seed)
    result = {
        "data": student.lesson,
        "net": student.net.label,
        "seed": student.seed,
        "images": len(images),
        "accuracy": accuracy(steps, theta, test.x, test.y),
        "seconds": time.perf_counter() - began,
    }
    shared.out.write_json(student.file, result)
    return result
