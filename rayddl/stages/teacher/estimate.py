"""The resource estimate of ``kind: teacher``."""

from __future__ import annotations

from rayddl.stages.estimates import FLOAT, Estimate, Outlook, Stages, made, outline, training, trainings
from rayddl.stages.speed import FORWARD
from rayddl.stages.teacher.settings import TeacherConfig


def estimate(config: TeacherConfig, stages: Stages, outlook: Outlook) -> Estimate:
    """A worker holds the whole data in model space and its part of one training step; the file holds the parameters."""
    del stages
    share = config.asks(outlook.machine.have)[0].share
    if config.weights is not None:
        tested = outlook.machine.speed.step(
            config.net,
            outlook.source_summary,
            min(config.check_sample, outlook.source_summary.test),
            share,
            passes=FORWARD,
        )
        return made("1 network, trained already", share, outlook, None, None, tested)
    size = outline(config.net, outlook.source_summary)
    written = None if size is None else size.parameters * FLOAT
    # Each worker of a team has its part of every batch.
    images, batch = (-(-count // config.workers) for count in (outlook.source_summary.train, config.batch))
    memory = training([config.net], batch, share, outlook)
    seconds = trainings(
        config.net, images, batch, config.epochs, share, outlook,
        tests=config.epochs, wanted=config.compile, precision=config.precision, dispatch=1.5,
    )  # fmt: skip
    text = f"1 network × {config.epochs} epochs" + (
        f", {config.workers} workers" if config.workers > 1 else ""
    )
    return made(text, share, outlook, memory, written, seconds)
