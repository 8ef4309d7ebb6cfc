"""The resource estimate of ``kind: evaluate``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rayddl.methods.training.settings import HARD_BATCH, HARD_EPOCHS, published_batch
from rayddl.methods.training.soft_settings import epoch_bytes, recipe
from rayddl.nets import work
from rayddl.nets.config import NetConfig
from rayddl.stages.estimates import (
    Estimate,
    Outlook,
    Stages,
    made,
    net_of,
    of_set,
    shown,
    training,
    trainings,
)
from rayddl.stages.evaluate.settings import EvaluateConfig
from rayddl.stages.runtime.sizes import Share
from rayddl.stages.settings import StageConfig

RESULT = 400
"""Bytes of one student's result."""
SOFT_BATCH = 200
"""The largest batch of the published soft-label protocol."""
WHOLE_BATCH = 100
"""The smallest batch for the whole train split."""
HARD_DISPATCH, SOFT_DISPATCH = 1.5, 1.8
"""Dispatch of a student's step with augmentation, and with soft labels, crops and CutMix, relative to a gradient's."""
TOGETHER = 0.5
"""Time of small students trained together, relative to one after the other."""


def estimate(config: EvaluateConfig, stages: Stages, outlook: Outlook) -> Estimate:
    """A worker holds the whole data and one step of the largest network; a small file per student."""
    of = stages.get(config.set)
    soft = config.soft_for(of)
    nets = list(_nets(config, of, stages))
    kinds = 1 + config.random + (config.whole or config.ranking) + config.ranking * (4 if soft else 2)
    kinds += soft and config.own_labels * (1 + config.random)
    units = kinds * len(nets) * (config.seeds + len(config.lr_grid or ()))
    share = outlook.machine.share(config.resources, units)
    observers = _labelling(config, stages, soft)
    batch = config.batch or (SOFT_BATCH if soft else HARD_BATCH)
    ipc = of_set(stages, of, "ipc")
    if ipc is not None and not (config.whole or config.ranking):
        batch = min(batch, ipc * outlook.source_summary.classes)
    memory = training([*nets, *observers], batch, share, outlook)
    epochs = _epochs(config, soft, ipc or 1, batch, outlook)
    text = f"{units} students × {epochs} epochs"
    seconds = _seconds(config, nets, observers, soft, kinds, epochs, ipc or 1, share, outlook)
    found = made(text, share, outlook, memory, units * RESULT, seconds)
    if config.labels != "stored" or ipc is None:
        return found
    images = ipc * outlook.source_summary.classes
    labels = epochs * epoch_bytes(
        images, outlook.source_summary.classes, of_set(stages, of, "factor") or 1, config.label_top
    )
    note = f"stored labels ~{shown(labels)}, the images ~{shown(images * outlook.source_summary.numbers)}"
    return replace(found, written=units * RESULT + labels, notes=(*found.notes, note))


def student_seconds(config: EvaluateConfig, stages: Stages, share: Share, outlook: Outlook) -> float | None:
    """Seconds of one student of the set, trained by a worker of ``share`` that trains no others meanwhile."""
    of = stages.get(config.set)
    ipc = of_set(stages, of, "ipc") or 1
    soft, net = config.soft_for(of), list(_nets(config, of, stages))[:1]
    alone, one = (
        replace(share, at_once=1),
        config.model_copy(update={"seeds": 1, "lr_grid": None, "together": False}),
    )
    epochs = _epochs(config, soft, ipc, config.batch or SOFT_BATCH, outlook)
    return _seconds(one, net, _labelling(config, stages, soft), soft, 1, epochs, ipc, alone, outlook)


def _epochs(config: EvaluateConfig, soft: bool, ipc: int, batch: int, outlook: Outlook) -> int:
    """The epochs of a student of the set."""
    if config.epochs or not soft:
        return config.epochs or HARD_EPOCHS
    return int(recipe(config.recipe, ipc, outlook.source_summary.classes, batch)["epochs"])


def _labelling(config: EvaluateConfig, stages: Stages, soft: bool) -> list[NetConfig]:
    return [net_of(stages, teacher) for name in config.observers * soft if (teacher := stages.get(name))]


def _seconds(
    config: EvaluateConfig,
    nets: Sequence[NetConfig],
    observers: Sequence[NetConfig],
    soft: bool,
    kinds: int,
    epochs: int,
    ipc: int,
    share: Share,
    outlook: Outlook,
) -> float | None:
    """Seconds of all students, each network's in turn; those of the whole train split are counted with its images."""
    source_summary, students = outlook.source_summary, config.seeds + len(config.lr_grid or ())
    images = ipc * source_summary.classes
    wholes = (config.whole or config.ranking) + (config.ranking and soft)
    batch = config.batch or (published_batch(ipc, source_summary.classes, images) if soft else HARD_BATCH)
    total = 0.0
    for net in nets:
        labelled = sum(_forward(observer, outlook) for observer in observers) / (
            3 * _forward(net, outlook) or 1
        )
        few = trainings(
            net, images, batch, epochs, share, outlook, units=(kinds - wholes) * students,
            wanted=config.compile, precision=config.precision, dearer=1 + labelled,
            dispatch=SOFT_DISPATCH if soft else HARD_DISPATCH,
        )  # fmt: skip
        many = trainings(
            net, source_summary.train, max(batch, WHOLE_BATCH), config.whole_epochs, share, outlook,
            units=max(1, wholes * students), wanted=config.compile, precision=config.precision, dearer=1 + labelled,
        )  # fmt: skip
        if few is None or many is None:
            return None
        together = not soft and config.together is not False and _small(net, min(batch, images), outlook)
        total += few * (TOGETHER if together else 1.0) + (many if wholes else 0.0)
    return total


def _forward(net: NetConfig, outlook: Outlook) -> float:
    return float(work.operations(net, outlook.source_summary.shape, outlook.source_summary.classes) or 0)


def _small(net: NetConfig, batch: int, outlook: Outlook) -> bool:
    return net.norm != "batch" and _forward(net, outlook) * batch <= work.TOGETHER_FLOPS


def _nets(config: EvaluateConfig, of: StageConfig | None, stages: Stages) -> tuple[NetConfig, ...]:
    return config.nets or (net_of(stages, of),)
