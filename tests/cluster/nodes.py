"""Several Ray nodes on this machine, in a process of their own: `python nodes.py NODE …`.

A node is written as Ray's resources, `CPU:1` or `CPU:2,GPU:2`; the head has no CPUs. Its GPUs are logical: nothing is
there, and whoever is given one computes on the CPU if the switch in `rayddl.stages.runtime.devices` is on.

Prints the address, then does what standard input says, a line each, and answers `ok`: `add NODE`, and `remove` (the
oldest one goes, without a farewell) or `remove NODE` (the oldest that was written so). Ends with its input.
"""

from __future__ import annotations

import os
import socket
import sys
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


def node(written: str) -> dict[str, int]:
    """What a node has; its agents' ports are given, or the raylet would wait for the agents to tell theirs."""
    with ExitStack() as held:
        free = [held.enter_context(socket.socket()) for _ in PORTS]
        for one in free:
            one.bind(("", 0))
        ports = {name: one.getsockname()[1] for name, one in zip(PORTS, free, strict=True)}
    names = {"CPU": "num_cpus", "GPU": "num_gpus"}
    parts = dict(part.split(":") for part in written.split(","))
    has = {names[name]: int(value) for name, value in parts.items()}
    return {"num_gpus": 0, **has, "object_store_memory": STORE_BYTES, **ports}


def main() -> None:
    """Serve until the input ends."""
    # Raylets print what they please; the answers have the output for themselves.
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    from ray._private.node import Node
    from ray.cluster_utils import Cluster

    # These nodes need no autoscaler, no dashboard, and nobody who sends their workers' logs to a driver.
    for needless in ("start_monitor", "start_api_server", "start_log_monitor"):
        setattr(Node, needless, lambda node, *args, **more: None)
    # The head takes no work: what the driver has put into the object store outlives every other node.
    cluster = patiently(
        lambda: Cluster(initialize_head=True, head_node_args={**node("CPU:0"), "include_dashboard": False})
    )
    nodes: list[tuple[str, Any]] = []

    def add(written: str) -> None:
        nodes.append((written, patiently(lambda: cluster.add_node(**node(written)))))

    def remove(written: str = "") -> None:
        gone = next(entry for entry in nodes if not written or entry[0] == written)
        nodes.remove(gone)
        cluster.remove_node(gone[1], allow_graceful=False)

    for written in sys.argv[1:]:
        add(written)
    print(cluster.address, file=answer, flush=True)
    for line in sys.stdin:
        word, *rest = line.split()
        {"add": add, "remove": remove}[word](*rest)
        print("ok", file=answer, flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()
