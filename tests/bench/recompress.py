"""A Parquet file of images, each compressed once more as JPEG: what a lossy copy of a data set costs a method.

    uv run python -m tests.bench.recompress IMAGES.parquet QUALITY OUT.parquet

The column `image` holds encoded images; the other columns, the class names and the order of rows stay as they are.
Chroma is stored at half the resolution (4:2:0), as most encoders do.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def recompressed(encoded: bytes, quality: int) -> bytes:
    """The same image as a JPEG of this quality."""
    buffer = io.BytesIO()
    Image.open(io.BytesIO(encoded)).convert("RGB").save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    return buffer.getvalue()


def write(source: Path, quality: int, target: Path) -> tuple[int, int]:
    """Writes `target`; returns the bytes of its images before and after."""
    table = pq.read_table(source)
    before = table.column("image").to_pylist()
    after = [recompressed(encoded, quality) for encoded in before]
    column = table.schema.get_field_index("image")
    pq.write_table(table.set_column(column, table.schema.field(column), pa.array(after, pa.binary())), target)
    return sum(map(len, before)), sum(map(len, after))


def main(source: str, quality: str, target: str) -> None:
    """Print how many bytes the images had, and have."""
    before, after = write(Path(source), int(quality), Path(target))
    print(f"{before:,} bytes of images, as JPEG of quality {quality} {after:,}")


if __name__ == "__main__":
    main(*sys.argv[1:])
