"""The resource estimate of ``kind: tune``."""

from __future__ import annotations

from rayddl.stages.estimates import Estimate, Outlook, Stages, in_turn, made
from rayddl.stages.runtime import sizes
from rayddl.stages.tune.plan import trials_of
from rayddl.stages.tune.settings import TuneConfig, tunable_of

STOPPED = 0.5
"""The share of their length that trials run for on average, if ``asha`` stops weak ones early."""
AFTERWARDS = 2
"""Trials of which the time is about that of running the template's own settings to the end, and of the students of
fresh seeds."""


def estimate(config: TuneConfig, stages: Stages, outlook: Outlook) -> Estimate:
    """The estimate of one trial with the template's own settings, with several trials at once."""
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
        seconds = in_turn(samples * shorter + AFTERWARDS, share, trial.seconds)
    return made(work, share, outlook, memory, None, seconds)
