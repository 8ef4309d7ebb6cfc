"""Seconds and peak memory of one outer iteration of matching, beside the published code.

    uv run python -m tests.bench.matching [--reference PATH_OF_MTT_CHECKOUT] [--rounds 3] [--only ipc10]

ConvNet-3 on CIFAR-10-sized images, DSA on. Every row runs in a process of its own, rows alternate, and
the figure is the median over rounds. Random images and parameters: the arithmetic does not depend on
them. A row that would not fit in memory is left out and says so. The last columns relate to the convolutions
that the exact gradient needs where nothing is kept between its two ways (:func:`floor`): measured alone, and at this
machine's peak (:func:`tests.bench.machine.peak`).

The published code's process holds all training images as floats and a file of ten experts' snapshots while its
loop runs (`images_all` and `buffer` in its `distill.py`), and so do its rows; one more, run once, holds neither.
"""

from __future__ import annotations

import json
import statistics
import time
from typing import Any

from tests.bench import machine

CASES = {
    "ipc1": {"ipc": 1, "steps": 50, "batch": 10},
    "ipc10": {"ipc": 10, "steps": 30, "batch": 100},
    "ipc50": {"ipc": 50, "steps": 30, "batch": 250},
}
OURS = {
    "unrolled fp32": {"mode": "unrolled", "precision": "fp32"},
    "exact fp32": {"mode": "exact", "precision": "fp32"},
    "exact bf16": {"mode": "exact", "precision": "bf16"},
}
ON_GPU = {"exact bf16, CUDA graphs": {"mode": "exact", "precision": "bf16", "graphs": True}}
HELD = ((50_000, 3, 32, 32), (10, 51, 320_010))
"""Images, and parameters of experts' snapshots, that lie in the memory of the published code's process."""
USERS, TUNED = "original, as its users run it", "original, with allocator settings"
ALONE = "original, its arithmetic alone"
UNROLLED_BYTES_PER_IMAGE = 4.2e6
"""Memory that a graph-keeping unroll needs for each image of each step, roughly."""


def measure(row: dict[str, Any]) -> dict[str, Any]:
    """One row in this process: seconds of each measured iteration, and the peak memory."""
    import torch

    from rayddl.stages.runtime import machine as here

    torch.set_num_threads(here.cpus())
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    images = torch.randn(10 * row["ipc"], 3, 32, 32, device=device)
    labels = torch.arange(10, device=device).repeat_interleave(row["ipc"])
    iterate = _reference(row, images, labels) if "reference" in row else _ours(row, images, labels)
    seconds = []
    for _ in range(row["warm"] + row["measured"]):
        if device.type == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        iterate()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return {"seconds": seconds[row["warm"] :], "bytes": machine.peak_bytes()}


def _reference(row: dict[str, Any], images: Any, labels: Any) -> Any:
    import torch

    from tests.bench import reference

    code = reference.load(row["reference"])
    beside = [torch.zeros(size).fill_(0.1) for size in HELD] if row["holds"] else []
    iterate = reference.outer_iteration(code, images, labels, row["steps"], row["batch"])
    return lambda: (iterate(), len(beside))


def _ours(row: dict[str, Any], images: Any, labels: Any) -> Any:
    import torch

    from rayddl.methods.matching.loop import Loop, Matcher
    from rayddl.methods.matching.settings import Settings
    from rayddl.methods.matching.state import first_state
    from rayddl.methods.training.steps import steps_for
    from rayddl.methods.trajectories.convex import SnapshotTrajectory
    from rayddl.nets.build import initial
    from rayddl.nets.config import NetConfig

    config, shape = NetConfig(), (3, 32, 32)
    start = initial(config, shape, 10, seed=0)
    snapshots = torch.stack([start, start + 0.01 * torch.randn_like(start)])
    settings = Settings(
        syn_steps=row["steps"], batch_syn=row["batch"], lr_image=100.0, lr_lr=1e-7, lr_student=0.01,
        momentum=0.5, max_start_epoch=1, expert_epochs=1, continuous=False, gradient=row["mode"],
    )  # fmt: skip
    steps = steps_for(
        config, shape, 10, row["precision"], row["mode"] != "unrolled", row.get("graphs", False)
    )
    matcher = Matcher(steps, settings, [SnapshotTrajectory(snapshots)], labels.cpu(), 10, 0, images.device)
    return Loop.begin(matcher, first_state(images, None, settings)).step


def rows_of(case: str, reference: str | None) -> dict[str, tuple[dict[str, Any], bool]]:
    """The rows of a case: what to measure, and whether with allocator settings."""
    import torch

    base = {**CASES[case], "warm": 1, "measured": 1}
    rows: dict[str, tuple[dict[str, Any], bool]] = {}
    if reference:
        held = {**base, "reference": reference, "holds": True}
        rows[USERS], rows[TUNED] = (held, False), (held, True)
        rows[ALONE] = ({**held, "holds": False, "once": True}, False)
    for name, extra in (OURS | ON_GPU if torch.cuda.is_available() else OURS).items():
        measured = 1 if name.startswith("unrolled") else 5
        rows[name] = ({**base, **extra, "measured": measured}, True)
    return rows


