"""How experts, scoring and evaluation grow with workers, and what the driver holds meanwhile.

    uv run python -m tests.bench.scaling [--most 32] [--units 8] [--seconds 6] [--plot scaling.svg]

The work of a unit is replaced by a sleep, so that one machine can stand for many; everything else is the stages'
own code on a real Ray: tasks, references, progress, files, the stream, the running choice of the best. Workers are
started before the clock is. Efficiency is the units' sleep over workers times wall time. The driver's memory is
that of a process of its own, which only hands out units and takes results.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from tests.bench import machine

STAGES = ("experts", "scoring", "evaluation")
COLOURS = {"experts": "#1b6ca8", "scoring": "#b8442f", "evaluation": "#2f7d52"}
CHUNK = 64
"""Images in one chunk of the listing."""
EXPERTS, IMAGES, CLASSES = 10_000, 1_281_167, 1000


def experts(workers: int, units: int, seconds: float) -> Callable[[], None]:
    """The experts' stage, with training replaced."""
    from rayddl.data.config import SourceConfig
    from rayddl.stages.context import Context
    from rayddl.stages.experts import stage as experts
    from rayddl.stages.experts.settings import ExpertsConfig
    from rayddl.stages.runtime.sizes import Share
    from rayddl.storage import Folder

    def sleep(job: Any, indices: Any, counter: Any) -> None:
        (index,) = indices
        for epoch in range(1, 5):
            time.sleep(seconds / 4)
            counter.report(f"expert {index}", epoch, "")
        job.out.write(f"expert-{index:04d}.safetensors", b"x" * 1000)

    experts.train_some = sleep  # type: ignore[attr-defined]  # in place of training
    out = Folder(tempfile.mkdtemp())
    config = ExpertsConfig(kind="experts", count=units, epochs=4)
    context = Context("experts", SourceConfig(name="digits"), 0, out, {}, {})
    # Without what real workers read: none of them has to import torch.
    job: Any = SimpleNamespace(config=config, compile=False, out=out)
    share = Share(1, 0, None, workers)
    return lambda: experts._train_missing(job, share, list(range(units)), context)


def scoring(workers: int, units: int, seconds: float) -> Callable[[], None]:
    """RDED's stream, with decoding and scoring replaced; a unit is as many chunks as a task has at most."""
    from rayddl.stages.context import Silent
    from rayddl.stages.rded import stream as rded_stream
    from rayddl.stages.rded.settings import RdedConfig
    from rayddl.stages.runtime import streams
    from rayddl.stages.runtime.sizes import Share

    def sleep(block: Any, sent: bytes) -> Any:
        del sent
        time.sleep(seconds / each)
        return _scored(block["image"])

    rded_stream.rded_cut_and_judge = sleep
    share = Share(1, 0, None, workers)
    each = streams.CHUNKS_A_BLOCK
    positions = np.arange(units * each * CHUNK)
    job: Any = SimpleNamespace(config=RdedConfig(kind="rded", teacher="teacher", ipc=1))

    def run() -> None:
        for _ in streams.stream(positions, rded_stream.steps(job), share, None, Silent().note):
            pass

    return run


def evaluation(workers: int, units: int, seconds: float) -> Callable[[], None]:
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
        time.sleep(seconds)
        result = {"data": student.data, "net": "mlp", "seed": student.seed, "images": 10, "accuracy": 0.5}
        of.out.write_json(student.file, result)
        return result

    students.teach = sleep
    source = shared.publish(SourceConfig(name="digits"))
    made = DistilledSet(
        torch.zeros(10, *source.shape), torch.arange(10), 0.01, source.classes,
        fit("normalise", torch.randint(0, 255, (20, *source.shape), dtype=torch.uint8)), {"net": {"name": "mlp"}},
    )  # fmt: skip
    config = EvaluateConfig.model_validate(
        {"kind": "evaluate", "set": "made", "seeds": units // 2, "epochs": 1, "batch": 10, "compile": False,
         "resources": {"num_cpus": 1, "at_once": workers}}
    )  # fmt: skip
    task = protocol.Task(config, made, source, None, 0)
    return lambda: distribution.judge(task, Folder(tempfile.mkdtemp()), Silent()) and None


