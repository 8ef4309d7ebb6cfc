"""Short tasks that reserve no CPU, for callers which may hold all CPUs themselves, such as a trial of a search."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from rayddl.stages.runtime import failures, nodes

POLL_SECONDS = 1.0
LOSSES = 5
"""Times that a task is repeated after its node or worker was lost."""


def results(function: Callable[..., Any], parts: Sequence[tuple[Any, ...]], what: str) -> list[Any]:
    """The results of ``function`` for the arguments in ``parts``, in their order; ``what`` names a task in messages.

    Tasks run on nodes that take work, in proportion to their CPUs: the head of a cluster may have none, and too little
    memory for them. Raises the errors of :func:`failures.explain`.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task: Any = ray.remote(function)

    def begun(place: int) -> Any:
        free = seats(nodes.alive())
        # A soft affinity is passed over where a task needs no CPU.
        node = NodeAffinitySchedulingStrategy(free[place % len(free)].id, soft=False)
        return task.options(num_cpus=0, scheduling_strategy=node, name=what).remote(*parts[place])

    refs = [begun(place) for place in range(len(parts))]
    losses = 0
    found: list[Any] = []
    while len(found) < len(parts):
        place = len(found)
        try:
            found.append(ray.get(refs[place]))
            losses = 0
        except ray.exceptions.RayError as error:
            losses += 1
            gone = isinstance(error, ray.exceptions.TaskUnschedulableError) or failures.lost(error)
            if not gone or losses > LOSSES:
                failures.explain(error, what)
            time.sleep(POLL_SECONDS)  # until the loss is known everywhere
            refs[place] = begun(place)
    return found


def seats(alive: Sequence[nodes.Node]) -> list[nodes.Node]:
    """The nodes that take work, in turns, each once for every CPU; those with GPUs alone if there is no CPU."""
    most = max((int(node.resources.get("CPU", 0)) for node in alive), default=0)
    found = [node for k in range(most) for node in alive if node.resources.get("CPU", 0) > k]
    return found or [node for node in alive if node.works] or list(alive)
