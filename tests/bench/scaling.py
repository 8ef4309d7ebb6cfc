"""How experts, scoring and evaluation grow with workers, and what the driver holds meanwhile.

    uv run python -m tests.bench.scaling [--most 32] [--units 8] [--seconds 6] [--plot scaling.svg]
    uv run python -m tests.bench.scaling --gpus-a-node 4 [--least 4] [--most 16] …

The work of a unit is replaced by a sleep, so that one machine can stand for many; everything else is the stages'
own code on a real Ray: tasks, references, progress, files, the stream, the running choice of the best. Workers are
started before the clock is. Efficiency is the units' sleep over workers times wall time. The driver's memory is
that of a process of its own, which only hands out units and takes results (``tests.bench.driver`` has that of
listings and held-out images).

With ``--gpus-a-node`` workers are logical GPUs on Ray nodes of so many, and every unit notes where it ran: a second
table has the placement, in the words of ``tests.bench.layout``. A stage starts its processes on GPUs itself, so the
wall time is that from the first unit's beginning; the seconds before it are printed apart.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from tests import warm
from tests.bench import layout, machine
from tests.cluster.conftest import Nodes

STAGES = ("experts", "scoring", "evaluation")
COLOURS = {"experts": "#1b6ca8", "scoring": "#b8442f", "evaluation": "#2f7d52"}
UNIT = 512
"""Images of a unit of scoring: the eight chunks of a task."""
EXPERTS, CLASSES = 10_000, 1000
ONE_GPU = {"num_gpus": 1}
"""A unit on each GPU: efficiency is that of GPUs."""


def slept(seconds: float, notes: str) -> None:
    """In a worker: the work of a unit, and on a GPU a line on where and when in the folder ``notes``."""
    from rayddl.stages.runtime import devices

    began = time.time()
    time.sleep(seconds)
    if gpus := devices.assigned():
        import ray

        gpu = f"{ray.get_runtime_context().get_node_id()[:8]}/{gpus[0]}"
        line = {"gpu": gpu, "process": f"{gpu[:8]}/{os.getpid()}", "began": began, "ended": time.time()}
        with Path(notes, f"{os.getpid()}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def experts(workers: int, units: int, seconds: float, notes: str, gpus: bool) -> Callable[[], None]:
    """The experts' stage, with training replaced."""
    from rayddl.data.config import SourceConfig
    from rayddl.stages.context import Context
    from rayddl.stages.experts import stage as experts
    from rayddl.stages.experts.settings import ExpertsConfig
    from rayddl.stages.runtime import cluster
    from rayddl.stages.runtime.sizes import Resources, Share
    from rayddl.storage import Folder

    def sleep(job: Any, indices: Any, counter: Any) -> None:
        (index,) = indices
        for epoch in range(1, 5):
            slept(seconds / 4, notes)
            counter.report(f"expert {index}", epoch, "")
        job.out.write(f"expert-{index:04d}.safetensors", b"x" * 1000)

    experts.train_some = sleep  # type: ignore[attr-defined]  # in place of training
    out = Folder(tempfile.mkdtemp())
    config = ExpertsConfig(kind="experts", count=units, epochs=4, experts_per_task=1)
    context = Context("experts", SourceConfig(name="digits"), 0, out, {}, {})
    # Without what real workers read: none of them has to import torch.
    job: Any = SimpleNamespace(config=config, compile=False, out=out)
    share = cluster.spread(Resources(**ONE_GPU), units=units) if gpus else Share(1, 0, None, workers)
    return lambda: experts._train_missing(job, share, list(range(units)), context)


