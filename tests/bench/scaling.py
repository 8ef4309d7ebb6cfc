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
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from tests.bench import machine

STAGES = ("experts", "scoring", "evaluation")
CHUNK = 64
"""Images in one chunk of the listing."""
EXPERTS, IMAGES, CLASSES = 10_000, 1_281_167, 1000


def experts(workers: int, units: int, seconds: float) -> Callable[[], None]:
    """The experts' stage, with training replaced."""
    from rayddl.data.config import SourceConfig
    from rayddl.stages import cluster, experts
    from rayddl.stages.configs.experts import ExpertsConfig
    from rayddl.stages.context import Context
    from rayddl.storage import Folder

    def sleep(job: Any, index: int, board: Any) -> None:
        for epoch in range(1, 5):
            time.sleep(seconds / 4)
            board.say.remote(f"expert {index}", epoch, "")
        job.out.write(f"expert-{index:04d}.safetensors", b"x" * 1000)

    experts.train_one = sleep
    out = Folder(tempfile.mkdtemp())
    config = ExpertsConfig(kind="experts", count=units, epochs=4)
    context = Context("experts", SourceConfig(name="digits"), 0, out, {}, {})
    # Without what real workers read: none of them has to import torch.
    job: Any = SimpleNamespace(config=config, compile=False, out=out)
    share = cluster.Share(1, 0, None, workers)
    return lambda: experts._train_missing(job, share, list(range(units)), context)


def scoring(workers: int, units: int, seconds: float) -> Callable[[], None]:
    """RDED's stream, with decoding and scoring replaced; a unit is as many chunks as a task has at most."""
    from rayddl.stages import cluster, rded_stream
    from rayddl.stages.context import Silent

    def sleep(block: Any, sent: bytes) -> Any:
        del sent
        time.sleep(seconds / each)
        return _scored(int(block["chunk"][0]))

    rded_stream.cut_and_judge = sleep
    share = cluster.Share(1, 0, None, workers)
    each = rded_stream.CHUNKS_A_BLOCK
    numbers = np.arange(units * each)

    def run() -> None:
        for _ in rded_stream.stream(None, numbers, share, None, Silent()):  # type: ignore[arg-type]
            pass

    return run


def evaluation(workers: int, units: int, seconds: float) -> Callable[[], None]:
    """The judging of a set, with students replaced."""
    import torch

    from rayddl.data.config import SourceConfig
    from rayddl.data.distilled import DistilledSet
    from rayddl.data.space import fit
    from rayddl.stages import lessons, shared, students
    from rayddl.stages.configs.evaluate import EvaluateConfig
    from rayddl.stages.context import Silent
    from rayddl.storage import Folder

    def sleep(of: Any, lesson: Any, student: Any) -> dict[str, Any]:
        del lesson
        time.sleep(seconds)
        result = {"data": student.lesson, "net": "mlp", "seed": student.seed, "images": 10, "accuracy": 0.5}
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
    task = lessons.Task(config, made, source, None, 0)
    return lambda: lessons.judge(task, Folder(tempfile.mkdtemp()), Silent()) and None


def _scored(chunk: int) -> dict[str, Any]:
    """What a worker hands back of a chunk: a row an image."""
    image = np.arange(chunk * CHUNK, (chunk + 1) * CHUNK)
    return {
        "chunk": np.full(CHUNK, chunk), "seen": np.eye(1, CHUNK, dtype=np.int64)[0] * CHUNK,
        "image": image, "label": (image * 7919 % CLASSES).astype(np.int64),
        "score": np.sin(image).astype(np.float32), "crop": np.zeros(CHUNK, np.int64),
        "box": np.zeros((CHUNK, 3), np.int32), "bad": np.full(CHUNK, ""),
    }  # fmt: skip


def timed(stage: str, workers: int, units: int, seconds: float) -> dict[str, Any]:
    """Wall time of a stage on so many workers, which are there already."""
    import ray

    from rayddl.stages import cluster

    cluster.configure(num_cpus=workers + (stage == "scoring"))
    cluster.start()
    try:
        # As many processes as work at once, and one round of the stage, so that nothing is begun in the timed one.
        awake = ray.remote(num_cpus=1)(lambda: time.sleep(1.0))
        ray.get([awake.remote() for _ in range(2 * workers)])
        make = {"experts": experts, "scoring": scoring, "evaluation": evaluation}[stage]
        make(workers, 2 * workers, 0.05)()
        run = make(workers, units * workers, seconds)
        began = time.perf_counter()
        run()
        return {"seconds": time.perf_counter() - began}
    finally:
        cluster.stop()


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

    from rayddl.stages import cluster, pool

    def nothing(job: Any, index: int) -> None:
        del job, index

    cluster.configure(num_cpus=2)
    cluster.start()
    task, job = cluster.task(nothing, cluster.Share(1, 0, None, 2)), ray.put(np.zeros(1_000_000))
    for done, _ in enumerate(pool.as_they_finish(range(count), lambda i: task.remote(job, i), 2), start=1):
        yield done, count
    cluster.stop()


def _many_images(count: int) -> Iterator[tuple[int, int]]:
    """The scored rows of ``count`` images through the running choice of each class's best."""
    from rayddl.patches.select import Best, Rows
    from rayddl.stages.rded_select import COLUMNS

    best, chunks = Best(40, CLASSES), count // CHUNK
    for chunk in range(chunks):
        block = _scored(chunk)
        best.add(Rows(*(block[name] for name in COLUMNS)))
        yield chunk + 1, chunks


def plotted(rows: list[dict[str, Any]], path: str) -> None:
    """Units a second against workers, and what they would be without loss, as an SVG."""
    lines, side = [], 360
    most = max(row["workers"] for row in rows)
    top = max(row["ideal"] for row in rows)
    for stage, colour in zip((*STAGES, "ideal"), ("#1b6ca8", "#c0392b", "#2e8b57", "#999999"), strict=True):
        own = [r for r in rows if r["stage"] == (STAGES[0] if stage == "ideal" else stage)]
        points = " ".join(
            f"{40 + side * r['workers'] / most:.1f},"
            f"{20 + side * (1 - (r['ideal'] if stage == 'ideal' else r['rate']) / top):.1f}"
            for r in own
        )
        lines.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{points}"/>')
        at = 40 + 16 * len(lines)
        lines.append(f'<text x="60" y="{at}" fill="{colour}" font-size="13">{stage}</text>')
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {side + 60} {side + 50}" font-family="sans-serif">'
    told = f"workers (to {most}); up: units a second (to {top:.0f})"
    axis = f'<text x="{side / 2}" y="{side + 42}" font-size="12">{told}</text>'
    Path(path).write_text("\n".join([head, *lines, axis, "</svg>"]), encoding="utf-8")


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
