"""Several Ray nodes on this machine, in a process of their own: `python nodes.py`.

Prints the address, then does what standard input says, a word a line, and answers `ok`: `add` and `remove` a node of
one CPU (the oldest one goes, without a farewell). Ends with its input.
"""

from __future__ import annotations

import os
import socket
import sys
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

STORE_BYTES = 90 * 2**20
PORTS = ("metrics_agent_port", "metrics_export_port", "runtime_env_agent_port", "dashboard_agent_listen_port")


def patiently(start: Callable[[], Any], times: int = 5) -> Any:
    """What ``start`` starts; Ray gives a node half a minute, which a busy machine may need more of."""
    try:
        return start()
    except Exception as error:  # Ray raises no narrower class for a node that comes up too late
        if times == 1 or "timed out" not in str(error):
            raise
        return patiently(start, times - 1)


def node(cpus: int) -> dict[str, int]:
    """What a node has; its agents' ports are given, or the raylet would wait for the agents to tell theirs."""
    with ExitStack() as held:
        free = [held.enter_context(socket.socket()) for _ in PORTS]
        for one in free:
            one.bind(("", 0))
        ports = {name: one.getsockname()[1] for name, one in zip(PORTS, free, strict=True)}
    return {"num_cpus": cpus, "object_store_memory": STORE_BYTES, **ports}


def main() -> None:
    """Serve until the input ends."""
    # Raylets print what they please; the answers have the output for themselves.
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    from ray.cluster_utils import Cluster

    # The head takes no work: what the driver has put into the object store outlives every other node.
    cluster = patiently(
        lambda: Cluster(initialize_head=True, head_node_args={**node(0), "include_dashboard": False})
    )
    nodes = deque([patiently(lambda: cluster.add_node(**node(1)))])
    print(cluster.address, file=answer, flush=True)
    for line in sys.stdin:
        word = line.strip()
        if word == "add":
            nodes.append(patiently(lambda: cluster.add_node(**node(1))))
        elif word == "remove":
            cluster.remove_node(nodes.popleft(), allow_graceful=False)
        print("ok", file=answer, flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()
