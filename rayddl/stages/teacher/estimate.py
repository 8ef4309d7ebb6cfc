"""The resource estimate of ``kind: teacher``."""

from __future__ import annotations

from rayddl.stages.estimates import FLOAT, Estimate, Outlook, Stages, made, outline, training, trainings
from rayddl.stages.runtime import sizes
from rayddl.stages.speed import FORWARD
from rayddl.stages.teacher.settings import TeacherConfig


def estimate(config: TeacherConfig, stages: Stages, outlook: Outlook) -> Estimate:
    """One worker holds the whole data and one training step; the file holds the parameters."""
    del stages
    share = sizes.alone(config.resources, outlook.machine.have)
    if config.weights is not None:
        tested = outlook.machine.speed.step(
            config.net, outlook.glance, min(config.check_sample, outlook.glance.test), share, passes=FORWARD
        )
        return made("1 network, trained already", share, outlook, None, None, tested)
    size = outline(config.net, outlook.glance)
    written = None if size is None else size.parameters * FLOAT
    memory = training([config.net], config.batch, share, outlook)
    seconds = trainings(
        config.net, outlook.glance.train, config.batch, config.epochs, share, outlook,
        tests=config.epochs, wanted=config.compile, precision=config.precision, dispatch=1.5,
    )  # fmt: skip
    return made(f"1 network × {config.epochs} epochs", share, outlook, memory, written, seconds)
