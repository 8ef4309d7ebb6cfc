"""Images on an S3 server on loopback that answers each request late: images per second of a worker, and requests.

    uv run python -m tests.bench.far [--images 1024] [--delay 0.06] [--rounds 3] [--run]

Every row runs in a process of its own, which stands for one worker. The server counts the requests. With `--run`, a
definition with a teacher, a selection and an evaluation runs on the same images, and is run again after it was ended
in its middle.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.bench import machine
from tests.objectstore import ObjectStore, serving

SIDE, CLASSES, SHARD, GROUP = 224, 4, 256, 100
LAYOUTS = {
    "files": {"name": "imagefolder", "size": 64},
    "tar": {"name": "webdataset", "size": 64},
    "parquet": {"name": "parquet", "size": 64},
}
DEFINITION = """
name: far
source: {{name: imagefolder, root: "{root}", size: 32}}
stages:
  teacher: {{kind: teacher, net: {{name: convnet, depth: 2, width: 8, norm: batch}}, epochs: 1, allow_weak: true,
             compile: false}}
  picked: {{kind: rded, teacher: teacher, ipc: 2, factor: 1, mipc: 40, num_crops: 2, precision: fp32}}
  evaluate: {{kind: evaluate, set: picked, observer: teacher, epochs: 2, seeds: 1, compile: false}}
  report: {{kind: report}}
"""


def main() -> None:
    parser = machine.parser(__doc__, rounds=3, row=True)
    parser.add_argument("--images", type=int, default=1024, help="of each split and layout")
    parser.add_argument("--delay", type=float, default=0.06, help="seconds that the server adds to a request")
    parser.add_argument("--run", action="store_true", help="count the requests of a whole run, too")
    given = parser.parse_args()
    if given.row:
        print(json.dumps(measure(json.loads(given.row))))
        return
    print(machine.figures(), flush=True)
    # What is written needs no delay.
    with serving() as store:
        _upload(store, given.images)
        store.delay(given.delay)
        if given.rounds:
            print(machine.table(_rates(store, given.rounds)), flush=True)
        if given.run:
            print(machine.table(_run(store)), flush=True)


def _images(count: int) -> list[bytes]:
    import numpy as np
    from PIL import Image

    draws, found = np.random.default_rng(0), []
    for _ in range(count):
        # Noise of large grain, so that a file has the size of a photo's.
        pixels = draws.integers(0, 256, (SIDE // 8, SIDE // 8, 3), np.uint8)
        sink = io.BytesIO()
        Image.fromarray(pixels).resize((SIDE, SIDE)).save(sink, "JPEG", quality=95)
        found.append(sink.getvalue())
    return found


def _upload(store: ObjectStore, count: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from rayddl.storage import Folder

    images = _images(count)
    files: dict[str, bytes] = {}
    for split, stem in (("train", "train"), ("val", "test")):
        for k, data in enumerate(images):
            files[f"files/{split}/class-{k % CLASSES}/{k:06d}.jpg"] = data
        for shard, start in enumerate(range(0, count, SHARD)):
            sink = io.BytesIO()
            with tarfile.open(fileobj=sink, mode="w") as tar:
                for k in range(start, min(start + SHARD, count)):
                    for ending, data in (("jpg", images[k]), ("cls", b"class-%d" % (k % CLASSES))):
                        member = tarfile.TarInfo(f"{k:06d}.{ending}")
                        member.size = len(data)
                        tar.addfile(member, io.BytesIO(data))
            files[f"tar/{stem}-{shard:04d}.tar"] = sink.getvalue()
        sink = io.BytesIO()
        table = pa.table({"image": images, "label": [f"class-{k % CLASSES}" for k in range(count)]})
        pq.write_table(table, sink, row_group_size=GROUP)
        files[f"parquet/{stem}.parquet"] = sink.getvalue()
    folder = Folder(store.uri("data"))
    folder.has("nothing")  # opened once, by this thread
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda item: folder.write(*item), files.items()))


def measure(row: dict[str, Any]) -> dict[str, Any]:
    """Images per second, with the requests, of one row."""
    import numpy as np

    from rayddl.data.config import SourceConfig
    from rayddl.data.sources import registry

    store = ObjectStore(row["port"])
    config = SourceConfig(**LAYOUTS[row["layout"]], root=store.uri(f"data/{row['layout']}"))
    store.counts()
    began = time.perf_counter()
    listed = registry.listing(config, "test")
    assert listed is not None
    listing, seconds = store.counts(), time.perf_counter() - began
    read: dict[str, Callable[..., int]] = {"chunks": _chunks, "decoded": _decoded}
    # Imports and connections come first.
    read[row["what"]](config, listed.take(np.arange(2)))
    store.counts()
    began = time.perf_counter()
    count = read[row["what"]](config, listed)
    return {
        "rate": count / (time.perf_counter() - began), "count": count, "requests": store.counts(),
        "listing": listing, "seconds": seconds,
    }  # fmt: skip


def _chunks(config: Any, listed: Any) -> int:
    """Chunks as RDED's cutters read them, without their work."""
    import numpy as np

    del config
    edges = itertools.pairwise(listed.bounds().tolist())
    return sum(isinstance(blob, bytes) for a, b in edges for blob in listed.read(np.arange(a, b)))


