"""Small files that stand for much: the memory and time of reading them are bounded."""

from __future__ import annotations

import gc
import io
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from rayddl.data.config import SourceConfig
from rayddl.data.distilled import DistilledSet
from rayddl.data.formats import importing
from rayddl.data.pixels.decode import plain, read_image
from rayddl.data.pixels.space import fit
from rayddl.data.sources import parquet_bounds
from rayddl.data.sources import registry as sources
from rayddl.data.sources.row_groups import row_group
from rayddl.errors import SourceError
from rayddl.storage import Folder
from tests.fuzz.formats import SEEDS
from tests.raising import raises

MIB = 2**20
_POOLS: list[pa.MemoryPool] = []
"""Pools live as long as the arrays in them."""


@contextmanager
def held() -> Iterator[pa.MemoryPool]:
    """The memory that Arrow holds and has held in the block."""
    before = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(before)
    _POOLS.append(pool)
    pa.set_memory_pool(pool)
    try:
        yield pool
    finally:
        pa.set_memory_pool(before)


def _png(value: int, padded: int = 0) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(np.full((5, 5), value, np.uint8)).save(sink, "PNG")
    return sink.getvalue() + bytes(padded)


def _source(
    root: Path, images: list[bytes], labels: list[str] | list[int] | None = None, times: int = 1
) -> SourceConfig:
    """A source of these rows, ``times`` over, in one row group. Each value is stored once, however often it appears."""
    labels = labels or [k % 2 for k in range(len(images))]
    which = pa.array([*range(len(images))] * times, pa.int32())
    columns = {
        name: pa.DictionaryArray.from_arrays(which, values)
        for name, values in (("image", pa.array(images, pa.binary())), ("label", pa.array(labels)))
    }
    with pq.ParquetWriter(
        root / "train.parquet",
        pa.schema([(name, column.type) for name, column in columns.items()]),
        compression="zstd",
        store_schema=False,
    ) as writer:
        writer.write_table(pa.table(columns))
    pq.write_table(pa.table({"image": images[:2], "label": labels[:2]}), root / "test.parquet")
    return SourceConfig(name="parquet", root=str(root))


def test_large_cells_of_one_row_group_are_decoded_a_few_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two images of 4 MiB, stored once each, in 120 rows of a file of a few kilobytes."""
    config = _source(tmp_path, [_png(0, 4 * MIB), _png(1, 4 * MIB)], times=60)
    assert (tmp_path / "train.parquet").stat().st_size < MIB
    monkeypatch.setattr(parquet_bounds, "PORTION_BYTES", 16 * MIB)
    row_group.cache_clear()
    listed = sources.listing(config)
    assert listed is not None
    with held() as pool:
        found = [blob[: len(_png(0))] for blob in listed.read(np.arange(120)) if isinstance(blob, bytes)]
        row_group.cache_clear()
    assert [read_image(blob)[0, 0] for blob in found] == [0, 1] * 60
    assert pool.max_memory() < 120 * MIB


def test_a_portion_of_large_cells_is_not_larger_than_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two batches of two rows would be 24 MiB."""
    _source(tmp_path, [_png(0, 6 * MIB)], times=20)
    monkeypatch.setattr(parquet_bounds, "PORTION_BYTES", 16 * MIB)
    with pq.ParquetFile(tmp_path / "train.parquet") as file:
        found = list(parquet_bounds.batches(file, "image"))
    assert sum(map(len, found)) == 20
    assert max(part.nbytes for part in found) < 16 * MIB


def test_a_cell_above_the_limit_is_decoded_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its size shows only once it is decoded."""
    _source(tmp_path, [_png(0, 6 * MIB)], times=20)
    monkeypatch.setattr(parquet_bounds, "PORTION_BYTES", 16 * MIB)
    monkeypatch.setenv("RAYDDL_MAX_CELL_BYTES", str(MIB))
    with pq.ParquetFile(tmp_path / "train.parquet") as file:
        assert parquet_bounds.rows_at_once(file.metadata, "image") == 1


def test_rows_before_the_kept_ones_are_decoded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In any order, each row is its own."""
    config = _source(tmp_path, [_png(k) for k in range(40)])
    monkeypatch.setattr(parquet_bounds, "PORTION_BYTES", 1)
    row_group.cache_clear()
    listed = sources.listing(config)
    assert listed is not None
    for row in (0, 39, 7, 8, 20, 3):
        (blob,) = listed.read(np.array([row]))
        assert blob == _png(row)


