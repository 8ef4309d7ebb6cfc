"""Measures the peak memory of one matching step in a child process.

In a child process, because allocators keep freed memory: a second measurement in the same process would return
the first one's peak. The child runs this module as a program.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rayddl.stages.runtime import cluster, plugin_code

SECONDS = 900
"""Time limit of a measurement; most of it is compilation."""
PASSES = 12
"""Cost of a matched student step in forward passes, as in the stage."""


@dataclass(frozen=True)
class MeasureTask:
    """A step to measure at two batch sizes, the smaller first."""

    net: dict[str, Any]
    shape: tuple[int, int, int]
    classes: int
    images: int
    """Images of the set."""
    batches: tuple[int, int]
    steps: int
    precision: str
    gradient: Literal["exact", "truncated", "unrolled"]
    augment: tuple[str, ...]
    compile: bool | None
    work: int
    """Steps of the whole run, which decide on compilation if ``compile`` is ``None``."""
    gpu: bool
    threads: int


@dataclass(frozen=True)
class Measured:
    """The result of a measurement."""

    bytes: tuple[int, int]
    """Peak bytes at each batch size."""
    parameters: int
    compiled: bool
    kept: int
    """Bytes for each image of its batch that a step may keep for the way back; not part of ``bytes``."""


def run(job: MeasureTask) -> Measured | str:
    """Measure ``job`` in a child process; on failure return the reason as text."""
    words = [sys.executable, "-m", __name__, json.dumps(asdict(job))]
    try:
        ended = subprocess.run(
            words,
            env={**os.environ, **cluster.WORKER_ENV},
            input=plugin_code.shipped(),
            capture_output=True,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"it took more than {SECONDS} s"
    if ended.returncode < 0:
        return "its process was killed, which is what running out of memory looks like"
    if ended.returncode:
        last = [line for line in ended.stderr.decode(errors="replace").splitlines() if line.strip()]
        return last[-1].strip() if last else f"its process ended with {ended.returncode}"
    measured = json.loads(ended.stdout.splitlines()[-1])
    return Measured(tuple(measured["bytes"]), measured["parameters"], measured["compiled"], measured["kept"])


def peaks(job: MeasureTask) -> Measured:
    """Measure in this process. Every augmentation runs, since their memory differs."""
    import ray  # noqa: F401  # part of a worker's memory
    import torch

    from rayddl.methods.training.steps import steps_for
    from rayddl.nets.build import initial
    from rayddl.nets.config import NetConfig
    from rayddl.nets.cost import worth_compiling

    torch.set_num_threads(job.threads)
    net = NetConfig.model_validate(job.net)
    compiled = job.compile
    if compiled is None:
        compiled = worth_compiling(
            net, job.shape, job.classes, steps=job.work, batch=job.batches[-1], passes=PASSES
        )
    steps = steps_for(net, job.shape, job.classes, job.precision, compiled)

    def keeping_nothing(theta_P: Any, lr: Any, x: Any, y: Any, most: int) -> Any:
        return steps.ahead(theta_P, lr, x, y, 0)

    forgetful = replace(steps, ahead=keeping_nothing)
    device = torch.device("cuda" if job.gpu else "cpu")
    ends = [initial(net, job.shape, job.classes, seed=seed).to(device) for seed in (0, 1)]
    found = []
    for batch in job.batches:
        _step(job, batch, forgetful, ends)
        found.append(int(torch.cuda.max_memory_reserved()) if job.gpu else _high_water())
    return Measured((found[0], found[1]), len(ends[0]), compiled, _kept(job, steps, ends[0]))


def _step(job: MeasureTask, batch: int, steps: Any, ends: list[Any]) -> None:
    import torch

    from rayddl.data.pixels import augment
    from rayddl.methods.matching.gradient import MODES, StudentRun
    from rayddl.methods.training.steps import one_hot
    from rayddl.seeds import generator

    draws, device = generator(0, "trial"), ends[0].device
    images = torch.randn((job.images, *job.shape), generator=draws).to(device)
    labels = one_hot(torch.arange(job.images) % job.classes, job.classes).to(device)
    picks = [torch.arange(batch, device=device)] * job.steps
    for name in job.augment or (None,):
        names = () if name is None else (name,)
        drawn = [augment.draw(names, (batch, *job.shape), draws) for _ in picks]
        run = StudentRun(images, labels, torch.tensor(0.01, device=device), picks, drawn)
        MODES[job.gradient](steps, run, *ends)


def _kept(job: MeasureTask, steps: Any, theta_P: Any) -> int:
    import torch

    if job.gradient == "unrolled":
        return 0
    batch = job.batches[-1]
    x = torch.zeros(batch, *job.shape, device=theta_P.device)
    y = torch.full((batch, job.classes), 1 / job.classes, device=theta_P.device)
    return int(steps.bytes_kept(theta_P, x, y)) // batch


def _high_water() -> int:
    """The most memory that this process had resident."""
    # getrusage includes the parent's size at the fork; the kernel's high-water mark does not.
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _main() -> None:
    plugin_code.adopt(sys.stdin.buffer.read())
    given = json.loads(sys.argv[1])
    shape, batches, names = (tuple(given.pop(key)) for key in ("shape", "batches", "augment"))
    measured = peaks(MeasureTask(shape=shape, batches=batches, augment=names, **given))
    sys.stdout.write(json.dumps(asdict(measured)) + "\n")


if __name__ == "__main__":
    _main()
