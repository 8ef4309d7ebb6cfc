"""Sets of other code, brought to a source whose train split is decoded by tasks."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import pytest
import torch

from rayddl.data.config import SourceConfig
from rayddl.data.sources import registry as sources
from rayddl.stages.context import Context, Silent
from rayddl.stages.imported import stage as imported
from rayddl.stages.imported.settings import ImportedConfig
from rayddl.stages.kinds import known
from rayddl.stages.runtime import shards
from rayddl.storage import Folder
from tests.digits import as_parquet

pytestmark = pytest.mark.ray


@pytest.mark.parametrize("space", ["normalise", "zca"])
def test_a_set_is_brought_to_a_large_source(
    local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, space: str
) -> None:
    """The driver holds no split; the set has the bits that it has from a small one. Ray is configured for the stage."""
    digits = sources.load(SourceConfig(name="digits"))
    plain = as_parquet(tmp_path)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    torch.save(digits.train.images[:10], theirs / "images_best.pt")
    torch.save(torch.arange(10), theirs / "labels_best.pt")
    source = plain.model_copy(update={"space": space})

    def found(name: str) -> bytes:
        config = ImportedConfig.model_validate({"kind": "imported", "path": str(theirs)})
        out = Folder(str(tmp_path / name))
        imported.run(config, Context("set", source, 0, out, {}, {}, Silent()))
        return out.read("set/set.safetensors")

    def refused(*_: object) -> NoReturn:
        raise AssertionError("the driver decodes the split")

    small = found("small")
    monkeypatch.setattr("rayddl.stages.runtime.sizes.WHOLE_BYTES", 0)
    monkeypatch.setattr(shards, "SHARD_BYTES", 8 * 8 * 100)
    monkeypatch.setattr(imported, "load", refused)
    assert found("large") == small
    assert known()["imported"].needs_ray
