"""The driver's memory while a source is listed, held-out images are decoded, and a stream of its images is scored.

    uv run python -m tests.bench.driver [--listed 10000 100000 1281167] [--held-out 50000]

Names are made up, and every image has the bytes of one JPEG, so that sources of any size need no files. Survey,
identity and listing of the source, pre-selection, decoding by tasks, the stream and the choice of the best are the
stages' own, on a local Ray of two CPUs; only crops and scores are made up. Each row is a driver of its own; printed is
the peak of its resident memory, without that of Ray's other processes, after each step.
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from tests.bench import machine

CLASSES, SIDE, IPC, FACTOR = 1000, 64, 10, 2
MOST = 2000
"""Images of a class that are looked at: all."""


@cache
def jpeg() -> bytes:
    """The image."""
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "JPEG")
    return sink.getvalue()


@dataclass(frozen=True)
class OneImage:
    """A store in which every image is the same one."""

    data: bytes

    def read(self, listing: Any) -> Iterator[bytes]:
        for _ in range(len(listing)):
            yield self.data

    def unit(self, listing: Any) -> Any:
        return np.zeros(len(listing), np.int64)


def names(top: str, count: int) -> Iterator[tuple[str, int]]:
    """The files of a folder like ImageNet's, in no order of names."""
    del top
    for at in range(count):
        label = at * 7919 % CLASSES
        yield f"n{label:08d}/n{label:08d}_{at}.JPEG", 110_000 + at


def measure(listed: int, held_out: int) -> dict[str, float]:
    """The peaks of this process in MiB."""
    from rayddl import localfiles
    from rayddl.data.config import SourceConfig
    from rayddl.data.sources import known, registry
    from rayddl.stages.runtime import cluster, sources

    counts = {"train": listed, "val": held_out}
    localfiles.walk = lambda top, within: names(top, counts[Path(top).name])  # type: ignore[assignment]
    found = registry.listing

    def of_one_image(config: Any, split: Any = "train") -> Any:
        return replace(found(config, split), store=OneImage(jpeg()))  # type: ignore[type-var]

    registry.listing = of_one_image  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as root, known.Known().used():
        for split in counts:
            for label in range(CLASSES):
                Path(root, split, f"n{label:08d}").mkdir(parents=True)
        config = SourceConfig(name="imagefolder", root=root, size=SIDE)
        cluster.configure(num_cpus=2)
        cluster.start()
        try:
            peaks = {"Ray's start": _peak()}
            registry.fingerprint(config)
            of_one_image(config)
            peaks["train split listed"] = _peak()
            decoded = sources.publish_held_out(config)
            assert decoded.counts == (listed, held_out)
            peaks["held-out decoded"] = _peak()
            peaks["stream scored"] = _streamed(config)
        finally:
            cluster.stop()
    return peaks


def _streamed(config: Any) -> float:
    """The peak after the pre-selection, stream and choice of ``kind: rded``."""
    from rayddl.methods.patches import boxes
    from rayddl.stages.context import Context
    from rayddl.stages.rded import selection
    from rayddl.stages.rded.settings import RdedConfig
    from rayddl.stages.rded.worker import RdedTask
    from rayddl.stages.runtime.listings import listing_of
    from rayddl.storage import Folder

    def scored(block: Any, sent: bytes) -> dict[str, Any]:
        del sent
        image, count = block["image"], len(block["image"])
        return {
            "image": image, "label": (image * 7919 % CLASSES).astype(np.int32),
            "score": np.sin(image).astype(np.float32), "crop": np.zeros(count, np.int32),
            "box": np.zeros((count, 3), np.int32), "bad": np.full(count, ""),
        }  # fmt: skip

    selection.rded_cut_and_judge = scored
    whole = listing_of(config)
    settings = RdedConfig(
        kind="rded", teacher="t", ipc=IPC if len(whole) > 1e5 else 1, factor=FACTOR, mipc=MOST
    )
    chosen = whole.take(boxes.preselected(0, whole.each_name(), whole.labels, MOST))
    job = RdedTask(settings, chosen, (3, SIDE, SIDE), 0, None, 1)
    with tempfile.TemporaryDirectory() as out:
        rows, bad, _ = selection.select(job, Context("picked", config, 0, Folder(out), {}, {}))
    assert len(rows) == settings.ipc * FACTOR**2 * CLASSES
    assert not bad
    return _peak()


def _peak() -> float:
    return machine.resident_peak() / 2**20


def main() -> None:
    """Measure and print."""
    parser = machine.parser(__doc__, row=True)
    parser.add_argument("--listed", type=int, nargs="+", default=(10_000, 100_000, 1_281_167))
    parser.add_argument("--held-out", type=int, default=50_000)
    given = parser.parse_args()
    if given.row:
        print(json.dumps(measure(**json.loads(given.row))))
        return
    print(machine.figures(), flush=True)
    rows = []
    for listed in given.listed:
        row = {"listed": listed, "held_out": given.held_out}
        found = machine.child("tests.bench.driver", row, allocator=False)
        if found is None:
            sys.exit(f"{listed:,} images did not end well")
        counts = {"images listed": f"{listed:,}", "held out": f"{given.held_out:,}"}
        rows.append(counts | {f"MiB: {step}": f"{value:.0f}" for step, value in found.items()})
        print(rows[-1], file=sys.stderr, flush=True)
    print(machine.table(rows))


if __name__ == "__main__":
    main()