def _decoded(config: Any, listed: Any) -> int:
    """The whole split decoded, as held-out images are."""
    from rayddl.data.sources import registry

    return len(registry.decoded(config, listed)[0].labels)


def _rates(store: ObjectStore, rounds: int) -> list[dict[str, str]]:
    names = {"chunks": "chunks of 64 read", "decoded": "split decoded"}
    rows = [(layout, what) for layout in LAYOUTS for what in names]
    found: dict[tuple[str, str], list[dict[str, Any]]] = {row: [] for row in rows}
    for _ in range(rounds):
        for layout, what in rows:
            row = {"port": store.port, "layout": layout, "what": what}
            result = machine.child("tests.bench.far", row, allocator=False)
            found[layout, what] += [result] if result else []
    table = []
    for (layout, what), results in found.items():
        rates, last = [r["rate"] for r in results], results[-1]
        per = {kind: last["requests"].get(kind, 0) / last["count"] for kind in ("GET", "HEAD", "LIST")}
        table.append({
            "images in": layout, "work": names[what],
            "images/s": f"{statistics.median(rates):.0f} ({min(rates):.0f}-{max(rates):.0f})",
            **{f"{kind} an image": f"{value:.3f}" for kind, value in per.items()},
            "listing before": f"{_written(last['listing'])} in {last['seconds']:.1f} s",
        })  # fmt: skip
    return table


def _written(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))


def _begun(out: Path) -> bool:
    """True if the run's record says that its teacher is running; before, files may change and are listed again."""
    return any(
        json.loads(record.read_text())["stages"]["teacher"]["state"] == "running"
        for record in out.glob("*.run.json")
    )


def _run(store: ObjectStore) -> list[dict[str, str]]:
    """The requests of a run, of one that is ended in its middle, and of the one that goes on."""
    table = []
    with tempfile.TemporaryDirectory() as place:
        file = Path(place, "far.yaml")
        file.write_text(DEFINITION.format(root=store.uri("data/files")))
        for name, out, stop in (
            ("whole run", "whole", False),
            ("ended in its teacher", "other", True),
            ("goes on", "other", False),
        ):
            store.counts()
            began = time.perf_counter()
            log = Path(place, f"{name}.log")
            with log.open("w") as sink:
                process = subprocess.Popen(
                    [sys.executable, "-m", "rayddl", "run", str(file), "--out", f"{place}/{out}", "--num-cpus", "2"],
                    stdout=sink, stderr=sink, env={**os.environ, "PYTHONWARNINGS": "ignore"},
                )  # fmt: skip
                while stop and process.poll() is None and not _begun(Path(place, out)):
                    time.sleep(0.05)
                if stop:
                    process.send_signal(signal.SIGKILL)
                code = process.wait()
            if code and not stop:
                print(log.read_text()[-3000:], file=sys.stderr)
            counts: Counter[str] = store.counts()
            kinds = {kind: str(counts.get(kind, 0)) for kind in ("LIST", "HEAD", "GET")}
            table.append(
                {"run": name, **kinds, "seconds": f"{time.perf_counter() - began:.0f}", "exit": str(code)}
            )
    if any(int(row["HEAD"]) for row in table) or int(table[-1]["LIST"]):
        print(machine.table(table), flush=True)
        sys.exit("sizes were asked for, or files listed again by the command that went on")
    return table


if __name__ == "__main__":
    main()