def test_a_large_image_of_a_row_is_an_error_of_that_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When it is streamed as when it is loaded."""
    config = _source(tmp_path, [_png(0), _png(1, 5000), _png(2), _png(3)])
    listed = sources.listing(config)
    assert listed is not None
    monkeypatch.setenv("RAYDDL_MAX_CELL_BYTES", "1000")
    row_group.cache_clear()
    found = list(listed.read(np.arange(4)))
    assert [isinstance(each, bytes) for each in found] == [True, False, True, True]
    assert "RAYDDL_MAX_CELL_BYTES" in str(found[1])


def test_long_labels_are_held_once(tmp_path: Path) -> None:
    """20,000 labels of 20,000 letters, two different ones, are 400 MB if each is held."""
    config = _source(tmp_path, [_png(0), _png(1)], ["a" * 20_000, "b" * 20_000], times=10_000)
    with held() as pool:
        listed = sources.listing(config)
    assert listed is not None
    assert [name[:2] for name in listed.classes] == ["aa", "bb"]
    assert listed.labels.tolist() == [0, 1] * 10_000
    assert pool.max_memory() < 50 * MIB


def test_files_are_freed(tmp_path: Path) -> None:
    """The look at a footer leaves no open file behind, also not in a circle that Python cannot see."""
    config = _source(tmp_path, [_png(0), _png(1)])
    before = _open_tables()
    for _ in range(3):
        sources.load(config)
    assert _open_tables() == before


def _open_tables() -> int:
    gc.collect()
    return sum(issubclass(type(each), pq.ParquetFile) for each in gc.get_objects())


def test_names_of_columns_that_are_not_utf_8_are_refused(tmp_path: Path) -> None:
    """Arrow decodes them where it opens the file, and not with an error of its own."""
    config = _source(tmp_path, [_png(0), _png(1)], [0, 1])
    for path in tmp_path.glob("*.parquet"):
        path.write_bytes(path.read_bytes().replace(b"label", b"la\xffel"))
    with raises("parquet-unreadable"):
        sources.listing(config)


def test_bytes_of_labels_have_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are compared with it before they are read."""
    config = _source(tmp_path, [_png(k) for k in range(4)], ["a" * 500, "b" * 500] * 2)
    monkeypatch.setenv("RAYDDL_MAX_LABEL_BYTES", "900")
    with pytest.raises(SourceError) as caught:
        sources.fingerprint(config)
    assert caught.value.code == "labels-too-large"  # Arrow's pages differ by a byte from run to run
    monkeypatch.setenv("RAYDDL_MAX_LABEL_BYTES", "9000")
    assert sources.fingerprint(config)


@pytest.mark.parametrize("odd", ["--1", "-", "9" * 5000, "\u0663", "1e5"])
def test_text_labels_that_are_hardly_numbers_are_classes(tmp_path: Path, odd: str) -> None:
    """Signs, many digits, and digits of another script."""
    listed = sources.listing(_source(tmp_path, [_png(k) for k in range(4)], [odd, "5"] * 2))
    assert listed is not None
    assert sorted(listed.classes) == sorted([odd, "5"])


def test_messages_show_the_beginning_of_long_names(tmp_path: Path) -> None:
    """A thousand columns, and a class of ten thousand letters."""
    columns = {f"column-{k}-{'x' * 500}": [1, 2] for k in range(1000)}
    pq.write_table(pa.table(columns), tmp_path / "train.parquet")
    pq.write_table(pa.table(columns), tmp_path / "test.parquet")
    with raises("parquet-column-missing") as caught:
        sources.fingerprint(SourceConfig(name="parquet", root=str(tmp_path)))
    assert len(str(caught.value)) < 5000
    config = _source(tmp_path, [_png(k) for k in range(4)])
    pq.write_table(pa.table({"image": [_png(0)], "label": ["y" * 10_000]}), tmp_path / "test.parquet")
    with raises("labels-not-in-train") as caught:
        sources.fingerprint(config)
    assert len(str(caught.value)) < 1000