def floor(row: dict[str, Any]) -> dict[str, Any]:
    """The convolutions of an iteration whose steps keep nothing, found in the steps' graphs.

    That is what the exact gradient takes in the memory of one step; steps that keep some of them compute a sixth fewer.

    ``operations`` are theirs, ``at_peak`` the seconds at the machine's peak, ``alone`` the seconds of the same
    convolutions one after the other, each at its best, with nothing else in between.
    """
    import torch
    from torch._inductor.decomposition import select_decomp_table
    from torch.fx.experimental.proxy_tensor import make_fx

    from rayddl.methods.training.steps import make_steps
    from rayddl.nets.build import flat, initial
    from rayddl.nets.config import NetConfig
    from rayddl.nets.pruning import BACKWARD, CONVOLUTION, prune

    peak = machine.peak(row["precision"])
    config, shape, batch = NetConfig(), (3, 32, 32), row["batch"]
    steps = make_steps(flat(config, shape, 10, precision=row["precision"]), compile_=False)
    theta = initial(config, shape, 10, seed=0)
    inputs = [theta, torch.zeros(batch, *shape), torch.full((batch, 10), 0.1), torch.ones_like(theta)]
    operations = seconds = 0.0
    for function, count in ((steps.gradient, 3), (steps.tangent, 4)):
        graph = make_fx(function, select_decomp_table(), tracing_mode="fake")(*inputs[:count]).graph
        prune(graph)
        for node in graph.nodes:
            if node.target not in (CONVOLUTION, BACKWARD):
                continue
            forwards = node.target == CONVOLUTION
            # Images of the output, or its derivative, and a weight; one product, or one for each derivative.
            out, weight = (node, node.args[1]) if forwards else (node.args[0], node.args[2])
            products = 1 if forwards else sum(node.args[-1][:2])
            size = out.meta["val"]
            operations += products * 2 * weight.meta["val"].numel() * size.numel() / size.shape[1]
            real = torch.fx.map_arg(node.args, lambda n: _like(n.meta["val"]))
            seconds += machine.best(lambda call=node.target, real=real: call(*real), times=7)
    several = row["steps"]
    return {
        "operations": operations * several,
        "at_peak": operations * several / peak,
        "alone": seconds * several,
    }


def _like(value: Any) -> Any:
    import torch

    made = torch.randn(value.shape, dtype=value.dtype)
    # As the compiler arranges images and weights.
    return made.to(memory_format=torch.channels_last) if made.dim() == 4 else made


def fits(row: dict[str, Any]) -> bool:
    """Whether a graph-keeping row fits in three quarters of this machine's memory."""
    import torch

    from rayddl.stages.runtime import machine as here

    if torch.cuda.is_available():
        memory = float(torch.cuda.get_device_properties(0).total_memory)
    else:
        memory = float(here.memory_bytes())
    keeps_graph = "reference" in row or row.get("mode") == "unrolled"
    return not keeps_graph or row["steps"] * row["batch"] * UNROLLED_BYTES_PER_IMAGE < 0.75 * memory


def run_case(case: str, reference: str | None, rounds: int) -> list[dict[str, str]]:
    """All rows of a case, alternating over rounds, as printable cells."""
    rows = rows_of(case, reference)
    floors = {}
    for precision in ("fp32", "bf16"):
        row = {**CASES[case], "precision": precision, "floor": True}
        floors[precision] = machine.child("tests.bench.matching", row, allocator=True) or {}
        print(f"{case} {precision}: {floors[precision]}", flush=True)
    seconds: dict[str, list[float]] = {name: [] for name in rows}
    peak: dict[str, int] = {}
    for _ in range(rounds):
        for name, (row, allocator) in rows.items():
            if not fits(row) or (seconds[name] and row.get("once")):
                continue
            found = machine.child("tests.bench.matching", row, allocator=allocator)
            if found:
                seconds[name] += found["seconds"]
                peak[name] = max(peak.get(name, 0), found["bytes"])
    found_rows = [_cells(case, name, seconds, peak) for name in rows]
    for name, cells in zip(rows, found_rows, strict=True):
        least = floors[rows[name][0].get("precision", "fp32")]
        for column, key in (("time / convolutions", "alone"), ("time / peak", "at_peak")):
            over = statistics.median(seconds[name]) / least[key] if seconds[name] and least else 0.0
            cells[column] = f"{over:.2f}" if over else ""
    return found_rows


def _cells(case: str, name: str, seconds: dict[str, list[float]], peak: dict[str, int]) -> dict[str, str]:
    cells = {"case": case, "row": name}
    blank = {
        "seconds": "does not fit",
        "GB": "",
        "users' time / this": "",
        "tuned time / this": "",
        "users' memory / this": "",
        "arithmetic's memory / this": "",
    }
    if not seconds[name]:
        return {**cells, **blank}
    middle = statistics.median(seconds[name])

    def ratio(other: str, of: Any, mine: float) -> str:
        return f"{of(other) / mine:.2f}" if seconds.get(other) else ""

    return {
        **cells,
        "seconds": f"{middle:.2f} ({min(seconds[name]):.2f}-{max(seconds[name]):.2f}, n={len(seconds[name])})",
        "GB": f"{peak[name] / 1e9:.2f}",
        "users' time / this": ratio(USERS, lambda o: statistics.median(seconds[o]), middle),
        "tuned time / this": ratio(TUNED, lambda o: statistics.median(seconds[o]), middle),
        "users' memory / this": ratio(USERS, lambda o: peak[o], peak[name]),
        "arithmetic's memory / this": ratio(ALONE, lambda o: peak[o], peak[name]),
    }


def main() -> None:
    parser = machine.parser(__doc__, rounds=3, reference="MTT", row=True)
    parser.add_argument("--only", choices=CASES, action="append")
    given = parser.parse_args()
    if given.row:
        row = json.loads(given.row)
        print(json.dumps(floor(row) if row.get("floor") else measure(row)))
        return
    print(machine.figures(), flush=True)
    found: list[dict[str, str]] = []
    for case in given.only or CASES:
        found += run_case(case, given.reference, given.rounds)
        print("\n" + machine.table(found), flush=True)


if __name__ == "__main__":
    main()
