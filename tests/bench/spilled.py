"""A teacher and an evaluation on more images than the object store holds: the driver, what is spilled, results.

    uv run python -m tests.bench.spilled --folder FOLDER [--train 20000] [--held-out 50000] [--store 1.0]

Writes JPEGs of 224 pixels into FOLDER once: noise with a tint of its class. A local Ray with an object store of
``--store`` GiB then trains a teacher on the train split and evaluates a set of random images on the held-out one.
Printed are the peak of the driver's resident memory, the most that was in spilled files, and the teacher's held-out
accuracy beside that of a plain loop over the same files, which decodes with PIL in this process.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from rayddl.pipeline.display.plain import Plain
from rayddl.storage import Folder
from tests.bench import machine

SIDE, CLASSES, QUALITY = 224, 10, 75
NET = {"name": "convnet", "depth": 5, "width": 8, "norm": "batch"}
STAGES = {
    "teacher": {
        "kind": "teacher",
        "net": NET,
        "epochs": 1,
        "batch": 128,
        "augment": "none",
        "allow_weak": True,
    },
    "random": {"kind": "coreset", "method": "random", "ipc": 1},
    "evaluate": {
        "kind": "evaluate",
        "set": "random",
        "nets": [NET],
        "seeds": 1,
        "epochs": 20,
        "random": False,
    },
}


def write(folder: Path, split: str, numbers: range) -> None:
    """Write the images of these numbers, each into the folder of its class."""
    from PIL import Image

    draws = np.random.default_rng([numbers.start, len(split)])
    for number in numbers:
        label = number % CLASSES
        tint = 40.0 * np.array([label & 1, label >> 1 & 1, label >> 2 & 1]) + 20 * (label >> 3)
        pixels = draws.normal(100, 50, (SIDE, SIDE, 3)).astype(np.float32) + tint
        path = folder / split / f"c{label}" / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, "JPEG", quality=QUALITY)


def written(folder: Path, counts: dict[str, int]) -> None:
    """Write what is missing; a file ``SPLIT-COUNT`` marks a whole split."""
    for split, count in counts.items():
        mark = folder / f"{split}-{count}"
        if not mark.exists():
            with ProcessPoolExecutor() as pool:
                parts = [range(start, min(start + 1000, count)) for start in range(0, count, 1000)]
                list(pool.map(write, [folder] * len(parts), [split] * len(parts), parts))
            mark.touch()


class Spilled:
    """The most bytes in the files into which Ray spills objects, watched while a run goes on."""

    def __init__(self) -> None:
        self.most = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Spilled:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        from rayddl.stages.runtime import local

        while not self._over.wait(1.0):
            if local._running is not None:
                files = Path(local._running.private).glob("r/session_*/ray_spilled_objects*/*")
                self.most = max(self.most, sum(_size(file) for file in files))


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0  # deleted since


def plain(folder: Path, observer_folder: Folder) -> float:
    """The accuracy of the saved teacher on the held-out files, each decoded with PIL."""
    import torch
    from PIL import Image

    from rayddl.methods.training.observer import Observer

    seen = Observer.load(observer_folder)
    net = seen.on(torch.device("cpu")).module
    mean, std = (torch.tensor(each).view(-1, 1, 1) for each in (seen.mean, seen.std))
    files = sorted((folder / "val").glob("*/*.jpg"))
    right = 0
    with torch.no_grad():
        for start in range(0, len(files), 200):
            part = files[start : start + 200]
            pixels = np.stack([np.asarray(Image.open(file)) for file in part])
            images = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std
            answers = net(images).argmax(1).tolist()
            right += sum(f"c{answer}" == file.parent.name for answer, file in zip(answers, part, strict=True))
    return right / len(files)


def measure(folder: str, store: float) -> dict[str, Any]:
    """Run the definition in this process, the driver."""
    import rayddl
    from rayddl.stages.runtime import local

    local.store_bytes = lambda: int(store * 2**30)
    source = {"name": "imagefolder", "root": folder, "size": SIDE}
    definition = {"name": "spilled", "source": source, "stages": STAGES}
    began = time.perf_counter()
    with Spilled() as spilled:
        result = rayddl.run(
            definition, out=f"{folder}/runs-{os.getpid()}", num_cpus=2, progress=Plain(sys.stderr)
        )
    return {
        "s": time.perf_counter() - began,
        "peak": machine.resident_peak(),
        "spilled": spilled.most,
        "accuracy": result.summaries["teacher"]["accuracy"],
        "observer": f"{result.folders['teacher']}/observer",
        "tested": result.summaries["evaluate"]["tested"],
    }


def main() -> None:
    """Write, run and print."""
    parser = machine.parser(__doc__, row=True)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--train", type=int, default=20_000)
    parser.add_argument("--held-out", type=int, default=50_000)
    parser.add_argument("--store", type=float, default=1.0, help="GiB")
    given = parser.parse_args()
    if given.row:
        print(json.dumps(measure(**json.loads(given.row))))
        return
    if given.folder is None:
        parser.error("--folder is where the images are written")
    print(machine.figures(), flush=True)
    written(given.folder, {"train": given.train, "val": given.held_out})
    found = machine.child(
        "tests.bench.spilled", {"folder": str(given.folder), "store": given.store}, allocator=False
    )
    if found is None:
        sys.exit("the run did not end well")
    by_hand = plain(given.folder, Folder(found["observer"]))
    row = {
        "train": f"{given.train:,}",
        "held out": f"{given.held_out:,}",
        "store GiB": f"{given.store:g}",
        "driver's peak MiB": f"{found['peak'] / 2**20:.0f}",
        "spilled GiB": f"{found['spilled'] / 2**30:.1f}",
        "s": f"{found['s']:.0f}",
        "teacher %": f"{100 * found['accuracy']:.3f}",
        "plain loop %": f"{100 * by_hand:.3f}",
        "tested": f"{found['tested']:,}",
    }
    print(machine.table([row]))
    # Images on the border between two classes may change sides with the order of additions.
    if found["tested"] != given.held_out or abs(by_hand - found["accuracy"]) * given.held_out > 2:
        sys.exit("the results are not right")
    if found["peak"] >= 2**30 or not found["spilled"]:
        sys.exit("the driver's peak is 1 GiB or more, or nothing was spilled")


if __name__ == "__main__":
    main()
