"""The resource estimate of ``kind: tune``."""

from __future__ import annotations

from rayddl.stages.estimates import Estimate, Outlook, Stages, made
from rayddl.stages.runtime import sizes
from rayddl.stages.tune.settings import SAMPLES, TuneConfig, tunable_of


def estimate(config: TuneConfig, stages: Stages, outlook: Outlook) -> Estimate:
    """The estimate of one trial with the template's own settings, with several trials at once."""
    from rayddl.stages.kinds import known

    samples = config.samples or SAMPLES
    share = sizes.spread(config.resources, outlook.machine.have, units=samples, fill=True)
    template = stages[config.of]
    length = tunable_of(template).length
    if length is not None and config.max_iterations is not None:
        template = template.model_copy(update={length: config.max_iterations})
    trial = known()[template.kind].estimate(template, stages, outlook)
    memory = trial.memory if trial else None
    work = f"{samples} trials" + (f" of {trial.work}" if trial else "")
    return made(work, share, outlook, memory, None)
