"""Training data and protocols of students, and the distribution of students to workers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from rayddl import seeds
from rayddl.data.config import SourceConfig
from rayddl.data.distilled import DistilledSet
from rayddl.data.sources import picking
from rayddl.errors import ArtifactError
from rayddl.methods.training import softlabels
from rayddl.methods.training.hard import Protocol
from rayddl.methods.training.optimisers import SGD_LR
from rayddl.methods.training.settings import HARD_BATCH, HARD_EPOCHS
from rayddl.methods.training.soft import OWN, SoftProtocol, published_lr
from rayddl.methods.training.soft_settings import recipe
from rayddl.methods.training.softlabels import Index, StoredLabels
from rayddl.nets.config import NetConfig
from rayddl.nets.cost import eager_seconds, faster_together, forward_flops, worth_compiling
from rayddl.stages.context import Progress
from rayddl.stages.evaluate import lr_search
from rayddl.stages.evaluate import worker as students
from rayddl.stages.evaluate.settings import EvaluateConfig
from rayddl.stages.evaluate.soft_labels import Teaching
from rayddl.stages.runtime import listings
from rayddl.stages.runtime.backend import Backend, OnRay
from rayddl.stages.runtime.slots import Work
from rayddl.stages.runtime.sources import SharedSource, tensor
from rayddl.stages.runtime.workers import Workers
from rayddl.storage import Folder

WHOLE_LR = 0.01
"""Learning rate for the ConvNet on all real images in the literature (hard labels)."""
WHOLE_BATCH = 100
"""Minimum batch size for all real images (soft labels)."""
LONG_SECONDS = 10.0
"""Students expected to run longer than this many seconds report progress; others need no progress actor."""


@dataclass(frozen=True)
class Task:
    """One evaluation: the resolved settings, the set, and the source it is tested on."""

    config: EvaluateConfig
    made: DistilledSet
    source: SharedSource
    teaching: Teaching | None
    """``None``: hard labels."""
    seed: int
    listed: SourceConfig | None = None
    """The source whose train split is read from its files, if ``source`` holds only the held-out split."""
    backend: Backend = field(default_factory=OnRay)
    name: str = "distilled"
    """The set's name in results; students' seeds depend on it."""
    seeds: Sequence[int] = ()
    """The students' seeds; default: as many as the settings ask for, from 0."""

    @property
    def each_seed(self) -> Sequence[int]:
        """The students' seeds."""
        return self.seeds or range(self.config.seeds)

    @property
    def nets(self) -> tuple[NetConfig, ...]:
        """The networks to train."""
        return nets_of(self.config, self.made)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of students' input."""
        return self.source.shape if self.teaching is None else self.teaching.frame.shape


def nets_of(config: EvaluateConfig, made: DistilledSet) -> tuple[NetConfig, ...]:
    """The networks in the settings, else the one that the set was made with. Raises :class:`ArtifactError`."""
    if config.nets is not None:
        return config.nets
    if made.info.get("net") is None:
        raise ArtifactError(
            "the set was made without a network: name the networks to train with nets.",
            code="set-without-network",
        )
    return (NetConfig.model_validate(made.info["net"]),)


def settled(
    config: EvaluateConfig, made: DistilledSet, source: SharedSource, teaching: Teaching | None
) -> EvaluateConfig:
    """``config`` with protocol, epochs, batch and compilation filled in.

    Results are bit-identical only for the same values, so these are stored with the set.
    """
    chosen: dict[str, Any] = {"protocol": "hard" if teaching is None else "soft"}
    if teaching is None:
        chosen["epochs"], chosen["batch"] = config.epochs or HARD_EPOCHS, config.batch or HARD_BATCH
    else:
        usual = recipe(config.recipe, made.ipc, len(made.classes), len(made))
        chosen |= {k: v for k, v in usual.items() if getattr(config, k) is None}
        chosen["zoom"] = source.zoomed if config.zoom is None else config.zoom
    whole = config.model_copy(update=chosen)
    if whole.compile is None:
        compile_ = _worth_compiling(Task(whole, made, source, teaching, 0))
        whole = whole.model_copy(update={"compile": compile_})
    return whole if whole.together is not None else whole.model_copy(update={"together": True})


