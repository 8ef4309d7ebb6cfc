"""The size of a source, told without decoding it, is that of what is loaded."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rayddl.data.config import SourceConfig
from rayddl.data.sources import registry as sources
from rayddl.data.sources.summary import SourceSummary, source_summary

Encode = Callable[..., bytes]


def config(name: str, root: Path | None = None, **settings: object) -> SourceConfig:
    """A source by name."""
    return SourceConfig.model_validate({"name": name, "root": root and str(root), **settings})


def loaded(source: SourceConfig) -> SourceSummary:
    """The same of the source with every image decoded."""
    whole = sources.load(source)
    return SourceSummary(whole.train.shape, len(whole.train.classes), len(whole.train), len(whole.test))


@pytest.mark.parametrize("size", [None, 16])
def test_digits(size: int | None) -> None:
    """What is known of a bundled source by heart is true."""
    source = config("digits", size=size)

    assert source_summary(source) == loaded(source)


def test_cifar() -> None:
    """The published sizes, without a file being there."""
    assert source_summary(config("cifar100")) == SourceSummary((3, 32, 32), 100, 50_000, 10_000)
    assert source_summary(config("cifar10", size=16)).numbers == 3 * 16 * 16


@pytest.mark.parametrize("size", [None, 4])
def test_tables(small: Path, size: int | None) -> None:
    """Rows are counted, and a header says how large images are."""
    source = config("parquet", small, size=size)

    assert source_summary(source) == loaded(source)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_folders(tmp_path: Path, encode: Encode, mode: str) -> None:
    """Files are counted; the source is grey when its images are."""
    for name in ("train/a/1.png", "train/a/2.png", "train/b/1.png", "val/a/1.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(1, side=12, mode=mode))
    source = config("imagefolder", tmp_path)

    assert source_summary(source) == loaded(source)
    assert source_summary(source).shape[0] == len(mode)


def test_a_broken_image_is_passed_over(tmp_path: Path, encode: Encode) -> None:
    """The next one says how large images are."""
    for name, data in {
        "train/a/1.png": b"x",
        "train/b/1.png": encode(1, side=12),
        "val/a/1.png": b"",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    assert source_summary(config("imagefolder", tmp_path)).shape == (3, 12, 12)


def test_no_torch_is_imported() -> None:
    """A glance is part of a plan, which is shown at once."""
    code = (
        "import sys\nfrom rayddl.data.config import SourceConfig\n"
        "from rayddl.data.sources.summary import source_summary\n"
        "source_summary(SourceConfig(name='digits'))\nprint('torch' in sys.modules)"
    )

    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"
