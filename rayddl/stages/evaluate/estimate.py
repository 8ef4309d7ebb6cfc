"""The resource estimate of ``kind: evaluate``."""

from __future__ import annotations

from dataclasses import replace

from rayddl.methods.training.settings import HARD_BATCH, HARD_EPOCHS
from rayddl.methods.training.soft_settings import epoch_bytes, recipe
from rayddl.nets.config import NetConfig
from rayddl.stages.estimates import Estimate, Outlook, Stages, made, net_of, shown, training
from rayddl.stages.evaluate.settings import EvaluateConfig
from rayddl.stages.settings import StageConfig

RESULT = 400
"""Bytes of one student's result."""
SOFT_BATCH = 200
"""The largest batch of the published soft-label protocol."""


def estimate(config: EvaluateConfig, stages: Stages, outlook: Outlook) -> Estimate:
    """A worker holds the whole data in model space and one step of the largest network; a small file per student."""
    of = stages.get(config.set)
    soft = config.soft_for(of)
    nets = list(_nets(config, of, stages))
    kinds = 1 + config.random + (config.whole or config.ranking) + config.ranking * (4 if soft else 2)
    kinds += soft and config.own_labels
    units = kinds * len(nets) * (config.seeds + len(config.lr_grid or ()))
    share = outlook.machine.share(config.resources, units)
    observers = [net_of(stages, teacher) for name in config.observers * soft if (teacher := stages.get(name))]
    batch = config.batch or (SOFT_BATCH if soft else HARD_BATCH)
    ipc = getattr(of, "ipc", None)
    if ipc is not None and not (config.whole or config.ranking):
        batch = min(batch, ipc * outlook.glance.classes)
    memory = training([*nets, *observers], batch, share, outlook)
    usual = recipe(config.recipe, ipc or 1, outlook.glance.classes, batch)["epochs"] if soft else HARD_EPOCHS
    epochs = config.epochs or usual
    work = f"{units} students × {epochs} epochs"
    found = made(work, share, outlook, memory, units * RESULT)
    if config.labels != "stored" or ipc is None:
        return found
    images = ipc * outlook.glance.classes
    labels = epochs * epoch_bytes(images, outlook.glance.classes, getattr(of, "factor", 1), config.label_top)
    note = f"stored labels ~{shown(labels)}, the images ~{shown(images * outlook.glance.numbers)}"
    return replace(found, written=units * RESULT + labels, notes=(*found.notes, note))


def _nets(config: EvaluateConfig, of: StageConfig | None, stages: Stages) -> tuple[NetConfig, ...]:
    return config.nets or (net_of(stages, of),)
