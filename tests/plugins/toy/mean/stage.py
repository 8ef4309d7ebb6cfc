"""``kind: mean``, as a task for each class."""

import torch

from rayddl.data.config import DSA
from rayddl.data.distilled import LR_STUDENT, DistilledSet
from rayddl.stages.context import Context, Result
from rayddl.stages.runtime.sources import fit_space, publish
from toy.mean.settings import MeanConfig
from toy.mean.worker import MeanTask, mean


def run(config: MeanConfig, context: Context) -> Result:
    """Write the set."""
    context.backend.start()
    source = publish(context.source)
    sent = context.backend.put(MeanTask(config, source))
    labels = range(len(source.classes))
    share = context.backend.spread(config.resources, units=len(labels), gpu=False)
    with context.backend.opened(share, "means") as free:
        found = dict(
            free.each(labels, lambda label: (mean, sent, label), lambda label: f"mean of class {label}")
        )
    info = {
        "method": "mean",
        "net": {"name": "tiny"},
        "source": context.source.model_dump(mode="json"),
        "definition": dict(context.definition),
        "seed": context.seed,
        "protocol": {"name": "hard", "augment": DSA},
    }
    images, space = torch.stack([found[label] for label in labels]), fit_space(source, context.out)
    made = DistilledSet(images, torch.arange(len(labels)), LR_STUDENT, source.classes, space, info)
    made.save(context.out.child("set"))
    return Result(
        {"method": "mean", "images": len(made), "classes": list(source.classes), "shrink": config.shrink}
    )
