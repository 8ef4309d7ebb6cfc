"""What students are taught, by which protocol, and how all of them are set to work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from rayddl import seeds
from rayddl.data import picking
from rayddl.data.config import SourceConfig, augmentation_names
from rayddl.data.distilled import DistilledSet
from rayddl.errors import ArtifactError
from rayddl.nets.config import NetConfig
from rayddl.nets.cost import worth_compiling
from rayddl.stages import cluster, listings, pool, students
from rayddl.stages.configs.evaluate import HARD_BATCH, HARD_EPOCHS, SOFT_EPOCHS, EvaluateConfig
from rayddl.stages.context import Progress
from rayddl.stages.observers import Teaching
from rayddl.stages.shared import SharedSource, tensor
from rayddl.storage import Folder
from rayddl.training import softlabels
from rayddl.training.hard import Protocol
from rayddl.training.soft import SoftProtocol, published_batch, published_lr
from rayddl.training.softlabels import Index, StoredLabels

WHOLE_LR = 0.01
"""The literature's rate for the ConvNet on all real images (hard labels)."""
WHOLE_BATCH = 100
"""At least this many of all real images are learned together (soft labels)."""


@dataclass(frozen=True)
class Task:
    """One judgement: the settled settings, the set, and what it is held against."""

    config: EvaluateConfig
    made: DistilledSet
    source: SharedSource
    teaching: Teaching | None
    """``None``: hard labels."""
    seed: int
    listed: SourceConfig | None = None
    """The source whose train split is to be read where it lies, where ``source`` has but the held-out one."""

    @property
    def nets(self) -> tuple[NetConfig, ...]:
        """The networks to train."""
        return nets_of(self.config, self.made)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what students see."""
        return self.source.shape if self.teaching is None else self.teaching.frame.shape


def nets_of(config: EvaluateConfig, made: DistilledSet) -> tuple[NetConfig, ...]:
    """The networks asked for, else the one that the set was made with."""
    if config.nets is not None:
        return config.nets
    if made.info.get("net") is None:
        raise ArtifactError("the set was made without a network: say with nets which ones to train.")
    return (NetConfig.model_validate(made.info["net"]),)


def settled(
    config: EvaluateConfig, made: DistilledSet, source: SharedSource, teaching: Teaching | None
) -> EvaluateConfig:
    """``config`` with everything decided that it leaves open: protocol, epochs, batch, compilation.

    Figures are reached again to the last bit only with the same decisions, so they are stored with the set.
    """
    chosen: dict[str, Any] = {"protocol": "hard" if teaching is None else "soft"}
    if teaching is None:
        chosen["epochs"], chosen["batch"] = config.epochs or HARD_EPOCHS, config.batch or HARD_BATCH
    else:
        usual = published_batch(made.ipc, len(made.classes), len(made))
        chosen["epochs"], chosen["batch"] = config.epochs or SOFT_EPOCHS, config.batch or usual
    whole = config.model_copy(update=chosen)
    if whole.compile is None:
        compile_ = _worthwhile(Task(whole, made, source, teaching, 0))
        whole = whole.model_copy(update={"compile": compile_})
    return whole


def _worthwhile(task: Task) -> bool:
    config, classes, count = task.config, len(task.source.classes), len(task.made)
    assert config.batch is not None
    assert config.epochs is not None
    batch = min(config.batch, count)
    steps = (config.epochs + 1) * -(-count // batch) * config.seeds
    if config.whole:
        return True
    return any(worth_compiling(net, task.shape, classes, steps=steps, batch=batch) for net in task.nets)


def judge(task: Task, out: Folder, progress: Progress) -> list[dict[str, Any]]:
    """The result of every student: lessons x nets x seeds, in that order."""
    import ray

    config, nets = task.config, task.nets
    lessons = lessons_of(task)
    plan = [
        students.Student(lesson.name, net, s, f"student-{lesson.name}-{n}-{s}.json", _lr(task, net))
        for lesson, _ in lessons
        for n, net in enumerate(nets)
        for s in range(config.seeds)
    ]
    missing = [s for s in plan if not out.has(s.file)]
    share = cluster.share(config.resources, cpus=1, gpus=0.25, units=max(len(missing), 1))
    shared = ray.put(_class(task, out, share.threads))
    _store_labels(shared, lessons[0][0], task, share, progress)
    sent = {
        (lesson.name, s): ray.put(per_seed(s)) if s == 0 or lesson.name == "random" else None
        for lesson, per_seed in lessons
        for s in range(config.seeds)
    }
    work = cluster.task(students.teach, share)

    def submit(student: students.Student) -> Any:
        lesson = sent[student.lesson, student.seed] or sent[student.lesson, 0]
        return work.remote(shared, lesson, student)

    done = len(plan) - len(missing)
    progress.update(done, len(plan))
    for student, result in pool.as_they_finish(missing, submit, share.at_once):
        done += 1
        shown = f"{student.lesson} {student.net.label} seed {student.seed}: {100 * result['accuracy']:.1f} %"
        progress.update(done, len(plan), shown)
    return [out.read_json(student.file) for student in plan]


def _lr(task: Task, net: NetConfig) -> float | None:
    if task.teaching is None:
        return None
    return task.config.lr or published_lr(net.name)


def _class(task: Task, out: Folder, threads: int) -> students.Class:
    import ray

    config, teaching = task.config, task.teaching
    observer = None if teaching is None else teaching.observer
    return students.Class(
        task.source,
        ray.put(task.made.space),
        out,
        task.seed,
        config.precision,
        bool(config.compile),
        threads,
        None if teaching is None else teaching.frame,
        None if observer is None else ray.put(observer),
    )


Lessons = list[tuple[students.Lesson, Callable[[int], students.Lesson]]]
"""Each lesson as the first student is taught it, and as the student of a seed is."""


def lessons_of(task: Task) -> Lessons:
    """The set itself, then random real images and the whole data where asked for."""
    import ray

    config, source, made = task.config, task.source, task.made
    by_set, by_random, by_whole = _protocols(task)
    distilled = _distilled(task, by_set)
    lessons: Lessons = [(distilled, lambda _: distilled)]
    if config.random:

        def draw(s: int) -> students.Lesson:
            draws = seeds.generator(task.seed, "random", s)
            if task.listed is not None:
                images = listings.drawn(task.listed, made.ipc, draws)
                return students.Lesson("random", images, None, None, by_random)
            labels = tensor(ray.get(source.refs[1])).clone()
            picked = picking.per_class(labels, source.classes, made.ipc, draws)
            return students.Lesson("random", None, None, picked, by_random)

        lessons.append((draw(0), draw))
    if config.whole:
        whole = students.Lesson("whole", None, None, None, by_whole)
        lessons.append((whole, lambda _: whole))
    return lessons


def _distilled(task: Task, protocol: Protocol | SoftProtocol) -> students.Lesson:
    made, teaching = task.made, task.teaching
    if teaching is None:
        if made.space.shape != task.source.shape:
            raise ArtifactError(
                f"the set's images are {made.space.shape} (channels, height, width) and the source's "
                f"{task.source.shape}: students of hard labels are tested on images of one size. Set source.size, "
                "or use protocol: soft."
            )
        return students.Lesson("distilled", made.images, made.labels, None, protocol)
    images = teaching.frame.fitted(made.pixels()).contiguous()
    return students.Lesson("distilled", images, None, None, protocol, teaching.stored)


def _protocols(task: Task) -> Sequence[Protocol | SoftProtocol]:
    """For the set, for random images, and for all of them."""
    config, made = task.config, task.made
    assert config.epochs is not None
    assert config.batch is not None
    if task.teaching is None:
        augmented, lr = augmentation_names(config.augment), config.lr or made.lr_student
        hard = Protocol(config.epochs, lr, augmented, config.batch)
        return hard, hard, Protocol(config.whole_epochs, WHOLE_LR, augmented, config.batch)
    soft = SoftProtocol(batch=config.batch, factor=int(made.info.get("factor", 1)), epochs=config.epochs)
    stored = task.teaching.stored
    if stored is not None and softlabels.has_labels(stored):
        # What was shown is stored, and with it the batches that it was shown in.
        soft = replace(StoredLabels(stored).index.protocol, epochs=config.epochs)
    real = replace(soft, factor=1)
    return soft, real, replace(real, epochs=config.whole_epochs, batch=max(config.batch, WHOLE_BATCH))


def _store_labels(
    shared: Any, lesson: students.Lesson, task: Task, share: cluster.Share, progress: Progress
) -> None:
    """Make the soft labels that are to be stored and are not there yet; refuse those of other images."""
    import ray

    if lesson.stored is None:
        return
    images, protocol = _pixels(lesson), lesson.protocol
    if not softlabels.has_labels(lesson.stored):
        assert isinstance(protocol, SoftProtocol)
        assert task.teaching is not None
        index = Index.of(images, task.source.classes, task.teaching.frame, protocol)
        missing = [part for part in index.parts() if not lesson.stored.has(part[0])]
        work, sent = cluster.task(students.label, share), ray.put(lesson)

        def submit(part: Any) -> Any:
            return work.remote(shared, sent, index, part)

        for done, _ in enumerate(pool.as_they_finish(missing, submit, share.at_once), 1):
            progress.update(0, 1, f"soft labels: {done} of {len(missing)} files")
        softlabels.finish(lesson.stored, index)
    labels = StoredLabels(lesson.stored)
    labels.refuse_other_images(images)
    labels.refuse_fewer(protocol.epochs, task.source.classes)


def _pixels(lesson: students.Lesson) -> torch.Tensor:
    assert lesson.images is not None
    return lesson.images
