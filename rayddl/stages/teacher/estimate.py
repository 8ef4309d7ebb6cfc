"""The resource estimate of ``kind: teacher``."""

from __future__ import annotations

from rayddl.stages.estimates import FLOAT, Estimate, Outlook, Stages, made, outline, training
from rayddl.stages.runtime import sizes
from rayddl.stages.teacher.settings import TeacherConfig


def estimate(config: TeacherConfig, stages: Stages, outlook: Outlook) -> Estimate:
    """One worker holds the whole data in model space and one training step; the file holds the parameters."""
    del stages
    share = sizes.alone(config.resources, outlook.machine.have)
    if config.weights is not None:
        return made("1 network, trained already", share, outlook, None, None)
    size = outline(config.net, outlook.glance)
    written = None if size is None else size.parameters * FLOAT
    memory = training([config.net], config.batch, share, outlook)
    return made(f"1 network × {config.epochs} epochs", share, outlook, memory, written)