def _steps(task: Task) -> tuple[int, int]:
    """Images in a batch of the set, and the training steps of one student."""
    config, count = task.config, len(task.made)
    assert config.batch is not None
    assert config.epochs is not None
    batch = min(config.batch, count)
    return batch, (config.epochs + 1) * -(-count // batch)


def _worth_compiling(task: Task) -> bool:
    classes, (batch, steps) = len(task.source.classes), _steps(task)
    if task.config.whole:
        return True
    every = steps * task.config.seeds
    return any(worth_compiling(net, task.shape, classes, steps=every, batch=batch) for net in task.nets)


def _long(task: Task) -> bool:
    """True if one student is expected to take longer than :data:`LONG_SECONDS`."""
    classes, (batch, steps) = len(task.source.classes), _steps(task)
    if task.config.whole:
        return True
    seconds = (eager_seconds(net, task.shape, classes, steps=steps, batch=batch) for net in task.nets)
    return max(seconds) > LONG_SECONDS


def judge(task: Task, out: Folder, progress: Progress) -> list[dict[str, Any]]:
    """The results of all students: training data x networks x seeds, in that order."""
    config, backend = task.config, task.backend
    kinds = training_data_of(task)
    units = len(kinds) * len(task.nets) * len(task.each_seed)
    share = backend.spread(config.resources, units=units)
    shared = _shared(task, out, share.threads)
    trial = largest(task, [data for data, _ in kinds]) if share.per_slot > 1 else None
    need = None if trial is None else (students.tried, backend.put(shared), *trial)
    with backend.opened(share, "students", need=need, note=progress.note) as free:
        return _judged(task, kinds, shared, free, out, progress)


def _judged(
    task: Task, kinds: DataPerSeed, shared: students.Shared, free: Workers, out: Folder, progress: Progress
) -> list[dict[str, Any]]:
    nets, put = task.nets, task.backend.put
    _store_labels(put(shared), kinds[0][0], task, free, progress)
    found = lr_search.found(
        task.config, nets, [data for data, _ in kinds], shared, task.backend, free, progress
    )
    groups = [
        group
        for data, _ in kinds
        for n, net in enumerate(nets)
        for group in _grouped(task, data, net, found.get((data.name, net)), f"student-{data.name}-{n}")
    ]
    plan = [student for group in groups for student in group]
    missing = [group for group in groups if any(not out.has(student.file) for student in group)]
    first = task.each_seed[0]
    sent = {
        (data.name, s): put(per_seed(s)) if s == first or data.drawn else None
        for data, per_seed in kinds
        for s in task.each_seed
    }

    def work(group: tuple[students.Student, ...]) -> Work:
        taught = [sent[s.data, s.seed] or sent[s.data, first] for s in group]
        if len(group) == 1:
            return (students.teach, kept, taught[0], group[0])
        return (students.teach_together, kept, group, *taught)

    before = len(plan) - sum(len(group) for group in missing)
    # Until the first student is done, or reports.
    done, shown = (
        before,
        "compiling, then the first students" if task.config.compile else "the first students",
    )

    def show() -> None:
        # Finished students count fully: a restarted counter has lost their reports.
        progress.update(max(done, before + counter.done() if counter else 0), len(plan), shown)

    counter = task.backend.counter(show) if _long(task) else None
    kept = put(replace(shared, counter=counter))
    show()
    for group, results in free.each(missing, work, students.named, show):
        for student, result in zip(group, results if len(group) > 1 else [results], strict=True):
            done += 1
            shown = (
                f"{student.data} {student.net.label} seed {student.seed}: {100 * result['accuracy']:.1f} %"
            )
            show()
    return [out.read_json(student.file) for student in plan]


def _grouped(
    task: Task, data: students.TrainingData, net: NetConfig, found: float | None, name: str
) -> list[tuple[students.Student, ...]]:
    """The students of a network, one per seed, in groups that are trained together."""
    lr = found or _lr(task, data, net)
    everyone = tuple(students.Student(data.name, net, s, f"{name}-{s}.json", lr) for s in task.each_seed)
    return [everyone] if _trained_together(task, data, net) else [(student,) for student in everyone]


def _trained_together(task: Task, data: students.TrainingData, net: NetConfig) -> bool:
    shown = data.picked if data.picked is not None else data.images
    config, protocol = task.config, data.protocol
    if not config.together or len(task.each_seed) == 1 or shown is None or not isinstance(protocol, Protocol):
        return False
    batch, classes = min(protocol.batch, len(shown)), len(task.source.classes)
    return faster_together(net, task.source.shape, classes, batch=batch, compile_=bool(config.compile))


def _lr(task: Task, data: students.TrainingData, net: NetConfig) -> float | None:
    if isinstance(data.protocol, Protocol):
        return None
    return task.config.lr or (SGD_LR if task.config.optimizer == "sgd" else published_lr(net.name))


def _shared(task: Task, out: Folder, threads: int) -> students.Shared:
    import ray

    config, teaching = task.config, task.teaching
    observer = None if teaching is None else teaching.observer
    return students.Shared(
        task.source,
        ray.put(task.made.space),
        out,
        task.seed,
        config.precision,
        bool(config.compile),
        threads,
        None if teaching is None else teaching.frame,
        None if observer is None else ray.put(observer),
        best=config.report == "best",
    )


def largest(
    task: Task, kinds: Sequence[students.TrainingData]
) -> tuple[students.TrainingData, NetConfig] | None:
    """Training data of one batch, and the most expensive network: a student's memory is measured with them.

    ``None`` if soft labels are not stored yet.
    """
    shown = kinds[0]
    if shown.images is None or shown.stored is not None:
        return None
    batch = max(getattr(data.protocol, "batch", 1) for data in kinds)
    some = torch.arange(batch) % len(shown.images)
    labels = None if shown.labels is None else shown.labels[some]
    protocol = shown.protocol.model_copy(update={"epochs": 1, "batch": batch})
    data = replace(shown, name="tried", images=shown.images[some], labels=labels, protocol=protocol)
    work = [forward_flops(net, task.shape, len(task.source.classes)) for net in task.nets]
    return data, task.nets[work.index(max(work))]


DataPerSeed = list[tuple[students.TrainingData, Callable[[int], students.TrainingData]]]
"""Pairs: training data of the first seed, and a function that returns a seed's training data."""


def training_data_of(task: Task) -> DataPerSeed:
    """The set, then random real images and the whole train split, as far as the settings ask for them."""
    import ray

    config, source, made = task.config, task.source, task.made
    by_set, by_random, by_whole = _protocols(task)
    distilled = _distilled(task, by_set)
    kinds: DataPerSeed = [(distilled, lambda _: distilled)]

    def random(name: str, protocol: Protocol | SoftProtocol) -> None:
        def draw(s: int) -> students.TrainingData:
            draws = seeds.generator(task.seed, "random", s)
            if task.listed is not None:
                images = listings.drawn(task.listed, made.ipc, draws)
                own = torch.arange(len(made.classes)).repeat_interleave(made.ipc)
                return students.TrainingData(name, images, own, None, protocol, drawn=True)
            labels = tensor(ray.get(source.refs[1])).clone()
            picked = picking.per_class(labels, source.classes, made.ipc, draws)
            return students.TrainingData(name, None, None, picked, protocol, drawn=True)

        kinds.append((draw(0), draw))

    def fixed(data: students.TrainingData) -> None:
        kinds.append((data, lambda _: data))

    if config.random:
        random("random", by_random)
    if config.own_labels and isinstance(by_set, SoftProtocol):
        with_own = by_set.model_copy(update={"loss": OWN})
        fixed(replace(distilled, name=f"{task.name}-own", protocol=with_own, stored=None))
    if config.whole or config.ranking:
        fixed(students.TrainingData("whole", None, None, None, by_whole))
    if config.ranking and _labels_available(task):
        fixed(replace(distilled, name="distilled-bare", protocol=_without_augmentation(by_set), stored=None))
        random("random-bare", _without_augmentation(by_random))
    if config.ranking and task.teaching is not None:
        by_labels, whole = _hard_protocols(task)
        fixed(students.TrainingData("distilled-hard", made.images, made.labels, None, by_labels))
        fixed(students.TrainingData("whole-hard", None, None, None, whole))
    return kinds


def _labels_available(task: Task) -> bool:
    """True if labels are available for other images, or other crops, than those stored."""
    return task.teaching is None or task.teaching.observer is not None


def _without_augmentation(protocol: Protocol | SoftProtocol) -> Protocol | SoftProtocol:
    """``protocol`` without augmentation."""
    bare = {"augment": "none"} if isinstance(protocol, Protocol) else {"plain": True}
    return protocol.model_copy(update=bare)


def _distilled(task: Task, protocol: Protocol | SoftProtocol) -> students.TrainingData:
    made, teaching = task.made, task.teaching
    if teaching is None or task.config.ranking:
        _refuse_other_shape(task)
    if teaching is None:
        return students.TrainingData(task.name, made.images, made.labels, None, protocol)
    images = teaching.frame.fitted(made.pixels()).contiguous()
    return students.TrainingData(task.name, images, made.labels, None, protocol, teaching.stored)


def _refuse_other_shape(task: Task) -> None:
    shape = task.made.space.shape
    if shape != task.source.shape:
        without = ", and leave ranking out" if task.config.ranking else ""
        raise ArtifactError(
            f"the set's images are {shape} (channels, height, width) and the source's "
            f"{task.source.shape}: students of hard labels are tested on images of one size. Set source.size, "
            f"or use protocol: soft{without}.",
            code="set-of-another-size",
        )


def _hard_protocols(task: Task) -> tuple[Protocol, Protocol]:
    """Hard-label protocols for the set and the whole data; next to soft labels, rate and batch are the default ones."""
    config, own = task.config, task.made.lr_student
    if task.teaching is None:
        hard = Protocol.of(config, lr=config.lr or own)
    else:
        hard = Protocol.of(config, lr=own, batch=HARD_BATCH)
    return hard, hard.model_copy(update={"epochs": config.whole_epochs, "lr": WHOLE_LR})


def _protocols(task: Task) -> Sequence[Protocol | SoftProtocol]:
    """The protocols for the set, for random images, and for the whole train split."""
    config = task.config
    if task.teaching is None:
        hard, whole = _hard_protocols(task)
        return hard, hard, whole
    stored = task.teaching.stored
    labels = StoredLabels(stored) if stored is not None and softlabels.has_labels(stored) else None
    soft = soft_protocol(config, task.made, labels)
    real = soft.model_copy(update={"factor": 1})
    more = {"epochs": config.whole_epochs, "batch": max(config.batch or 1, WHOLE_BATCH)}
    return soft, real, real.model_copy(update=more)


def soft_protocol(config: EvaluateConfig, made: DistilledSet, stored: StoredLabels | None) -> SoftProtocol:
    """The soft-label protocol for the set; with ``stored`` labels that of their crops and batches."""
    soft = SoftProtocol.of(config, factor=int(made.info.get("factor", 1)))
    if stored is None:
        return soft
    own = {name: getattr(soft, name) for name in ("epochs", *softlabels.OF_STUDENTS - softlabels.OF_CROPS)}
    return stored.index.protocol.model_copy(update=own)


def _store_labels(
    shared: Any, data: students.TrainingData, task: Task, free: Workers, progress: Progress
) -> None:
    """Compute the missing files of stored soft labels. Raises :class:`ArtifactError` for labels of other images."""
    if data.stored is None:
        return
    images, protocol = data.images, data.protocol
    assert images is not None
    if not softlabels.has_labels(data.stored):
        assert isinstance(protocol, SoftProtocol)
        assert task.teaching is not None
        index = Index.of(images, task.source.classes, task.teaching.frame, protocol, task.config.label_top)
        missing = [part for part in index.parts() if not data.stored.has(part[0])]
        sent = task.backend.put(data)

        def work(part: Any) -> Work:
            return (students.label, shared, sent, index, part)

        for done, _ in enumerate(free.each(missing, work, lambda part: f"labels {part[0]}"), 1):
            progress.update(0, 1, f"soft labels: {done} of {len(missing)} files")
        softlabels.finish(data.stored, index)
    labels = StoredLabels(data.stored)
    labels.refuse_other_images(images)
    labels.refuse_fewer(protocol.epochs, task.source.classes)