def scoring(workers: int, units: int, seconds: float, notes: str, gpus: bool) -> Callable[[], None]:
    """RDED's stream, with decoding and scoring replaced; with GPUs, workers on the other CPUs would decode."""
    from rayddl.stages.context import Silent
    from rayddl.stages.rded import selection as rded_select
    from rayddl.stages.rded.settings import RdedConfig
    from rayddl.stages.runtime import streams
    from rayddl.stages.runtime.sizes import Share
    from rayddl.stages.runtime.workers import OnRay

    def scored(block: Any) -> Any:
        slept(seconds * len(block["image"]) / UNIT, notes)
        return _scored(block["image"])

    class Sleeper:
        def __init__(self, sent: bytes) -> None:
            del sent

        def __call__(self, block: Any) -> Any:
            return scored(block)

    rded_select.rded_cut_and_judge = lambda block, sent: scored(block)
    rded_select.rded_cut = lambda block, sent: block
    rded_select.RdedJudge = Sleeper  # type: ignore[misc]
    positions = np.arange(units * UNIT)
    # A call of a judge is a unit.
    config = RdedConfig(kind="rded", teacher="teacher", ipc=1, num_crops=1, batch=UNIT if gpus else None)
    job: Any = SimpleNamespace(config=config, listing=positions[:UNIT])
    share = Share(1, 0, None, workers)

    def run() -> None:
        steps, note = rded_select.steps(job), Silent().note
        for _ in (
            OnRay().stream(positions, steps, config.asks, note)
            if gpus
            else streams.stream(positions, steps, share, None, note)
        ):
            pass

    return run


def evaluation(workers: int, units: int, seconds: float, notes: str, gpus: bool) -> Callable[[], None]:
    """The judging of a set, with students replaced."""
    import torch

    from rayddl.data.config import SourceConfig
    from rayddl.data.distilled import DistilledSet
    from rayddl.data.pixels.space import fit
    from rayddl.stages.context import Silent
    from rayddl.stages.evaluate import distribution, protocol
    from rayddl.stages.evaluate import worker as students
    from rayddl.stages.evaluate.settings import EvaluateConfig
    from rayddl.stages.runtime import sources as shared
    from rayddl.storage import Folder

    def sleep(of: Any, data: Any, student: Any) -> dict[str, Any]:
        del data
        slept(seconds, notes)
        result = {"data": student.data, "net": "mlp", "seed": student.seed, "images": 10, "accuracy": 0.5}
        of.out.write_json(student.file, result)
        return result

    students.train_one = sleep
    source = shared.publish(SourceConfig(name="digits"))
    made = DistilledSet(
        torch.zeros(10, *source.shape), torch.arange(10), 0.01, source.classes,
        fit("normalise", torch.randint(0, 255, (20, *source.shape), dtype=torch.uint8)), {"net": {"name": "mlp"}},
    )  # fmt: skip
    config = EvaluateConfig.model_validate(
        {"kind": "evaluate", "set": "made", "seeds": units // 2, "epochs": 1, "batch": 10, "compile": False,
         "resources": ONE_GPU if gpus else {"num_cpus": 1, "at_once": workers}}
    )  # fmt: skip
    task = protocol.EvaluateTask(config, made, source, None, 0)
    return lambda: distribution.judge(task, Folder(tempfile.mkdtemp()), Silent()) and None


def _scored(image: Any) -> dict[str, Any]:
    """What a worker hands back of some images: a row each."""
    count = len(image)
    return {
        "image": image, "label": (image * 7919 % CLASSES).astype(np.int64),
        "score": np.sin(image).astype(np.float32), "crop": np.zeros(count, np.int64),
        "box": np.zeros((count, 3), np.int32), "bad": np.full(count, ""),
    }  # fmt: skip


def timed(
    stage: str, workers: int, units: int, seconds: float, notes: str, address: str | None
) -> dict[str, Any]:
    """Wall time of a stage on so many workers, which are there already: of a local Ray, or GPUs at ``address``."""
    from rayddl.stages.runtime import cluster

    if address is None:
        cluster.configure(num_cpus=workers + (stage == "scoring"))
    else:
        cluster.configure(address=address)
    cluster.start()
    try:
        make = {"experts": experts, "scoring": scoring, "evaluation": evaluation}[stage]
        if address is None:
            _awake(make(workers, 2 * workers, 1.0, notes, False))
        run = make(workers, units * workers, seconds, notes, address is not None)
        began = time.perf_counter()
        run()
        wall = time.perf_counter() - began
    finally:
        cluster.stop()
    if address is None:
        return {"seconds": wall, "placement": None}
    placed = [
        json.loads(line) for file in Path(notes).glob("*.jsonl") for line in file.read_text().splitlines()
    ]
    span = max(row["ended"] for row in placed) - min(row["began"] for row in placed)
    placement = {**layout.figures(placed), "seconds before": f"{wall - span:.1f}"}
    return {"seconds": span, "placement": placement}


