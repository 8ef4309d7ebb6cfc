"""Image files made on the spot, and the real ones where they are at hand."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

WriteTable = Callable[..., Path]
Encode = Callable[..., bytes]


def _noise(seed: int, side: int, mode: str) -> Image.Image:
    channels = {"L": (), "RGB": (3,), "RGBA": (4,), "CMYK": (4,), "LA": (2,)}[mode]
    values = np.random.default_rng(seed).integers(0, 256, (side, side, *channels), dtype=np.uint8)
    if mode == "CMYK":
        return Image.frombytes("CMYK", (side, side), values.tobytes())
    return Image.fromarray(values)


@pytest.fixture
def encode() -> Encode:
    """Bytes of a PNG (or another format) with noise from a seed, or of a given PIL image."""

    def encoded(
        what: int | Image.Image = 0, side: int = 8, mode: str = "RGB", form: str = "PNG", **options: Any
    ) -> bytes:
        image = _noise(what, side, mode) if isinstance(what, int) else what
        sink = io.BytesIO()
        image.save(sink, format=form, **options)
        return sink.getvalue()

    return encoded


@pytest.fixture
def write_table(tmp_path: Path) -> WriteTable:
    """Writes ``image`` and ``label`` columns to a Parquet file in the test's folder."""

    def write(
        name: str,
        images: Any,
        labels: Sequence[Any] | pa.Array,
        metadata: dict[str, str] | None = None,
        *,
        columns: tuple[str, str] = ("image", "label"),
        row_group: int | None = None,
    ) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        column = images if isinstance(images, pa.Array) else pa.array(images)
        table = pa.table({columns[0]: column, columns[1]: pa.array(labels)})
        pq.write_table(table.replace_schema_metadata(metadata), path, row_group_size=row_group)
        return path

    return write


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images that lies beside the checkout."""
    folder = Path(__file__).resolve().parents[3] / "../shared/data"
    if not folder.is_dir():
        pytest.skip("needs the real images in ../shared/data beside the checkout")
    return folder


@pytest.fixture
def small(encode: Encode, write_table: WriteTable, tmp_path: Path) -> Path:
    """A folder with two classes in Parquet files: six training and four test images."""
    names = {"classes": "cat\ndog"}
    write_table("a-train.parquet", [encode(i) for i in range(6)], [0, 1, 0, 1, 0, 1], names, row_group=4)
    write_table("a-test.parquet", [encode(i) for i in range(4)], [1, 1, 0, 0], names)
    return tmp_path
