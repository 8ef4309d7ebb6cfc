"""Measures the speed of a core's matrix products in a process of its own. Imports neither torch nor Ray.

A virtual machine may report half of the processor's clock rate: rate and instruction set do not suffice for estimates.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import time

from rayddl.stages.runtime import machine

SECONDS = 0.1
"""Time of the products. The fastest counts, by the time of its thread: so other processes hardly matter."""
SIDE = 384
TIMEOUT_S = 10.0


@functools.cache
def measured(cpu: str) -> float | None:
    """Operations per second in float32 of a core of the processor described by ``cpu``, text of ``/proc/cpuinfo``.

    ``None`` on processors other than x86, whose libraries may compute products on units that convolutions do not use,
    and if the measurement fails.
    """
    if "avx2" not in machine.cpu_flags(cpu):
        return None
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    # Set where products have to be equal on all machines; convolutions use wider vectors all the same.
    environment.pop("OPENBLAS_CORETYPE", None)
    command = [sys.executable, "-m", __name__]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_S, check=True, env=environment
        )
        return float(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def _measure() -> float:
    import numpy as np

    a, b, c = (np.ones((SIDE, SIDE), np.float32) for _ in range(3))
    ends, fastest = time.perf_counter() + SECONDS, float("inf")
    while time.perf_counter() < ends:
        began = time.thread_time()
        np.matmul(a, b, out=c)
        fastest = min(fastest, time.thread_time() - began)
    return 2 * SIDE**3 / fastest


if __name__ == "__main__":
    sys.stdout.write(f"{_measure()}\n")
