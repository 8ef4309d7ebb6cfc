"""The share of a search's wall time that is not trials' work.

    uv run python -m tests.bench.tune [--trials 16] [--seconds 30] [--reports 6] [--cpus 2]

Trials multiply matrices until their time is up, so that what they work is known; everything else (Ray's start,
the workers' start, reports, state on disk, going from one trial to the next, the end) is overhead.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from typing import Any

from tests.bench import machine


@dataclass
class Spin:
    """A trial that works for some seconds in all."""

    settings: dict[str, Any]
    seconds: float
    reports: int
    at: int = 0

    def reach(self, until: int) -> dict[str, float]:
        import torch

        deadline = time.perf_counter() + self.seconds / self.reports * (until - self.at)
        a = torch.randn(256, 256)
        while time.perf_counter() < deadline:
            a = torch.tanh(a @ a)
        self.at = until
        return {"accuracy": self.settings["x"]}

    def save(self) -> bytes:
        return b"x" * 1_000_000

    def load(self, data: bytes) -> None:
        del data

    def leave(self) -> None:
        """Nothing to leave."""


@dataclass
class Spins:
    """Makes them."""

    seconds: float
    reports: int

    def __call__(self, task: Any) -> Spin:
        return Spin(task.settings, self.seconds, self.reports)

    def held_out(self, task: Any, seed: int) -> float:
        del task, seed
        return 0.0

    def pinned(self, settings: Any, iteration: int) -> dict[str, Any]:
        del settings, iteration
        return {}


def main() -> None:
    parser = machine.parser(__doc__)
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=30.0, help="work of one trial")
    parser.add_argument("--reports", type=int, default=6, help="of one trial")
    parser.add_argument("--cpus", type=int, default=2)
    given = parser.parse_args()
    print(machine.figures(), flush=True)
    began = time.perf_counter()
    from rayddl.stages.context import Silent
    from rayddl.stages.runtime import cluster
    from rayddl.stages.runtime.sizes import Share
    from rayddl.stages.tune import engine
    from rayddl.stages.tune.plan import Search
    from rayddl.stages.tune.space import Entry
    from rayddl.stages.tune.trial import Work
    from rayddl.storage import Folder

    cluster.configure(num_cpus=given.cpus)
    cluster.start()
    ready = time.perf_counter()
    search = Search(
        {"x": Entry(uniform=(0.0, 1.0))}, {"x": 0.5}.get, "accuracy", "max", given.trials,
        tuple(range(1, given.reports + 1)), "optuna", "none", 1, 3, 0,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        work = Work(search, Spins(given.seconds, given.reports), Folder(folder), 1)
        rows = engine.run(work, Share(1, 0, None, given.cpus), Silent())
    ended = time.perf_counter()
    cluster.stop()
    worked = sum(row.seconds for row in rows.values())
    wall = time.perf_counter() - began
    share = 1 - worked / (given.cpus * wall)
    print(
        machine.table(
            [
                {
                    "trials": str(len(rows)),
                    "work each s": f"{worked / len(rows):.1f}",
                    "wall s": f"{wall:.1f}",
                    "of it Ray's start": f"{ready - began:.1f}",
                    "Ray's end": f"{wall - (ended - began):.1f}",
                    "not trials' work": f"{100 * share:.1f} %",
                }
            ]
        )
    )


if __name__ == "__main__":
    main()
