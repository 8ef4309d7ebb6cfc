"""RDED's stream, stage by stage and whole, beside the published code's functions on the same images.

    uv run python -m tests.bench.rded IMAGES.parquet [--reference PATH_OF_RDED_CHECKOUT] [--images 400]

The images of a Parquet file (column ``image``: encoded bytes) are repeated to a stated number, five crops
of each are scored by a ResNet-18 of 1,000 classes (random weights: speed does not depend on them).
Every row runs in a process of its own, rows alternate, and the figure is the median over rounds. Memory is
that of all processes together (proportional set size), with a small observer, for two lengths of the stream.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.bench import machine

SIZE, CROPS, CLASSES = 224, 5, 1000
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LISTED = 1_281_167
WARM = 128
"""Images of a first stream, after which workers are there and have imported what they need."""


def measure(row: dict[str, Any]) -> dict[str, Any]:
    """One row's figures: images per second, and more where it has more."""
    rows: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
        "cut": _cut, "score": _score, "whole": _whole, "listing": _listing,
        "original": _original,
    }  # fmt: skip
    return rows[row["what"]](row)


def _job(row: dict[str, Any]) -> Any:
    import numpy as np
    import pyarrow.parquet as pq
    import ray

    from rayddl.data.sources.listing import ParquetStore, sorted_listing
    from rayddl.methods.training.observer import Observer
    from rayddl.nets.build import build
    from rayddl.nets.config import NetConfig
    from rayddl.stages.rded.settings import RdedConfig
    from rayddl.stages.rded.worker import RdedTask
    from rayddl.storage import Folder

    path = Path(row["data"]).resolve()
    groups = pq.ParquetFile(path).metadata
    rows = [groups.row_group(g).num_rows for g in range(groups.num_row_groups)]
    count, total = row["images"], sum(rows)
    at = np.arange(count, dtype=np.int64) % total
    store = ParquetStore(
        Folder(str(path.parent)),
        (path.name,),
        "image",
        (tuple(np.concatenate([[0], np.cumsum(rows)]).tolist()),),
    )
    names = [f"{k:07d}" for k in range(count)]
    listing = sorted_listing(
        names, (at % CLASSES).astype(np.int32), tuple(str(c) for c in range(CLASSES)), store, at=at
    )
    config = RdedConfig(
        kind="rded", teacher="t", ipc=1, factor=2, num_crops=CROPS,
        scoring=row.get("scoring", "published"), precision=row.get("precision", "bf16"),
    )  # fmt: skip
    net = (
        NetConfig(name="tv_resnet18")
        if row.get("net") != "small"
        else NetConfig(depth=4, width=4, norm="batch")
    )
    module = build(net, (3, SIZE, SIZE), CLASSES, seed=0).eval()
    seen = Observer(module, net, listing.classes, (3, SIZE, SIZE), MEAN, STD, None)
    reference = ray.put(seen) if ray.is_initialized() else seen
    return RdedTask(config, listing, (3, SIZE, SIZE), 0, reference, 1)


def _cut(row: dict[str, Any]) -> dict[str, Any]:
    import numpy as np
    import torch

    from rayddl.data.sources.listing import CHUNK
    from rayddl.stages.rded.worker import cut_images

    torch.set_num_threads(1)
    job = _job(row)
    parts = [np.arange(i, min(i + CHUNK, len(job.listing))) for i in range(0, len(job.listing), CHUNK)]
    cut_images(job, parts[0])
    began = time.perf_counter()
    done = sum(len(cut_images(job, part)["image"]) for part in parts)
    return {"rate": done / (time.perf_counter() - began)}


