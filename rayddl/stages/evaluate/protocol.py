"""Training data and protocols of students."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rayddl import seeds
from rayddl.data.config import SourceConfig
from rayddl.data.distilled import DistilledSet
from rayddl.data.sources import picking
from rayddl.errors import ArtifactError
from rayddl.methods.training import softlabels
from rayddl.methods.training.hard import Protocol
from rayddl.methods.training.settings import HARD_BATCH, HARD_EPOCHS
from rayddl.methods.training.soft import OWN, SoftProtocol
from rayddl.methods.training.soft_settings import recipe
from rayddl.methods.training.softlabels import StoredLabels
from rayddl.nets.config import NetConfig
from rayddl.nets.cost import worth_compiling
from rayddl.stages.evaluate.settings import EvaluateConfig
from rayddl.stages.evaluate.soft_labels import LabelSource
from rayddl.stages.evaluate.student_data import TrainingData
from rayddl.stages.revisions import zooms
from rayddl.stages.runtime import listings
from rayddl.stages.runtime.sources import SharedSource, train_labels
from rayddl.stages.runtime.workers import Backend, OnRay

WHOLE_LR = 0.01
"""Learning rate for the ConvNet on all real images in the literature (hard labels)."""
WHOLE_BATCH = 100
"""Minimum batch size for all real images (soft labels)."""


@dataclass(frozen=True)
class EvaluateTask:
    """One evaluation: the resolved settings, the set, and the source it is tested on."""

    config: EvaluateConfig
    made: DistilledSet
    source: SharedSource
    label_source: LabelSource | None
    """``None``: hard labels."""
    seed: int
    listed: SourceConfig | None = None
    """The source whose random images are read from its files, because ``source`` does not have them in memory."""
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
        return self.source.shape if self.label_source is None else self.label_source.input_spec.shape


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
    config: EvaluateConfig, made: DistilledSet, source: SharedSource, label_source: LabelSource | None
) -> EvaluateConfig:
    """``config`` with protocol, epochs, batch and compilation filled in.

    Results are bit-identical only for the same values, so these are stored with the set.
    """
    chosen: dict[str, Any] = {"protocol": "hard" if label_source is None else "soft"}
    if label_source is None:
        chosen["epochs"], chosen["batch"] = config.epochs or HARD_EPOCHS, config.batch or HARD_BATCH
    else:
        usual = recipe(config.recipe, made.ipc, len(made.classes), len(made))
        chosen |= {k: v for k, v in usual.items() if getattr(config, k) is None}
        chosen["zoom"] = zooms(config.zoom, source)
    whole = config.model_copy(update=chosen)
    if whole.compile is None:
        compile_ = _worth_compiling(EvaluateTask(whole, made, source, label_source, 0))
        whole = whole.model_copy(update={"compile": compile_})
    return whole if whole.together is not None else whole.model_copy(update={"together": True})


def steps_of(task: EvaluateTask) -> tuple[int, int]:
    """Images in a batch of the set, and the training steps of one student."""
    config, count = task.config, len(task.made)
    assert config.batch is not None
    assert config.epochs is not None
    batch = min(config.batch, count)
    return batch, (config.epochs + 1) * -(-count // batch)


def _worth_compiling(task: EvaluateTask) -> bool:
    classes, (batch, steps) = len(task.source.classes), steps_of(task)
    if task.config.whole:
        return True
    every = steps * task.config.seeds
    return any(worth_compiling(net, task.shape, classes, steps=every, batch=batch) for net in task.nets)


DataPerSeed = list[tuple[TrainingData, Callable[[int], TrainingData]]]
"""Pairs: training data of the first seed, and a function that returns a seed's training data."""


