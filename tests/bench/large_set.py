"""Writing and reading a distilled set of ImageNet's size, against a plain loop that holds it in memory.

    uv run python -m tests.bench.large_set [--ipc 10] [--classes 1000] [--folder FOLDER]

Images of 224 pixels whose PNG files are as large as those of photos, in a file that is mapped into memory, as RDED's
stage has them. The plain loop writes the same files but one, the picture of all images: PNGs one after the other, the
table, and the tensors. Each row is a process of its own; printed are seconds, and the most memory that it had at a
time, without pages of mapped files, which the kernel can drop.
"""

from __future__ import annotations

import io
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.bench import machine
from tests.resident import Resident

SIDE = 224
BASES = 64
"""Different images; the others are these, shifted."""


def images(count: int, folder: Path) -> torch.Tensor:
    """uint8 ``[count, 3, 224, 224]`` in a mapped file."""
    rng, path = np.random.default_rng(0), folder / "images"
    coarse = torch.from_numpy(rng.uniform(0, 255, (BASES, 3, 14, 14)).astype(np.float32))
    smooth = torch.nn.functional.interpolate(coarse, size=(SIDE, SIDE), mode="bicubic")
    bases = (smooth + torch.from_numpy(rng.normal(0, 6, smooth.shape).astype(np.float32))).clamp(0, 255)
    pixels = bases.round().to(torch.uint8).numpy()
    with path.open("wb") as file:
        for k in range(count):
            file.write(np.roll(pixels[k % BASES], k // BASES, axis=2).tobytes())
    return torch.from_file(str(path), shared=True, size=count * 3 * SIDE**2, dtype=torch.uint8).view(
        -1, 3, SIDE, SIDE
    )


def plain(pixels: torch.Tensor, labels: torch.Tensor, folder: Path) -> None:
    """PNG files, a table of them, and the tensors, each as its library's first example has it."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image
    from safetensors.torch import save

    pngs = []
    for k, (image, label) in enumerate(zip(pixels, labels.tolist(), strict=True)):
        sink = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(sink, "PNG")
        place = folder / f"c{label:04d}"
        place.mkdir(exist_ok=True)
        (place / f"{k}.png").write_bytes(sink.getvalue())
        pngs.append({"bytes": sink.getvalue(), "path": f"{k}.png"})
    pq.write_table(pa.table({"image": pngs, "label": labels.tolist()}), folder / "images.parquet")
    (folder / "set.safetensors").write_bytes(save({"images": pixels, "labels": labels}))


def measure(form: str, folder: str, ipc: int, classes: int) -> dict[str, float]:
    """Seconds and bytes of one row, in this process."""
    from rayddl.data.distilled import DistilledSet
    from rayddl.data.pixels.space import Normalise
    from rayddl.storage import Folder

    place = Path(folder)
    names = tuple(f"c{k:04d}" for k in range(classes))
    labels = torch.arange(classes).repeat_interleave(ipc)
    to = Folder(str(place / "set"))
    work: Callable[[], Any]
    if form == "read":
        work = lambda: DistilledSet.load(to).stored.max()  # noqa: E731, PLW0108
    else:
        pixels = images(classes * ipc, place)
        space = Normalise(
            (3, SIDE, SIDE),
            torch.full((3,), 0.5, dtype=torch.float64),
            torch.full((3,), 0.25, dtype=torch.float64),
        )
        made = DistilledSet(pixels, labels, 0.01, names, space)
        (place / "plain").mkdir(exist_ok=True)
        work = (
            (lambda: made.save(to)) if form == "write" else (lambda: plain(pixels, labels, place / "plain"))
        )
    with Resident() as resident:
        began = time.perf_counter()
        work()
        seconds = time.perf_counter() - began
    return {"s": seconds, "bytes": resident.most}


def main() -> None:
    """Run each row and print them."""
    parser = machine.parser(__doc__, row=True)
    parser.add_argument("--ipc", type=int, default=10)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument(
        "--folder", type=Path, help="where the files are written and removed; default is a temporary one"
    )
    given = parser.parse_args()
    if given.row:
        print(json.dumps(measure(**json.loads(given.row))))
        return
    print(machine.figures(), flush=True)
    folder = Path(tempfile.mkdtemp(dir=given.folder))
    rows: list[dict[str, str]] = []
    first = 0.0
    try:
        for form, title in (
            ("plain", "plain loop, writing"),
            ("write", "rayddl, writing"),
            ("read", "rayddl, reading"),
        ):
            row = {"form": form, "folder": str(folder), "ipc": given.ipc, "classes": given.classes}
            found = machine.child("tests.bench.large_set", row, allocator=False)
            first = first or (found or {}).get("s", 0.0)
            rows.append(
                {"": title, "s": "failed", "of the plain loop": "", "memory MiB": ""}
                if found is None
                else {
                    "": title,
                    "s": f"{found['s']:.1f}",
                    "of the plain loop": f"{found['s'] / first:.2f}",
                    "memory MiB": f"{found['bytes'] / 2**20:.0f}",
                }
            )
    finally:
        shutil.rmtree(folder)
    size = given.classes * given.ipc * 3 * SIDE**2 / 2**20
    print(f"{given.classes:,} classes, {given.ipc} images each: {size:,.0f} MiB")
    print(machine.table(rows))


if __name__ == "__main__":
    main()
