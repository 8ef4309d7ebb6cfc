"""The students of an evaluation, distributed to workers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import torch

from rayddl.methods.training import softlabels
from rayddl.methods.training.hard import Protocol
from rayddl.methods.training.optimisers import SGD_LR
from rayddl.methods.training.soft import SoftProtocol, published_lr
from rayddl.methods.training.softlabels import Index, StoredLabels
from rayddl.nets.config import NetConfig
from rayddl.nets.cost import eager_seconds, faster_together, forward_flops
from rayddl.stages.context import Progress
from rayddl.stages.evaluate import lr_search
from rayddl.stages.evaluate import worker as students
from rayddl.stages.evaluate.labelling import label
from rayddl.stages.evaluate.protocol import DataPerSeed, EvaluateTask, steps_of, training_data_of
from rayddl.stages.evaluate.student_data import Shared, Student, TrainingData
from rayddl.stages.runtime import shards
from rayddl.stages.runtime.shards import Shards
from rayddl.stages.runtime.slots import Work
from rayddl.stages.runtime.workers import Workers
from rayddl.storage import Folder

Group: TypeAlias = tuple[Student, ...]
"""Students that one unit of work trains."""
LONG_SECONDS = 10.0
"""Students expected to run longer than this many seconds report progress; others need no progress actor."""


def judge(task: EvaluateTask, out: Folder, progress: Progress) -> list[dict[str, Any]]:
    """The results of all students: training data x networks x seeds, in that order."""
    config, backend = task.config, task.backend
    kinds = training_data_of(task)
    units = len(kinds) * len(task.nets) * len(task.each_seed)
    share = backend.spread(config.resources, units=units)
    team = backend.sized(config.team) if config.workers > 1 else None
    if team is not None:
        # Single workers go first, within the room of the team.
        share = replace(
            share, **{name: min(getattr(share, name), team.at_once) for name in ("at_once", "gpus")}
        )
    shared = _shared(task, out, share.threads)
    trial = largest(task, [data for data, _ in kinds]) if share.per_slot > 1 else None
    images, kinds = kinds[0][0].images, _parted(kinds)
    need = None if trial is None else (students.tried, backend.put(shared), *trial)
    with backend.opened(share, "students", need=need, note=progress.note) as free:
        groups = _prepared(task, kinds, images, shared, free, progress)
        soft = {data.name for data, _ in kinds if isinstance(data.protocol, SoftProtocol)}
        by_team = [group for group in groups if team is not None and group[0].data in soft]
        _train(task, kinds, groups, [g for g in groups if g not in by_team], shared, free, out, progress)
    # One unit: a team takes longer to start than many students to train.
    unit = tuple(s for group in by_team for s in group if not out.has(s.file))
    if team is not None and unit:
        shared = replace(shared, threads=team.threads)
        with backend.opened(team, "students", note=progress.note) as free:
            _train(task, kinds, groups, [unit], shared, free, out, progress)
    return [out.read_json(student.file) for group in groups for student in group]


def _prepared(
    task: EvaluateTask, kinds: DataPerSeed, images: Any, shared: Shared, free: Workers, progress: Progress
) -> list[Group]:
    """All students, after the labels of the set's ``images`` are stored and the learning rates are found that they
    need.
    """
    nets = task.nets
    _store_labels(task.backend.put(shared), kinds[0][0], images, task, free, progress)
    found = lr_search.found(
        task.config, nets, [data for data, _ in kinds], shared, task.backend, free, progress
    )
    return [
        group
        for data, _ in kinds
        for n, net in enumerate(nets)
        for group in _grouped(task, data, n, found.get((data.name, net)))
    ]


def _train(
    task: EvaluateTask,
    kinds: DataPerSeed,
    everyone: Sequence[Group],
    groups: Sequence[Group],
    shared: Shared,
    free: Workers,
    out: Folder,
    progress: Progress,
) -> None:
    """Train the students of ``groups`` that have no result; ``everyone`` are the evaluation's, for its progress."""
    put = task.backend.put
    plan = [student for group in everyone for student in group]
    missing = [group for group in groups if any(not out.has(student.file) for student in group)]
    if not missing:
        return
    coming = {student.file: student.data for group in missing for student in group}
    first = task.each_seed[0]
    sent = {
        (data.name, s): put(per_seed(s)) if s == first or data.drawn else None
        for data, per_seed in kinds
        for s in task.each_seed
        if data.name in coming.values()
    }
    soft = {data.name for data, _ in kinds if isinstance(data.protocol, SoftProtocol)}

    def work(group: Group) -> Work:
        data = [sent[s.data, s.seed] or sent[s.data, first] for s in group]
        if len(group) == 1:
            return (students.train_one, kept, data[0], group[0])
        if group[0].data in soft:
            return (students.train_in_turn, kept, group, data)
        return (students.train_group, kept, group, *data)

    before = sum(student.file not in coming and out.has(student.file) for student in plan)
    # Until the first student is done, or reports.
    done, shown = (
        before,
        "compiling, then the first students" if task.config.compile else "the first students",
    )

    def show() -> None:
        # Finished students count fully: a restarted counter has lost their reports.
        progress.update(max(done, before + counter.done() if counter else 0), len(plan), shown)

    counter = task.backend.counter(show) if _long(task) or task.config.workers > 1 else None
    kept = put(replace(shared, counter=counter))
    show()
    for group, _ in free.each(missing, work, students.named, show):
        for student in group:
            done += 1
            accuracy = out.read_json(student.file)["accuracy"]
            shown = f"{student.data} {student.net.label} seed {student.seed}: {100 * accuracy:.1f} %"
            show()