def _awake(a_round: Callable[[], None]) -> None:
    """Run short rounds until they get no faster: then every worker has started and imported what it needs."""
    last = math.inf
    for _ in range(10):
        began = time.perf_counter()
        a_round()
        took = time.perf_counter() - began
        if took > last - 0.5:
            return
        last = took


def driver(experts: int) -> dict[str, Any]:
    """MiB of a driver's memory after a tenth of so many experts, and after all."""
    levels = []
    for done, total in _many_experts(experts):
        if done == total // 10 or done == total:
            levels.append(machine.resident_peak() / 2**20)
    return {"at a tenth": levels[0], "at the end": levels[-1]}


def _many_experts(count: int) -> Iterator[tuple[int, int]]:
    """``count`` tasks through the pool, on two workers."""
    import ray

    from rayddl.stages.runtime import cluster, workers
    from rayddl.stages.runtime.sizes import Share

    def nothing(job: Any, index: int) -> None:
        del job, index

    cluster.configure(num_cpus=2)
    cluster.start()
    job = ray.put(np.zeros(1_000_000))
    with workers.opened(Share(1, 0, None, 2), "nothing") as free:
        for done, _ in enumerate(free.each(range(count), lambda i: (nothing, job, i), str), start=1):
            yield done, count
    cluster.stop()


def law(rows: Sequence[Mapping[str, Any]]) -> float:
    """The exponent b of units per second ~ workers^b, by least squares; 1 is growth without loss."""
    workers, rates = (np.log([float(row[key]) for row in rows]) for key in ("workers", "rate"))
    return float(np.polyfit(workers, rates, 1)[0])


def plotted(rows: Sequence[Mapping[str, Any]], path: str) -> None:
    """Units a second against workers, both by doubling, with the line that growth without loss would be, as an SVG."""
    counts = sorted({row["workers"] for row in rows})
    low, high = (edge(row[k] for row in rows for k in ("rate", "ideal")) for edge in (min, max))
    width, height, left, top = 440, 330, 64, 24

    def x(workers: float) -> float:
        return left + width * math.log2(workers / counts[0]) / max(math.log2(counts[-1] / counts[0]), 1)

    def y(rate: float) -> float:
        return top + height * (1 - math.log2(rate / low) / math.log2(high / low))

    def line(own: Sequence[Mapping[str, Any]], key: str, style: str) -> str:
        points = " ".join(f"{x(row['workers']):.1f},{y(row[key]):.1f}" for row in own)
        return f'<polyline fill="none" points="{points}" {style}/>'

    def text(at_x: float, at_y: float, told: str, more: str = "") -> str:
        return f'<text x="{at_x:.1f}" y="{at_y:.1f}" {more}>{told}</text>'

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 24} {top + height + 56}" '
        'font-family="sans-serif" font-size="13" fill="#333333">',
        '<rect width="100%" height="100%" fill="#ffffff"/>',
        text(left, top - 8, "units of work a second"),
        text(left + width / 2, top + height + 44, "workers", 'text-anchor="middle"'),
    ]
    parts += [text(x(count), top + height + 22, str(count), 'text-anchor="middle"') for count in counts]
    for power in range(math.ceil(math.log2(low)), math.floor(math.log2(high)) + 1):
        at = y(2.0**power)
        parts.append(f'<path d="M{left} {at:.1f}h{width}" stroke="#dddddd"/>')
        parts.append(text(left - 8, at + 4, f"{2.0**power:g}", 'text-anchor="end"'))
    own = [row for row in rows if row["stage"] == rows[0]["stage"]]
    parts.append(line(own, "ideal", 'stroke="#888888" stroke-dasharray="5 4"'))
    parts.append(text(left + 12, top + 18, "dashed: without loss"))
    for k, stage in enumerate(dict.fromkeys(row["stage"] for row in rows)):
        own, colour = [row for row in rows if row["stage"] == stage], COLOURS[stage]
        parts.append(line(own, "rate", f'stroke="{colour}" stroke-width="2"'))
        parts += [
            f'<circle cx="{x(row["workers"]):.1f}" cy="{y(row["rate"]):.1f}" r="3.5" fill="{colour}"/>'
            for row in own
        ]
        told = f"{stage}: workers^{law(own):.3f}" if len(own) > 1 else stage
        parts.append(text(left + 12, top + 38 + 20 * k, told, f'fill="{colour}" font-weight="bold"'))
    Path(path).write_text("\n".join([*parts, "</svg>\n"]), encoding="utf-8")


