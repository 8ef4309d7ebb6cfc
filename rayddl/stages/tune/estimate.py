"""The resource estimate of ``kind: tune``."""

from __future__ import annotations

from dataclasses import replace

from rayddl.stages.estimates import Estimate, Outlook, Stages, in_turn, made
from rayddl.stages.evaluate.estimate import student_seconds
from rayddl.stages.evaluate.settings import EvaluateConfig
from rayddl.stages.runtime import sizes
from rayddl.stages.runtime.sizes import Share
from rayddl.stages.settings import StageConfig
from rayddl.stages.tune.plan import trials_of
from rayddl.stages.tune.settings import TuneConfig, tunable_of

STOPPED = 0.5
"""The share of their length that trials run for on average, if ``asha`` stops weak ones early."""


def estimate(config: TuneConfig, stages: Stages, outlook: Outlook) -> Estimate:
    """The estimate of trials with the template's own settings, several at once.

    After the search, a trial has the template's own settings, and students of fresh seeds compare the best with it.
    """
    from rayddl.stages.kinds import known

    samples = trials_of(config, stages)
    share = sizes.spread(config.resources, outlook.machine.have, units=samples, fill=True)
    template = stages[config.of]
    length = tunable_of(template).length
    if length is not None and config.max_iterations is not None:
        template = template.model_copy(update={length: config.max_iterations})
    trial = known()[template.kind].estimate(template, stages, outlook)
    memory = trial.memory if trial else None
    work = f"{samples} trials" + (f" of {trial.work}" if trial else "")
    seconds = None
    if trial and trial.seconds is not None:
        shorter = STOPPED if config.scheduler == "asha" else 1.0
        student, short = _judged(config, template, stages, share, outlook, trial.seconds)
        seconds = in_turn(samples * shorter + 1, share, trial.seconds + short)
        after = in_turn(2 * config.held_out, share, student)
        seconds = None if seconds is None or after is None else seconds + after
    return replace(made(work, share, outlook, memory, None, seconds), counted=False)


def _judged(
    config: TuneConfig, template: StageConfig, stages: Stages, share: Share, outlook: Outlook, trial: float
) -> tuple[float | None, float]:
    """Seconds of a student of a fresh seed, and of all students in a trial that its own ``trial`` seconds lack."""
    if template.produces != "set":
        return trial, 0.0
    own = template.tunable is not None and template.tunable.length is not None
    asked = config.students
    evaluation = EvaluateConfig(
        kind="evaluate", set=config.of, observer=getattr(template, "teacher", None),
        nets=None if own or asked.net is None else (asked.net,),
        epochs=getattr(template, "evaluate_epochs", None) if own else asked.epochs, random=False, compile=False,
    )  # fmt: skip
    student = student_seconds(evaluation, stages, share, outlook)
    return student, 0.0 if own else asked.seeds * (student or 0.0)
