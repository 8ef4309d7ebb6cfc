"""A driver on the cluster of :mod:`tests.cluster.nodes`: `python idle.py ADDRESS FILE`.

Six workers on logical GPUs of one node do a unit each and are idle; then a further unit begins, which ends once there
is FILE. Prints the results of tasks without CPUs and how many ran on the head, `idle`, `begun`, and the unit's result.
"""

from __future__ import annotations

import os
import sys
import time

import ray

from rayddl.stages.runtime import nodes, unreserved, workers
from rayddl.stages.runtime.sizes import Share

GPUS = 6


def unit(number: int, file: str) -> int:
    """Ends at once for the first units, and for the last one when its node is lost."""
    time.sleep(1.0)
    while number == GPUS and not os.path.exists(file):
        time.sleep(0.1)
    return number


def main() -> None:
    """Print what is awaited."""
    ray.init(address=sys.argv[1], log_to_driver=False)
    head = nodes.alive()[0].id
    ran = unreserved.results(
        lambda number: (number, ray.get_runtime_context().get_node_id()), [(k,) for k in range(4)], "task"
    )
    print([number for number, _ in ran], sum(node == head for _, node in ran), flush=True)
    with workers.opened(Share(0.1, 1.0, None, GPUS, gpus=GPUS), "unit") as free:
        said: list[str] = []

        def idle() -> None:
            if not said:
                said.append("begun")
                print(*said, flush=True)

        first = list(free.each(range(GPUS), lambda number: (unit, number, sys.argv[2]), str))
        print("idle", len(first), flush=True)
        print(list(free.each([GPUS], lambda number: (unit, number, sys.argv[2]), str, idle)), flush=True)


if __name__ == "__main__":
    main()
