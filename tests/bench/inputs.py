"""What checking inputs costs: reading small images, listing many names, planning; against another commit, in turns.

    uv run python -m tests.bench.inputs [--against COMMIT] [--images 10000] [--names 1281167] [--repeats 3]

Each figure is taken in a process of its own. With ``--against``, the other commit is checked out into a temporary git
worktree, the two are measured alternately, and each ratio is of the medians; below 1, this tree is faster.
Seconds are of the processor, so that other work on the machine counts little, and without the kernel's: on a virtual
machine, one and the same memory takes ten times as long where the host has yet to provide it.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[2]
SIDE, CLASSES = 32, 10
LARGEST = "pipelines/quickstart-compare.yaml"
"""The shipped definition with the most stages."""
LAYOUTS = {"imagefolder": "imagefolder", "parquet": "parquet", "tar": "webdataset"}


def data(folder: Path, images: int, names: int) -> None:
    """Write small PNG images in each layout, and a Parquet file of many short cells that differ."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    draws = np.random.default_rng(0)
    cells = []
    for _ in range(images):
        sink = io.BytesIO()
        Image.fromarray(draws.integers(256, size=(SIDE, SIDE, 3), dtype=np.uint8)).save(sink, "PNG")
        cells.append(sink.getvalue())
    for split, part in (("train", cells), ("test", cells[:CLASSES])):
        for k in range(CLASSES):
            (folder / "imagefolder" / split / f"c{k}").mkdir(parents=True)
        for layout in ("parquet", "tar", "names"):
            (folder / layout).mkdir(parents=True, exist_ok=True)
        labels = [k % CLASSES for k in range(len(part))]
        table = pa.table({"image": part, "label": labels})
        pq.write_table(table, folder / "parquet" / f"{split}.parquet", row_group_size=1000)
        with tarfile.open(folder / "tar" / f"{split}.tar", "w") as tar:
            for k, cell in enumerate(part):
                (folder / "imagefolder" / split / f"c{k % CLASSES}" / f"{k:06d}.png").write_bytes(cell)
                for name, content in ((f"{k:06d}.png", cell), (f"{k:06d}.cls", str(k % CLASSES).encode())):
                    head = tarfile.TarInfo(name)
                    head.size = len(content)
                    tar.addfile(head, io.BytesIO(content))
        count = names if split == "train" else CLASSES
        rows = {
            "image": [k.to_bytes(8, "big") for k in range(count)],
            "label": [f"n{k * 7919 % 1000:08d}" for k in range(count)],
        }
        if split == "test":
            rows["label"] = rows["label"][:1] * count
        pq.write_table(pa.table(rows), folder / "names" / f"{split}.parquet", row_group_size=100_000)


def measured(what: str, folder: Path) -> float:
    """Processor seconds of one piece of work, over all threads, without imports: it was done before on little."""
    _work(what, folder / "few")
    began = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    _work(what, folder)
    return resource.getrusage(resource.RUSAGE_SELF).ru_utime - began


def _work(what: str, folder: Path) -> None:
    from rayddl.data.config import SourceConfig
    from rayddl.data.sources import registry

    if what == "plan":
        import rayddl

        rayddl.plan(folder / "largest.yaml", out=folder / "runs")
    elif what == "names":
        registry.listing(SourceConfig(name="parquet", root=str(folder / "names")))
    else:
        own = {"test": "test"} if what == "imagefolder" else {}
        config = {"name": LAYOUTS[what], "root": str(folder / what), **own}
        registry.load(SourceConfig.model_validate(config))


def child(tree: Path, what: str, folder: Path) -> float:
    """:func:`measured` with the code of ``tree``."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, "--row", json.dumps([what, str(folder)])],
        env={**os.environ, "PYTHONPATH": str(tree)}, capture_output=True, text=True, check=False, cwd=folder,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{what} with {tree} failed:\n{done.stderr[-2000:]}")
    return float(done.stdout.strip().splitlines()[-1])


def _git(*words: str) -> None:
    subprocess.run(["git", "-C", str(ROOT), *words], check=True)


@contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """The commit in a temporary git worktree."""
    with tempfile.TemporaryDirectory() as place:
        tree = Path(place) / "tree"
        _git("worktree", "add", "--quiet", "--detach", str(tree), commit)
        try:
            yield tree
        finally:
            _git("worktree", "remove", "--force", str(tree))


def compared(folder: Path, repeats: int, commit: str | None) -> None:
    """Print the rows, this tree's and, in turns, the other's."""
    from tests.bench import machine

    print(machine.figures())
    whats = ["plan", "names", *LAYOUTS]
    if commit is None:
        rows = [
            {"what": w, "s": f"{median(child(ROOT, w, folder) for _ in range(repeats)):.2f}"} for w in whats
        ]
        print(machine.table(rows))
        return
    rows = []
    with checked_out(commit) as other:
        # Both plan the definition of the other commit, which both know.
        for place in (folder, folder / "few"):
            (place / "largest.yaml").write_bytes((other / LARGEST).read_bytes())
        for what in whats:
            both = [(child(ROOT, what, folder), child(other, what, folder)) for _ in range(repeats)]
            here, there = (median(column) for column in zip(*both, strict=True))
            print(f"{what}: {here:.2f} s against {there:.2f} s", file=sys.stderr, flush=True)
            rows.append(
                {"what": what, "s": f"{here:.2f}", commit: f"{there:.2f}", "ratio": f"{here / there:.2f}"}
            )
    print(machine.table(rows))


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--against", help="another commit, measured in turns with this tree")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--names", type=int, default=1_281_167)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--row", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.row:
        what, place = json.loads(given.row)
        print(measured(what, Path(place)))
        return
    with tempfile.TemporaryDirectory() as place:
        for folder, images, names in (
            (Path(place), given.images, given.names),
            (Path(place) / "few", 40, 1000),
        ):
            data(folder, images, names)
            (folder / "largest.yaml").write_bytes((ROOT / LARGEST).read_bytes())
        compared(Path(place), given.repeats, given.against)


if __name__ == "__main__":
    main()
