"""Workers of a run killed with SIGKILL again and again at random moments: what is repeated, and what comes out.

    uv run python -m tests.bench.killed [--kills 20] [--nodes 2] [--seed 1]

The run is the tests' (`tests/cluster`): experts, matching, evaluation, an observer and RDED's stream, on one-CPU
nodes of one machine. Every unit that a worker begins is written down; its result is compared with that of a run that
nothing disturbed, bit for bit. A worker of the stream is at a block of up to eight chunks: killed within it, it does
all of them again.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from tests.bench import machine
from tests.cluster.conftest import DEFINITION, Killer, Nodes, Run


def main() -> None:
    """Print a row for each kind of work, and whether the results are the same."""
    parser = machine.parser(__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    # More units than kills: one that hits a worker between two units waits for the next.
    definition = (
        DEFINITION.replace('{name: parquet, root: "ROOT"}', "{name: digits}")
        .replace("count: 5", f"count: {given.kills}")
        .replace("seeds: 2", f"seeds: {max(2, given.kills // 3)}")
    )
    with Nodes.up(folder / "nodes.txt", "CPU:1") as nodes:
        for _ in range(given.nodes - 1):
            nodes.say("add CPU:1")
        calm, struck = (Run(folder / name, nodes.address, "", definition) for name in ("calm", "struck"))
        seconds = {}
        for run in (calm, struck):
            began, started = time.monotonic(), run.start()
            if run is struck:
                death = Killer(nodes, run, started, given.seed)
                death.kill(given.kills)
            run.finish(started)
            seconds[run.folder.name] = time.monotonic() - began
    print(machine.figures())
    rows = []
    for kind in ("expert", "student", "chunk"):
        begun = {name: count for name, count in struck.begun.items() if name.startswith(kind)}
        again = sum(begun.values()) - len(begun)
        rows.append({"work": kind, "units": str(len(begun)), "begun again": str(again)})
    print(machine.table(rows))
    told = {name: f"{value:.0f} s" for name, value in seconds.items()}
    print(f"{death.killed} of {given.kills} workers killed, {struck.repeated} units begun again; {told}")
    same = struck.outcome() == calm.outcome()
    print("same result, bit for bit" if same else "ANOTHER RESULT")
    if not same or death.killed < given.kills:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