def training_data_of(task: EvaluateTask) -> DataPerSeed:
    """The set, then random real images and the whole train split, as far as the settings ask for them."""
    import ray

    config, source, made = task.config, task.source, task.made
    by_set, by_random, by_whole = _protocols(task)
    distilled = _distilled(task, by_set)
    kinds: DataPerSeed = [(distilled, lambda _: distilled)]

    listed = None if task.listed is None or not config.random else ray.put(listings.listing_of(task.listed))

    def random(name: str, protocol: Protocol | SoftProtocol) -> None:
        def draw(s: int) -> TrainingData:
            if task.listed is not None:
                channels = made.space.shape[0]
                found = listings.Draw(listed, task.listed, made.counts, channels, task.seed, s)
                if task.label_source or made.space.elementwise:
                    return TrainingData(name, found, None, None, protocol, drawn=True)
                # Other processes have other numbers of threads, which may change the last bits of whitened images.
                images, own = found.read()
                return TrainingData(name, made.space.encode(images), own, None, protocol, drawn=True)
            draws = seeds.generator(task.seed, "random", s)
            labels = train_labels(source).clone()
            picked = picking.per_class(labels, source.classes, made.counts, draws)
            return TrainingData(name, None, None, picked, protocol, drawn=True)

        kinds.append((draw(0), draw))

    def fixed(data: TrainingData) -> None:
        kinds.append((data, lambda _: data))

    if config.random:
        random("random", by_random)
    if config.own_labels and isinstance(by_set, SoftProtocol):
        fixed(replace(distilled, name=f"{task.name}-own", protocol=_with_own_labels(by_set), stored=None))
        if config.random:
            random("random-own", _with_own_labels(by_random))
    if config.whole or config.ranking:
        fixed(TrainingData("whole", None, None, None, by_whole))
    if config.ranking and _labels_available(task):
        fixed(replace(distilled, name="distilled-bare", protocol=_without_augmentation(by_set), stored=None))
        random("random-bare", _without_augmentation(by_random))
    if config.ranking and task.label_source is not None:
        by_labels, whole = _hard_protocols(task)
        fixed(TrainingData("distilled-hard", made.images, made.labels, None, by_labels))
        fixed(TrainingData("whole-hard", None, None, None, whole))
    return kinds


def _labels_available(task: EvaluateTask) -> bool:
    """True if labels are available for other images, or other crops, than those stored."""
    return task.label_source is None or task.label_source.observer is not None


def _with_own_labels(protocol: Protocol | SoftProtocol) -> Protocol | SoftProtocol:
    """``protocol`` with the images' own labels in place of the observer's."""
    return protocol.model_copy(update={"loss": OWN})


def _without_augmentation(protocol: Protocol | SoftProtocol) -> Protocol | SoftProtocol:
    """``protocol`` without augmentation."""
    bare = {"augment": "none"} if isinstance(protocol, Protocol) else {"plain": True}
    return protocol.model_copy(update=bare)


def _distilled(task: EvaluateTask, protocol: Protocol | SoftProtocol) -> TrainingData:
    made, label_source = task.made, task.label_source
    if label_source is None or task.config.ranking:
        _refuse_other_shape(task)
    if label_source is None:
        return TrainingData(task.name, made.images, made.labels, None, protocol)
    images = label_source.input_spec.fitted(made.pixels()).contiguous()
    return TrainingData(task.name, images, made.labels, None, protocol, label_source.stored)


def _refuse_other_shape(task: EvaluateTask) -> None:
    shape = task.made.space.shape
    if shape != task.source.shape:
        without = ", and leave ranking out" if task.config.ranking else ""
        raise ArtifactError(
            f"the set's images are {shape} (channels, height, width) and the source's "
            f"{task.source.shape}: students of hard labels are tested on images of one size. Set source.size, "
            f"or use protocol: soft{without}.",
            code="set-of-another-size",
        )


def _hard_protocols(task: EvaluateTask) -> tuple[Protocol, Protocol]:
    """Hard-label protocols for the set and the whole data; next to soft labels, rate and batch are the default ones."""
    config, own = task.config, task.made.lr_student
    if task.label_source is None:
        hard = Protocol.of(config, lr=config.lr or own)
    else:
        hard = Protocol.of(config, lr=own, batch=HARD_BATCH)
    return hard, hard.model_copy(update={"epochs": config.whole_epochs, "lr": WHOLE_LR})


def _protocols(task: EvaluateTask) -> Sequence[Protocol | SoftProtocol]:
    """The protocols for the set, for random images, and for the whole train split."""
    config = task.config
    if task.label_source is None:
        hard, whole = _hard_protocols(task)
        return hard, hard, whole
    stored = task.label_source.stored
    labels = StoredLabels(stored) if stored is not None and softlabels.has_labels(stored) else None
    soft = soft_protocol(config, task.made, labels)
    # Real images are one patch each, cropped by as much as the set's.
    crop_min = 1 / soft.factor if soft.crop_min is None else soft.crop_min
    real = soft.model_copy(update={"factor": 1, "crop_min": crop_min})
    more = {"epochs": config.whole_epochs, "batch": max(config.batch or 1, WHOLE_BATCH)}
    return soft, real, real.model_copy(update=more)


def soft_protocol(config: EvaluateConfig, made: DistilledSet, stored: StoredLabels | None) -> SoftProtocol:
    """The soft-label protocol for the set; with ``stored`` labels that of their crops and batches."""
    soft = SoftProtocol.of(config, factor=int(made.info.get("factor", 1)))
    if stored is None:
        return soft
    own = {name: getattr(soft, name) for name in ("epochs", *softlabels.OF_STUDENTS - softlabels.OF_CROPS)}
    return stored.index.protocol.model_copy(update=own)
