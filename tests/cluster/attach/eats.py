"""A local Ray whose memory monitor allows 2 GiB more than are in use, and a task that takes more: `python eats.py`.

Prints, as JSON, how often the task was begun, whether it ended by itself, what its error means and says, and the limit
in GiB. The first argument is the task's `max_retries`.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from rayddl.errors import StageError
from rayddl.stages.runtime import cluster, failures, machine

GIB = 2**30
MORE = 2 * GIB
STEP = GIB // 8
MOST = 6 * GIB


def eat(begun: str) -> None:
    """Take memory, and touch it, until killed."""
    with open(begun, "a", encoding="utf-8") as file:
        file.write("x")
    held = []
    while len(held) * STEP < MOST:
        held.append(bytearray(b"1") * STEP)
        time.sleep(0.05)
    time.sleep(60)


def limited(start: Callable[..., None], limits: dict[str, float], *args: Any) -> None:
    """Start Ray as rayddl does, with settings of its own."""
    import ray

    initialise = ray.init
    ray.init = partial(initialise, _system_config=limits)
    try:
        start(*args)
    finally:
        ray.init = initialise


def patiently(start: Callable[[], None], times: int = 5) -> None:
    """Start Ray; it gives itself half a minute, which a busy machine may need more of."""
    try:
        start()
    except Exception as error:  # Ray raises no narrower class
        if times == 1 or "timed out" not in str(error):
            raise
        patiently(start, times - 1)


def main() -> None:
    """Start Ray as rayddl does, with a lower limit, and see the task end."""
    whole = machine.memory_bytes()
    limit = (whole - machine.free_bytes() + MORE) / whole
    limits = {"memory_usage_threshold": limit, "memory_monitor_refresh_ms": 100}
    import_module("rayddl.stages.runtime.local").start = partial(limited, cluster.local.start, limits)
    cluster.configure(num_cpus=1)
    patiently(cluster.start)
    import ray

    with tempfile.TemporaryDirectory() as folder:
        begun = Path(folder) / "begun"
        ref = ray.remote(max_retries=int(sys.argv[1]))(eat).remote(str(begun))
        told: dict[str, object] = {"ended": True}
        while not ray.wait([ref], timeout=1)[0]:
            if times(begun) > 3 * (failures.OOM_RETRIES + 1):
                told = {"ended": False}
                break
        if told["ended"]:
            told |= meaning(ref)
        json.dump({"begun": times(begun), "limit": limit * whole / GIB, **told}, sys.stdout)
    cluster.stop()


def times(begun: Path) -> int:
    """How often the task was begun."""
    return len(begun.read_text()) if begun.exists() else 0


def meaning(ref: Any) -> dict[str, object]:
    """What the error of a task means."""
    import ray

    try:
        ray.get(ref)
    except ray.exceptions.RayError as error:
        told: dict[str, object] = {
            "out_of_memory": failures.out_of_memory(error),
            "lost": failures.lost(error),
            "said": str(error),
        }
        try:
            failures.explain(error, "unit 3")
        except StageError as explained:
            return {**told, "message": str(explained)}
    return {}


if __name__ == "__main__":
    main()
