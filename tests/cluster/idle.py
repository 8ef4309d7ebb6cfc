"""A driver on the cluster of :mod:`tests.cluster.nodes`: `python idle.py ADDRESS`.

Six workers on logical GPUs of one node do a unit each and are idle; then a further unit begins. Prints the nodes on
which tasks without CPUs ran, `idle`, `begun`, and the unit's result.
"""

from __future__ import annotations

import sys
import time

import ray

from rayddl.stages.runtime import nodes, unreserved, workers
from rayddl.stages.runtime.sizes import Share

GPUS = 6


def unit(number: int) -> int:
    """Ends at once for the first units, so late that its node can be lost for the last one."""
    time.sleep(1.0 if number < GPUS else 8.0)
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

        first = list(free.each(range(GPUS), lambda number: (unit, number), str))
        print("idle", len(first), flush=True)
        print(list(free.each([GPUS], lambda number: (unit, number), str, idle)), flush=True)


if __name__ == "__main__":
    main()
