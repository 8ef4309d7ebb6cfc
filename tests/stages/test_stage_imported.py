"""Sets of other code, brought to a source whose train split is decoded by tasks."""

from __future__ import annotations

import io
from pathlib import Path
from typing import NoReturn

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from rayddl.data.config import SourceConfig
from rayddl.data.sources import registry as sources
from rayddl.stages.context import Context, Silent
from rayddl.stages.imported import stage as imported
from rayddl.stages.imported.settings import ImportedConfig
from rayddl.stages.kinds import known
from rayddl.stages.runtime import shards
from rayddl.storage import Folder

pytestmark = pytest.mark.ray


@pytest.mark.parametrize("space", ["normalise", "zca"])
def test_a_set_is_brought_to_a_large_source(
    local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, space: str
) -> None:
    """The driver holds no split; the set has the bits that it has from a small one. Ray is configured for the stage."""
    digits = sources.load(SourceConfig(name="digits"))
    for name, split in (("train", digits.train), ("test", digits.test)):
        rows = []
        for pixels, label in zip(split.images, split.labels.tolist(), strict=True):
            sink = io.BytesIO()
            Image.fromarray(pixels[0].numpy()).save(sink, "PNG")
            rows.append({"image": {"bytes": sink.getvalue()}, "label": label})
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{name}.parquet", row_group_size=100)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    torch.save(digits.train.images[:10], theirs / "images_best.pt")
    torch.save(torch.arange(10), theirs / "labels_best.pt")
    source = SourceConfig.model_validate({"name": "parquet", "root": str(tmp_path), "space": space})

    def found(name: str) -> bytes:
        config = ImportedConfig.model_validate({"kind": "imported", "path": str(theirs)})
        out = Folder(str(tmp_path / name))
        imported.run(config, Context("set", source, 0, out, {}, {}, Silent()))
        return out.read("set/set.safetensors")

    def refused(*_: object) -> NoReturn:
        raise AssertionError("the driver decodes the split")

    small = found("small")
    monkeypatch.setattr(shards, "WHOLE_BYTES", 0)
    monkeypatch.setattr(shards, "SHARD_BYTES", 8 * 8 * 100)
    monkeypatch.setattr(imported, "load", refused)
    assert found("large") == small
    assert known()["imported"].needs_ray
