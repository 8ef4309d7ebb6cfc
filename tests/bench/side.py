"""What running stages at the same time costs: the wall time of a run over the seconds of its longest chain.

    uv run python -m tests.bench.side [--gpus 4] [--seconds 12]

The stages are those of a comparison: experts, a teacher, two matches, four evaluations. The work of each is a sleep on
a logical GPU; everything else is rayddl's own, on a local Ray. A chain is a list of stages of which each reads the one
before; its seconds are those in the stages' manifests, so the figure counts what is lost between stages and by waiting.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Annotated, Any, ClassVar, Literal

from rayddl.pipeline import plan as plans
from rayddl.pipeline.definition import load as definitions
from rayddl.pipeline.display.plain import Plain
from rayddl.pipeline.runner import execute
from rayddl.pipeline.session import ray_session
from rayddl.stages.context import Context, Result
from rayddl.stages.kinds import Kind
from rayddl.stages.settings import Reads, StageConfig
from tests.bench import machine

MOST = 1.2
"""The time of all stages at once, relative to that of their longest chain."""
GRAPH = {
    "experts": (),
    "teacher": (),
    "match-a": ("experts",),
    "match-b": ("experts",),
    "a-short": ("match-a",),
    "a-long": ("match-a",),
    "b-short": ("match-b",),
    "b-long": ("match-b",),
}


class SleepConfig(StageConfig):
    """A stage whose only unit of work is a sleep."""

    produces: ClassVar[str] = "sleep"

    kind: Literal["sleep"]
    after: Annotated[tuple[str, ...], Reads(("sleep",))] = ()
    seconds: float

    @property
    def most_units(self) -> int:
        return 1


def run(config: SleepConfig, context: Context) -> Result:
    """Sleep on a GPU."""
    context.backend.start()
    share = context.backend.spread(config.resources, units=1)
    with context.backend.opened(share, context.stage) as free:
        free.one((time.sleep, config.seconds), context.stage)
    return Result({})


@dataclass(frozen=True)
class SleepKind(Kind):
    """The kind of these stages."""

    @property
    def run(self) -> Any:
        return run


def chain(seconds: dict[str, float], stage: str) -> float:
    """Seconds of the longest chain that ends with ``stage``."""
    return seconds[stage] + max((chain(seconds, read) for read in GRAPH[stage]), default=0.0)


def main(arguments: list[str]) -> None:
    """Run the stages and print the figures."""
    parser = machine.parser(__doc__)
    parser.add_argument("--gpus", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=12.0)
    given = parser.parse_args(arguments)
    cluster = importlib.import_module("rayddl.stages.runtime.cluster")

    def on_gpus() -> Any:
        return SimpleNamespace(
            **{**vars(cluster), "configure": partial(cluster.configure, num_gpus=given.gpus)}
        )

    stages = {
        name: {"kind": "sleep", "after": list(reads), "seconds": given.seconds}
        for name, reads in GRAPH.items()
    }
    definition = {"name": "side", "source": {"name": "digits"}, "stages": stages}
    loaded = definitions.load(definition, (), {"sleep": SleepKind("sleep", SleepConfig)})
    display = Plain()
    with tempfile.TemporaryDirectory() as out, ray_session(display, num_cpus=given.gpus, load=on_gpus) as ray:
        ray.need()  # the start of Ray is not counted
        began = time.perf_counter()
        result = execute(plans.make(loaded, out, lambda _: "digits"), display, ray)
        wall = time.perf_counter() - began
        seconds = {name: artifact.seconds for name, artifact in result.artifacts.items()}
    longest = max(chain(seconds, stage) for stage in GRAPH)
    print(f"\nwall {wall:.1f} s; longest chain {longest:.1f} s; all stages {sum(seconds.values()):.1f} s")
    print(f"wall over longest chain: {wall / longest:.2f}")
    if wall > MOST * longest:
        sys.exit(f"the stages take more than {MOST} times their longest chain")


if __name__ == "__main__":
    main(sys.argv[1:])
