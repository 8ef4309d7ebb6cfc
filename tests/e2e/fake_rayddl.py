"""The command line with stage kinds that need neither torch nor Ray.

Run as a script by the tests beside it: ``python fake_rayddl.py run d.yaml``.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Annotated, Any, ClassVar, Literal

from rayddl.cli import main
from rayddl.stages.context import Context, Result
from rayddl.stages.kinds import KINDS, Kind
from rayddl.stages.runtime.capacity import Capacity
from rayddl.stages.runtime.room import Room
from rayddl.stages.settings import Reads, StageConfig


class MakeConfig(StageConfig):
    """A stage that reads nothing, and ends as it is told."""

    produces: ClassVar[str] = "thing"

    kind: Literal["make"]
    count: int = 3
    ends: Literal["well", "crash", "waiting", "printing"] = "well"


class SideConfig(MakeConfig):
    """A stage that runs next to others of its kind, on a pretended cluster."""

    kind: Literal["side"]  # type: ignore[assignment]


class UseConfig(StageConfig):
    """A stage that leaves a set and a report."""

    produces: ClassVar[str] = "set"

    kind: Literal["use"]
    make: Annotated[str, Reads(("thing",))]


def make(config: MakeConfig, context: Context) -> Result:
    """Write what there is to write, then end as told."""
    went_on = context.out.has("half.txt")
    context.out.write("half.txt", b"half")
    context.progress.update(1, config.count, "half-way")
    if config.ends == "waiting" and not went_on:
        sys.stderr.write("now\n")
        sys.stderr.flush()
        while True:  # a signal that comes just before a single long wait would not end it
            time.sleep(0.05)
    if config.ends == "crash":
        raise RuntimeError("the stage broke")
    if config.ends == "printing":
        sys.stdout.write("a library talks\n")
        os.write(1, b"and so does C code\n")
    context.progress.update(config.count, config.count, "ready")
    return Result({"count": config.count, "went_on": went_on})


def use(config: UseConfig, context: Context) -> Result:
    """Leave a set and a report."""
    context.out.write_json("set/set.json", {"classes": ["cat", "dog"]})
    context.out.write("report.html", b"<html>")
    row = {"data": "distilled", "images": "10", "accuracy %": "61.2 ± 0.4"}
    return Result({"rows": [1]}, (row, {**row, "data": "random", "accuracy %": "50.1 ± 1.2"}))


@dataclass(frozen=True)
class FakeKind(Kind):
    """A kind whose work is a function."""

    work: Callable[[Any, Context], Result] | None = None

    @property
    def run(self) -> Any:
        return self.work


def evaluate_set(folder: Any, **options: Any) -> Result:
    """Repeat what was asked for."""
    progress = options.pop("progress")
    progress.update(1, 1, "judged")
    asked = ", ".join(f"{key}={value}" for key, value in options.items())
    return Result({"set": str(folder)}, ({"data": "distilled", "asked": asked},))


calls: list[str] = []
cluster = SimpleNamespace(
    configure=lambda address, num_cpus, **_: calls.append(f"configure {address} {num_cpus}"),
    require=lambda asks: None,
    observe=lambda run, stage, progress: None,
    room=lambda: Room(lambda: Capacity(({"CPU": 2.0},))),
    start=lambda: calls.append("start"),
    stop=lambda: sys.stderr.write(f"cluster: {' '.join(calls)}\n"),
)

if __name__ == "__main__":
    judge = KINDS["evaluate"]
    KINDS.clear()
    KINDS["evaluate"] = judge
    KINDS["make"] = FakeKind("make", MakeConfig, needs_ray=False, work=make)
    KINDS["side"] = FakeKind("side", SideConfig, work=make)
    KINDS["use"] = FakeKind("use", UseConfig, needs_ray=False, work=use)
    sys.modules["rayddl.stages.evaluate.stage"] = SimpleNamespace(evaluate_set=evaluate_set)  # type: ignore[assignment]
    sys.modules["rayddl.stages.runtime.cluster"] = cluster  # type: ignore[assignment]
    main()