def _scored(image: Any) -> dict[str, Any]:
    """What a worker hands back of some images: a row each."""
    count = len(image)
    return {
        "image": image, "label": (image * 7919 % CLASSES).astype(np.int64),
        "score": np.sin(image).astype(np.float32), "crop": np.zeros(count, np.int64),
        "box": np.zeros((count, 3), np.int32), "bad": np.full(count, ""),
    }  # fmt: skip


def timed(stage: str, workers: int, units: int, seconds: float) -> dict[str, Any]:
    """Wall time of a stage on so many workers, which are there already."""
    from rayddl.stages.runtime import cluster

    cluster.configure(num_cpus=workers + (stage == "scoring"))
    cluster.start()
    try:
        make = {"experts": experts, "scoring": scoring, "evaluation": evaluation}[stage]
        _awake(make(workers, 2 * workers, 1.0))
        run = make(workers, units * workers, seconds)
        began = time.perf_counter()
        run()
        return {"seconds": time.perf_counter() - began}
    finally:
        cluster.stop()


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


def driver(what: str, count: int) -> dict[str, Any]:
    """MiB that a driver's memory has grown by after ``count`` units, above a tenth of them."""
    levels = []
    for done, total in _many_experts(count) if what == "experts" else _many_images(count):
        if done == total // 10 or done == total:
            levels.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
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


def _many_images(count: int) -> Iterator[tuple[int, int]]:
    """The scored rows of ``count`` images through the running choice of each class's best."""
    from rayddl.methods.patches.select import Best, Rows
    from rayddl.stages.rded.selection import COLUMNS

    best, chunks = Best(40, CLASSES), count // CHUNK
    for chunk in range(chunks):
        block = _scored(np.arange(chunk * CHUNK, (chunk + 1) * CHUNK))
        best.add(Rows(*(block[name] for name in COLUMNS)))
        yield chunk + 1, chunks


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
    """Print two tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--most", type=int, default=32, help="workers, doubled up to so many")
    parser.add_argument("--units", type=int, default=8, help="units of each worker")
    parser.add_argument("--seconds", type=float, default=6.0, help="sleep of a unit")
    parser.add_argument("--stage", choices=STAGES, action="append")
    parser.add_argument("--plot", metavar="FILE")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.row:
        row = json.loads(given.row)
        print(json.dumps(driver(**row) if "what" in row else timed(**row)))
        return
    print(machine.figures())
    rows = []
    workers = [2**k for k in range(given.most.bit_length()) if 2**k <= given.most]
    for stage in given.stage or STAGES:
        for n in workers:
            asked = {"stage": stage, "workers": n, "units": given.units, "seconds": given.seconds}
            found = machine.child("tests.bench.scaling", asked, allocator=False)
            if found is None:
                sys.exit(f"{stage} on {n} workers did not end well")
            wall, ideal = found["seconds"], given.units * given.seconds
            rows.append(
                {"stage": stage, "workers": n, "seconds": wall, "efficiency": ideal / wall,
                 "rate": n * given.units / wall, "ideal": n / given.seconds}
            )  # fmt: skip
            print(f"{stage} on {n}: {wall:.1f} s, {ideal / wall:.2f}", file=sys.stderr)
    shown = [
        {"stage": r["stage"], "workers": str(r["workers"]), "wall s": f"{r['seconds']:.2f}",
         "efficiency": f"{r['efficiency']:.2f}", "units/s": f"{r['rate']:.1f}"}
        for r in rows
    ]  # fmt: skip
    print(machine.table(shown))
    for stage in dict.fromkeys(row["stage"] for row in rows):
        own = [row for row in rows if row["stage"] == stage]
        if len(own) > 1:
            print(f"{stage}: units a second grow as workers^{law(own):.3f}")
    if given.plot:
        plotted(rows, given.plot)
    memory = []
    for what, count in (("experts", EXPERTS), ("images", IMAGES)):
        found = machine.child("tests.bench.scaling", {"what": what, "count": count}, allocator=False)
        if found is not None:
            told = {name: f"{value:.0f}" for name, value in found.items()}
            memory.append({"driver's MiB": f"{count:,} {what}", **told})
    if memory:
        print(machine.table(memory))


if __name__ == "__main__":
    main()