def test_sixteen_bits_become_eight_in_the_memory_of_the_image() -> None:
    """As division rounds, for every value and white; 36 million values in about their own size."""
    values = np.arange(65_536, dtype=np.uint16).reshape(256, 256)
    for white in (None, 65_535, 4095, 700):
        top = white or 65_535
        kept = np.minimum(values, top)
        expected = ((kept.astype(np.int64) * 255 + top // 2) // top).astype(np.uint8)
        assert np.array_equal(np.asarray(plain(Image.fromarray(kept), white)), expected)
    large = Image.fromarray(np.zeros((6000, 6000), np.uint16))
    tracemalloc.start()
    try:
        plain(large)
        assert tracemalloc.get_traced_memory()[1] < 200 * MIB
    finally:
        tracemalloc.stop()


HOME = importing.TargetSource(
    ("a", "b"), (3, 224, 224), fit("normalise", torch.zeros(2, 3, 224, 224, dtype=torch.uint8))
)


def _imported(root: Path) -> DistilledSet:
    return importing.bring(Folder(str(root)), "parquet", HOME)


def _only_train(root: Path) -> None:
    (root / "test.parquet").unlink()


def test_a_table_of_one_image_many_times_is_no_set(tmp_path: Path) -> None:
    """100,000 rows of one image would be 15 GB: they are compared with the file before one is decoded."""
    _source(tmp_path, [_png(0), _png(1)], times=50_000)
    _only_train(tmp_path)
    with held() as pool, raises("import-larger-than-stored"):
        _imported(tmp_path)
    assert pool.max_memory() < 50 * MIB


def test_a_table_is_decoded_in_portions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 60 rows, each of 4 MiB of which most is no picture."""
    _source(tmp_path, [_png(0, 4 * MIB), _png(1, 4 * MIB)], ["a", "b"], times=30)
    _only_train(tmp_path)
    monkeypatch.setattr(parquet_bounds, "PORTION_BYTES", 16 * MIB)
    monkeypatch.setenv("RAYDDL_MAX_PIXELS_PER_BYTE", "100000000")
    with held() as pool:
        found = _imported(tmp_path)
    assert found.labels.tolist() == [0] * 30 + [1] * 30
    assert pool.max_memory() < 120 * MIB


@pytest.mark.parametrize(
    ("columns", "code"),
    [
        ({"image": pa.array([], pa.binary()), "label": pa.array([], pa.int64())}, "import-without-rows"),
        ({"image": [_png(0)], "label": ["9" * 5000]}, "classes-not-of-source"),
        ({"image": [_png(0)], "label": ["a"], "soft_label": [[[0.5], [0.5]]]}, "soft-labels-ragged"),
        (
            {"image": [_png(0)] * 2, "label": ["a"] * 2, "soft_label": [[0.5, 0.5], None]},
            "soft-labels-ragged",
        ),
        ({"image": [_png(0)], "label": ["a"], "soft_label": [["0.5", "0.5"]]}, "soft-labels-ragged"),
    ],
)
def test_odd_tables_are_no_sets(tmp_path: Path, columns: dict[str, object], code: str) -> None:
    """No rows, labels of many digits, and soft labels that are no numbers of one length."""
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    with raises(code):
        _imported(tmp_path)


def test_soft_labels_have_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before they are read."""
    pq.write_table(
        pa.table({"image": [_png(0)], "label": ["a"], "soft_label": [[0.5, 0.5]]}), tmp_path / "x.parquet"
    )
    monkeypatch.setenv("RAYDDL_MAX_ROWS", "1")
    with raises("soft-labels-too-many"):
        _imported(tmp_path)


@pytest.mark.parametrize("kept", [3, 5])
def test_columns_of_different_lengths_are_refused(kept: int, tmp_path: Path) -> None:
    """A column that is read alone has as many rows as the file says: neither the labels nor the images are cut."""
    pq.write_table(pa.table({"image": [b"x"] * 4, "label": [0] * 4}), tmp_path / "a.parquet")

    class Other(pq.ParquetFile):  # type: ignore[misc]
        def iter_batches(self, *args: Any, **more: Any) -> Iterator[pa.RecordBatch]:
            whole = pa.table({"image": [b"x"] * kept})
            return iter(whole.to_batches(max_chunksize=1))

    with pytest.raises(pa.ArrowInvalid, match=f"'image' has {kept} rows, and the file says 4"):
        list(parquet_bounds.batches(Other(tmp_path / "a.parquet"), "image"))
    assert sum(map(len, parquet_bounds.batches(pq.ParquetFile(tmp_path / "a.parquet"), "image"))) == 4


def test_fewer_labels_than_images_are_refused(tmp_path: Path) -> None:
    """A file whose second row group lost its labels, as fuzzing found one."""
    data = (SEEDS / "parquet" / "labels-fewer-than-images.parquet").read_bytes()
    for split in ("train", "test"):
        (tmp_path / f"{split}.parquet").write_bytes(data)
    with raises("parquet-unreadable") as caught:
        sources.load(SourceConfig(name="parquet", root=str(tmp_path)))
    assert "column 'label' has 4 rows, and the file says 6" in str(caught.value)