def _parted(kinds: DataPerSeed) -> DataPerSeed:
    """``kinds`` with large images of soft labels in the object store, once for all training data that has them."""
    made: list[tuple[torch.Tensor, torch.Tensor | Shards]] = []

    def parted(images: torch.Tensor) -> torch.Tensor | Shards:
        if not any(images is known for known, _ in made):
            made.append((images, shards.parted(images)))
        return next(found for known, found in made if images is known)

    def sent(data: TrainingData) -> TrainingData:
        if not (isinstance(data.images, torch.Tensor) and isinstance(data.protocol, SoftProtocol)):
            return data
        return replace(data, images=parted(data.images))

    def each(per_seed: Callable[[int], TrainingData]) -> Callable[[int], TrainingData]:
        return lambda seed: sent(per_seed(seed))

    return [(sent(data), each(per_seed)) for data, per_seed in kinds]


def result_file(data: str, place: int, seed: int) -> str:
    """The name of the result file of a student of the network at ``place`` among the evaluation's networks."""
    return f"student-{data}-{place}-{seed}.json"


def _grouped(task: EvaluateTask, data: TrainingData, place: int, found: float | None) -> list[Group]:
    """The students of a network, one per seed, in groups that are trained together."""
    net = task.nets[place]
    lr = found or _lr(task, data, net)
    everyone = tuple(Student(data.name, net, s, result_file(data.name, place, s), lr) for s in task.each_seed)
    return [everyone] if _trained_together(task, data, net) else [(student,) for student in everyone]


def _trained_together(task: EvaluateTask, data: TrainingData, net: NetConfig) -> bool:
    return len(task.each_seed) > 1 and faster_in_one(task, data, net)


def faster_in_one(task: EvaluateTask, data: TrainingData, net: NetConfig) -> bool:
    """True if several students of ``net`` and ``data`` would be trained together."""
    config, protocol, classes = task.config, data.protocol, len(task.source.classes)
    count = data.count
    if not config.together or count is None or not isinstance(protocol, Protocol):
        return False
    batch = min(protocol.batch, count)
    return faster_together(net, task.source.shape, classes, batch=batch, compile_=bool(config.compile))


def _lr(task: EvaluateTask, data: TrainingData, net: NetConfig) -> float | None:
    if isinstance(data.protocol, Protocol):
        return None
    return task.config.lr or (SGD_LR if task.config.optimizer == "sgd" else published_lr(net.name))


def _long(task: EvaluateTask) -> bool:
    """True if one student is expected to take longer than :data:`LONG_SECONDS`."""
    classes, (batch, steps) = len(task.source.classes), steps_of(task)
    if task.config.whole:
        return True
    seconds = (eager_seconds(net, task.shape, classes, steps=steps, batch=batch) for net in task.nets)
    return max(seconds) > LONG_SECONDS


def _shared(task: EvaluateTask, out: Folder, threads: int) -> Shared:
    import ray

    config, label_source = task.config, task.label_source
    observer = None if label_source is None else label_source.observer
    return Shared(
        task.source,
        ray.put(task.made.space),
        out,
        task.seed,
        config.precision,
        bool(config.compile),
        threads,
        None if label_source is None else label_source.input_spec,
        None if observer is None else ray.put(observer),
        best=config.report == "best",
    )


def largest(task: EvaluateTask, kinds: Sequence[TrainingData]) -> tuple[TrainingData, NetConfig] | None:
    """Training data of one batch, and the most expensive network: a student's memory is measured with them.

    ``None`` if soft labels are not stored yet.
    """
    shown = kinds[0]
    if not isinstance(shown.images, torch.Tensor) or shown.stored is not None:
        return None
    batch = max(getattr(data.protocol, "batch", 1) for data in kinds)
    some = torch.arange(batch) % len(shown.images)
    labels = None if shown.labels is None else shown.labels[some]
    protocol = shown.protocol.model_copy(update={"epochs": 1, "batch": batch})
    data = replace(shown, name="tried", images=shown.images[some], labels=labels, protocol=protocol)
    work = [forward_flops(net, task.shape, len(task.source.classes)) for net in task.nets]
    return data, task.nets[work.index(max(work))]


def _store_labels(
    shared: Any,
    data: TrainingData,
    images: torch.Tensor,
    task: EvaluateTask,
    free: Workers,
    progress: Progress,
) -> None:
    """Compute the missing files of stored soft labels. Raises :class:`ArtifactError` for labels of other images."""
    if data.stored is None:
        return
    protocol = data.protocol
    if not softlabels.has_labels(data.stored):
        assert isinstance(protocol, SoftProtocol)
        assert task.label_source is not None
        index = Index.of(
            images, task.source.classes, task.label_source.input_spec, protocol, task.config.label_top
        )
        missing = [part for part in index.parts() if not data.stored.has(part[0])]
        sent = task.backend.put(data)

        def work(part: Any) -> Work:
            return (label, shared, sent, index, part)

        for done, _ in enumerate(free.each(missing, work, lambda part: f"labels {part[0]}"), 1):
            progress.update(0, 1, f"soft labels: {done} of {len(missing)} files")
        softlabels.finish(data.stored, index)
    labels = StoredLabels(data.stored)
    labels.refuse_other_images(images)
    labels.refuse_fewer(protocol.epochs, task.source.classes)