def _score(row: dict[str, Any]) -> dict[str, Any]:
    import torch

    from rayddl.methods.patches.score import Scorer
    from rayddl.stages.runtime import machine as here

    torch.set_num_threads(here.cpus())
    job = _job(row)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pad = row["scoring"] == "published"
    batch = 1280 if device.type == "cuda" else 40
    dtype = torch.bfloat16 if row["precision"] == "bf16" else torch.float32
    scorer = Scorer(
        job.observer.module.to(device), torch.tensor(MEAN), torch.tensor(STD),
        size=SIZE, pad=pad, batch=batch, dtype=dtype,
    )  # fmt: skip
    count = row["images"] * CROPS // batch * batch
    patches = torch.randint(0, 256, (count, 3, SIZE // 2, SIZE // 2), dtype=torch.uint8)
    labels = torch.zeros(count, dtype=torch.int64)
    scorer(patches[:batch], labels[:batch])
    began = time.perf_counter()
    scorer(patches, labels)
    return {"rate": count / CROPS / (time.perf_counter() - began)}


def _whole(row: dict[str, Any]) -> dict[str, Any]:
    """The Ray Data stream over workers that have started, as the published loader's figure has no start in it
    either; ``overall`` counts Ray's and the workers' start.
    """
    from rayddl.stages.runtime import cluster

    began = time.perf_counter()
    cluster.start()
    _stream({**row, "images": WARM})
    started = time.perf_counter() - began
    memory = _Memory()
    seconds, winners = _stream(row)
    peak, driver = memory.stop()
    cluster.stop()
    return {
        "rate": row["images"] / seconds, "overall": row["images"] / (started + seconds),
        "winners": winners, "bytes": peak, "driver": driver,
    }  # fmt: skip


def _stream(row: dict[str, Any]) -> tuple[float, int]:
    """Seconds for the whole stream with its start, and winners found."""
    import numpy as np

    from rayddl.methods.patches.select import Best, CropRows
    from rayddl.stages.rded.selection import steps
    from rayddl.stages.runtime.workers import OnRay, quiet

    job = _job(row)
    best, began = Best(job.per_class, CLASSES), time.perf_counter()
    for block in OnRay().stream(np.arange(len(job.listing)), steps(job), job.config.asks, quiet):
        kept = block["bad"] == ""
        best.add(CropRows(*(block[c][kept] for c in ("image", "label", "score", "crop", "box"))))
    return time.perf_counter() - began, len(best.rows())


class _Memory:
    """The largest memory of this process and all below it, looked at twice a second."""

    def __init__(self) -> None:
        import psutil

        self._psutil, self._all, self._own, self._over = psutil, 0, 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        own = self._psutil.Process()
        while not self._over.wait(0.5):
            total = 0
            for process in [own, *own.children(recursive=True)]:
                with suppress(self._psutil.Error):  # it may just have ended
                    total += process.memory_full_info().pss
            self._all, self._own = max(self._all, total), max(self._own, own.memory_info().rss)

    def stop(self) -> tuple[int, int]:
        self._over.set()
        self._thread.join()
        return self._all, self._own


def _listing(row: dict[str, Any]) -> dict[str, Any]:
    import numpy as np
    import pyarrow as pa

    from rayddl.data.sources.listing import FileStore, sorted_listing
    from rayddl.methods.patches.boxes import preselected
    from rayddl.storage import Folder

    began = time.perf_counter()
    labels = (np.arange(LISTED) * 7919 % CLASSES).astype(np.int32)
    names = pa.array(
        (f"n{c:08d}/n{c:08d}_{k}.JPEG" for k, c in enumerate(labels.tolist())), pa.large_string()
    )
    listing = sorted_listing(names, labels, tuple(map(str, range(CLASSES))), FileStore(Folder("nowhere")))
    chosen = listing.take(preselected(0, listing.each_name(), listing.labels, row["mipc"]))
    chunks = len(chosen.bounds()) - 1
    seconds = time.perf_counter() - began
    return {"rate": LISTED / seconds, "seconds": seconds, "chunks": chunks, "bytes": machine.peak_bytes()}


def _original(row: dict[str, Any]) -> dict[str, Any]:
    """The published functions: loader and crops alone, scoring alone, or one feeding the other."""
    import torch

    from rayddl.stages.runtime import machine as here

    code = _checkout(row["reference"])
    with tempfile.TemporaryDirectory() as folder:
        loader = _published_loader(code, row, folder, here.cpus())
        net = _published_net().eval()
        if torch.cuda.is_available():
            net = net.cuda()
        began, done, kept = time.perf_counter(), 0, None
        for images, labels in loader:
            if row["part"] == "score":
                kept = (images, labels)
                break
            if row["part"] == "whole":
                code.selector(4, net, images, labels, SIZE, m=CROPS)
            done += len(images)
        if kept is not None:
            began, done = time.perf_counter(), 0
            while time.perf_counter() - began < 10:
                code.selector(4, net, *kept, SIZE, m=CROPS)
                done += len(kept[0])
        return {"rate": done / (time.perf_counter() - began)}


def _published_net() -> Any:
    import torchvision

    return torchvision.models.resnet18(weights=None)


def _checkout(path: str) -> Any:
    """The checkout's modules, which read the command line and ask for a GPU when they are imported."""
    import importlib

    import torch

    if not torch.cuda.is_available():
        torch.Tensor.cuda = lambda self, *_, **__: self
    arguments, sys.argv = sys.argv, ["main.py", "--subset", "imagenet-1k", "--arch-name", "resnet18"]
    sys.path.insert(0, path)
    try:
        utils = importlib.import_module("synthesize.utils")
        utils.ImageFolder = importlib.import_module("validation.utils").ImageFolder  # type: ignore[attr-defined]  # not imported by it
    finally:
        sys.path.remove(path)
        sys.argv = arguments
    return utils


def _published_loader(code: Any, row: dict[str, Any], folder: str, workers: int) -> Any:
    import pyarrow.parquet as pq
    import torch
    from torchvision import transforms

    blobs = pq.read_table(row["data"], columns=["image"]).column(0).to_pylist()
    blobs = [b["bytes"] if isinstance(b, dict) else b for b in blobs]
    per_class = row["images"] // 4
    for c in range(4):
        place = Path(folder) / f"{c:05d}"
        place.mkdir()
        for k in range(per_class):
            (place / f"{k:05d}.jpg").write_bytes(blobs[(c * per_class + k) % len(blobs)])
    crop = code.MultiRandomCrop(num_crop=CROPS, size=SIZE, factor=2)
    data = code.ImageFolder(
        classes=range(4), ipc=per_class, shuffle=True, root=folder,
        transform=transforms.Compose([transforms.ToTensor(), crop, code.normalize]),
    )  # fmt: skip
    # One process where the loader is measured alone, as ours is; else as many as there are CPUs.
    processes = 0 if row["part"] == "cut" else workers
    return torch.utils.data.DataLoader(data, batch_size=min(per_class, 25), num_workers=processes)


def main() -> None:
    parser = machine.parser(__doc__, rounds=3, reference="RDED", row=True)
    parser.add_argument("data", nargs="?", help="a Parquet file of images")
    parser.add_argument("--images", type=int, default=400, help="what the images are repeated to")
    parser.add_argument("--stream", type=int, default=2000, help="likewise for our whole stream")
    parser.add_argument("--lengths", type=int, nargs=2, default=(1000, 20_000), help="for the memory rows")
    given = parser.parse_args()
    if given.row:
        print(json.dumps(measure(json.loads(given.row))))
        return
    print(machine.figures(), flush=True)
    print(machine.table(_rates(given)), flush=True)
    print(machine.table(_memory(given)), flush=True)
    found = machine.child("tests.bench.rded", {"what": "listing", "mipc": 300}, allocator=False)
    if found:
        print(
            f"listing of {LISTED:,} names, 300 of each of {CLASSES} classes drawn, {found['chunks']:,} chunks: "
            f"{found['seconds']:.1f} s, {found['bytes'] / 2**20:.0f} MiB"
        )


def _rates(given: argparse.Namespace) -> list[dict[str, str]]:
    base = {"data": given.data, "images": given.images}
    rows: dict[str, tuple[dict[str, Any], bool]] = {}
    if given.reference:
        for part, label in (("cut", "decode + crops, 1 process"), ("score", "scoring"), ("whole", "whole")):
            rows[f"original: {label}"] = (
                {**base, "what": "original", "part": part, "reference": given.reference},
                False,
            )
    for scoring in ("published", "native"):
        rows[f"rayddl {scoring}: decode + crops, 1 process"] = (
            {**base, "what": "cut", "scoring": scoring},
            True,
        )
        rows[f"rayddl {scoring}: scoring, bf16"] = (
            {**base, "what": "score", "scoring": scoring, "precision": "bf16"}, True,
        )  # fmt: skip
        whole = {**base, "images": given.stream, "what": "whole", "scoring": scoring}
        rows[f"rayddl {scoring}: whole stream, bf16"] = (whole, True)
    rates: dict[str, list[float]] = {name: [] for name in rows}
    overall: dict[str, float] = {}
    for _ in range(given.rounds):
        for name, (row, allocator) in rows.items():
            found = machine.child("tests.bench.rded", row, allocator=allocator)
            if found:
                rates[name].append(found["rate"])
                overall[name] = found.get("overall", found["rate"])
    reference = {
        n.split(": ")[1].split(",")[0].split(" ")[0]: statistics.median(r)
        for n, r in rates.items()
        if n.startswith("original") and r
    }
    table = []
    for name, found in rates.items():
        if not found:
            continue
        rate = statistics.median(found)
        against = reference.get(name.split(": ")[1].split(",")[0].split(" ")[0])
        table.append(
            {
                "row": name,
                "images/s": f"{rate:.1f} ({min(found):.1f}-{max(found):.1f})",
                "with the start": f"{overall[name]:.1f}" if "whole" in name else "",
                "times the original": f"{rate / against:.1f}" if against else "",
            }
        )
    return table


def _memory(given: argparse.Namespace) -> list[dict[str, str]]:
    table = []
    for count in given.lengths:
        row = {"what": "whole", "data": given.data, "images": count, "net": "small"}
        found = machine.child("tests.bench.rded", row, allocator=False)
        if found:
            table.append(
                {
                    "stream of": f"{count:,} images",
                    "images/s": f"{found['rate']:.0f}",
                    "all processes": f"{found['bytes'] / 2**20:.0f} MiB",
                    "driver": f"{found['driver'] / 2**20:.0f} MiB",
                }
            )
    return table


if __name__ == "__main__":
    main()
