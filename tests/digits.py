"""The digits as files."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from rayddl.data.config import SourceConfig
from rayddl.data.sources import registry as sources


def as_parquet(root: Path) -> SourceConfig:
    """The digits as files whose images can be read one by one."""
    digits = sources.load(SourceConfig(name="digits"))
    for name, split in (("train", digits.train), ("test", digits.test)):
        rows = []
        for pixels, label in zip(split.images, split.labels.tolist(), strict=True):
            sink = io.BytesIO()
            Image.fromarray(pixels[0].numpy()).save(sink, "PNG")
            rows.append({"image": {"bytes": sink.getvalue()}, "label": label})
        pq.write_table(pa.Table.from_pylist(rows), root / f"{name}.parquet", row_group_size=100)
    return SourceConfig(name="parquet", root=str(root))