def main() -> None:
    """Print the tables."""
    parser = machine.parser(__doc__, row=True)
    parser.add_argument("--most", type=int, default=32, help="workers, doubled up to so many")
    parser.add_argument("--least", type=int, default=1, help="the fewest workers")
    parser.add_argument("--units", type=int, default=8, help="units of each worker")
    parser.add_argument("--seconds", type=float, default=6.0, help="sleep of a unit")
    parser.add_argument("--stage", choices=STAGES, action="append")
    parser.add_argument("--plot", metavar="FILE")
    parser.add_argument("--gpus-a-node", type=int, default=0, help="workers are logical GPUs of such nodes")
    given = parser.parse_args()
    if given.row:
        row = json.loads(given.row)
        print(json.dumps(timed(**row) if "stage" in row else driver(**row)))
        return
    print(machine.figures())
    if given.gpus_a_node:
        # Where units go does not depend on how their processes start.
        os.environ["PYTHONPATH"] = warm.python_path(os.environ.get("PYTHONPATH", ""))
        warm.start()
    rows, placements = [], []
    workers = [2**k for k in range(given.most.bit_length()) if given.least <= 2**k <= given.most]
    for stage in given.stage or STAGES:
        for n in workers:
            found = _measured(stage, n, given)
            if found is None:
                sys.exit(f"{stage} on {n} workers did not end well")
            wall, ideal = found["seconds"], given.units * given.seconds
            if found["placement"]:
                placements.append({"stage": stage, "GPUs": str(n), **found["placement"]})
            rows.append(
                {"stage": stage, "workers": n, "seconds": wall, "efficiency": ideal / wall,
                 "rate": n * given.units / wall, "ideal": n / given.seconds}
            )  # fmt: skip
            placed = found["placement"] or ""
            print(f"{stage} on {n}: {wall:.1f} s, {ideal / wall:.2f} {placed}", file=sys.stderr, flush=True)
    shown = [
        {"stage": r["stage"], "workers": str(r["workers"]), "wall s": f"{r['seconds']:.2f}",
         "efficiency": f"{r['efficiency']:.2f}", "units/s": f"{r['rate']:.1f}"}
        for r in rows
    ]  # fmt: skip
    print(machine.table(shown))
    if placements:
        print(machine.table(placements))
        return
    for stage in dict.fromkeys(row["stage"] for row in rows):
        own = [row for row in rows if row["stage"] == stage]
        if len(own) > 1:
            print(f"{stage}: units a second grow as workers^{law(own):.3f}")
    if given.plot:
        plotted(rows, given.plot)
    found = machine.child("tests.bench.scaling", {"experts": EXPERTS}, allocator=False)
    if found is not None:
        told = {name: f"{value:.0f}" for name, value in found.items()}
        print(machine.table([{"driver's MiB": f"{EXPERTS:,} experts", **told}]))


def _measured(stage: str, workers: int, given: argparse.Namespace) -> dict[str, Any] | None:
    """:func:`timed` in a process of its own, with nodes of logical GPUs if these are asked for."""
    each = given.gpus_a_node
    nodes = [f"CPU:{4 * min(each, workers)},GPU:{min(each, workers)}"] * -(-workers // each) if each else []
    with tempfile.TemporaryDirectory() as folder:
        cluster: Any = Nodes.up(Path(folder) / "nodes.txt", *nodes) if nodes else nullcontext()
        with cluster as up:
            asked = {
                "stage": stage, "workers": workers, "units": given.units, "seconds": given.seconds,
                "notes": folder, "address": up.address if up else None,
            }  # fmt: skip
            return machine.child("tests.bench.scaling", asked, allocator=False)


if __name__ == "__main__":
    main()
