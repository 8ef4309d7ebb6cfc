"""Listings: where images lie, in an order of their own, and reading them by position."""

from __future__ import annotations

import io
import itertools
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from rayddl.data.config import SourceConfig
from rayddl.data.sources import registry as sources
from rayddl.data.sources.listing import CHUNK, FileStore, Listing, ParquetStore, sorted_listing
from rayddl.methods.patches.boxes import preselected, ranks
from rayddl.storage import Folder
from tests.raising import raises


def _png(value: int) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(np.full((4, 5, 3), value, np.uint8)).save(sink, "PNG")
    return sink.getvalue()


def _chunks(listing: Listing) -> list[np.ndarray]:  # type: ignore[type-arg]  # of positions
    return [np.arange(start, end) for start, end in itertools.pairwise(listing.bounds())]


def _everything(listing: Listing) -> dict[str, bytes]:
    found = {}
    for positions in _chunks(listing):
        names = listing.names.take(pa.array(positions)).to_pylist()
        for name, blob in zip(names, listing.read(positions), strict=True):
            assert isinstance(blob, bytes)
            found[name] = blob
    return found


def test_a_folder_tree_is_listed_by_name_and_read_back(tmp_path: Path) -> None:
    """Every train file appears once with its class, and reading gives its bytes."""
    written = {}
    for split in ("train", "val"):
        for c in ("dog", "cat"):
            for k in range(3):
                path = tmp_path / split / c / f"{k}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(_png(k))
                if split == "train":
                    written[f"{c}/{k}.png"] = path.read_bytes()
    listing = sources.listing(SourceConfig(name="imagefolder", root=str(tmp_path)))
    assert listing is not None
    assert listing.names.to_pylist() == sorted(written)
    assert [listing.classes[c] for c in listing.labels] == ["cat"] * 3 + ["dog"] * 3
    assert _everything(listing) == written

    # A million images: rows and files that all are 0 need no memory, and all of the images are not copied.
    whole = listing.take(np.arange(6))
    assert listing.at.strides == listing.file.strides == (0,)
    assert whole.names is listing.names
    assert np.shares_memory(whole.size, listing.size)
    assert whole.notes == ()


@pytest.mark.parametrize("struct", [False, True])
def test_parquet_rows_are_read_by_position(tmp_path: Path, struct: bool) -> None:
    """Across files and row groups, each position gives its own row's bytes, in both layouts."""
    blobs = [_png(k) for k in range(30)]
    for shard, part in enumerate((range(13), range(13, 30))):
        cells = [{"bytes": blobs[k], "path": None} if struct else blobs[k] for k in part]
        type_ = pa.struct([("bytes", pa.binary()), ("path", pa.string())]) if struct else pa.binary()
        table = pa.table({"image": pa.array(cells, type_), "label": [k % 2 for k in part]})
        pq.write_table(table, tmp_path / f"train-{shard}.parquet", row_group_size=4)
    pq.write_table(pa.table({"image": blobs[:2], "label": [0, 1]}), tmp_path / "test.parquet")
    listing = sources.listing(SourceConfig(name="parquet", root=str(tmp_path)))
    assert listing is not None
    assert len(listing) == 30
    assert list(_everything(listing).values()) == blobs
    some = np.array([1, 2, 14, 29])
    assert list(listing.read(some)) == [blobs[k] for k in some]


def test_no_chunk_crosses_a_row_group(tmp_path: Path) -> None:
    """What is read together lies together."""
    pq.write_table(
        pa.table({"image": [b"x"] * 200, "label": [0, 1] * 100}),
        tmp_path / "train.parquet", row_group_size=90,
    )  # fmt: skip
    pq.write_table(pa.table({"image": [b"x"] * 2, "label": [0, 1]}), tmp_path / "test.parquet")
    listing = sources.listing(SourceConfig(name="parquet", root=str(tmp_path)))
    assert listing is not None
    assert np.diff(listing.bounds()).tolist() == [CHUNK, 90 - CHUNK, CHUNK, 90 - CHUNK, 20]


def test_the_order_in_which_files_were_found_does_not_matter() -> None:
    """A shuffled listing is the same listing."""
    names = [f"{c}/{k}.png" for c in "ab" for k in range(50)]
    labels = np.array([0] * 50 + [1] * 50, np.int32)
    order = np.random.default_rng(0).permutation(100)
    store = FileStore(Folder("nowhere"))
    one = sorted_listing(names, labels, ("a", "b"), store)
    other = sorted_listing([names[k] for k in order], labels[order], ("a", "b"), store)
    assert one.names == other.names
    assert np.array_equal(one.labels, other.labels)


def test_a_missing_file_is_an_outcome_not_the_end(tmp_path: Path) -> None:
    """A file that vanished after it was listed is reported in its place."""
    (tmp_path / "a.png").write_bytes(b"here")
    listing = sorted_listing(
        ["a.png", "b.png"], np.zeros(2, np.int32), ("x",), FileStore(Folder(str(tmp_path)))
    )
    first, second = listing.read(np.array([0, 1]))
    assert first == b"here"
    assert isinstance(second, FileNotFoundError)


def test_a_damaged_row_group_is_an_outcome_for_each_of_its_rows(tmp_path: Path) -> None:
    """A Parquet file that became unreadable gives an error per image."""
    (tmp_path / "t.parquet").write_bytes(b"PAR1 no longer")
    store = ParquetStore(Folder(str(tmp_path)), ("t.parquet",), "image", ((0, 3),))
    listing = sorted_listing(
        ["0", "1", "2"], np.zeros(3, np.int32), ("x",), store, at=np.arange(3, dtype=np.int64)
    )
    assert all(isinstance(found, Exception) for found in listing.read(np.arange(3)))


def test_sources_that_are_always_decoded_have_no_listing() -> None:
    """The bundled digits are taken from memory."""
    assert sources.listing(SourceConfig(name="digits")) is None


def test_a_missing_folder_is_refused_with_its_place(tmp_path: Path) -> None:
    """Listing says the same as loading does."""
    with raises("root-missing"):
        sources.listing(SourceConfig(name="imagefolder", root=str(tmp_path / "gone")))


def test_a_relative_root_that_is_missing_says_where_it_was_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It depends on the folder that rayddl is started in, not on the definition's."""
    monkeypatch.chdir(tmp_path)
    with raises("root-missing") as caught:
        sources.listing(SourceConfig(name="imagefolder", root="../gone"))
    assert f"../gone ({tmp_path.parent / 'gone'})" in str(caught.value)
    assert "the folder that rayddl is started in" in str(caught.value)


def test_a_plan_over_many_names_covers_each_chosen_image_once() -> None:
    """Tens of thousands of synthetic names: drawn from per class and cut into chunks without gap or overlap."""
    count, classes = 40_000, 100
    labels = (np.arange(count) * 7919 % classes).astype(np.int32)
    names = [f"n{c:08d}/n{c:08d}_{k}.JPEG" for k, c in enumerate(labels.tolist())]
    store = FileStore(Folder("nowhere"))
    listing = sorted_listing(names, labels, tuple(str(c) for c in range(classes)), store)
    chosen = listing.take(preselected(0, listing.each_name(), listing.labels, 300))
    assert chosen.counts().tolist() == [300] * classes
    seen = np.concatenate(_chunks(chosen))
    assert np.array_equal(seen, np.arange(300 * classes))


def test_ranks_of_many_names_hold_few_of_them() -> None:
    """A million names as Python strings, or their hashes, would be a hundred MiB in the driver."""
    count = 100_000
    names = pa.array((f"n{k % 100:08d}/{k:08d}.JPEG" for k in range(count)), pa.large_string())
    listing = sorted_listing(names, np.zeros(count, np.int32), ("one",), FileStore(Folder("nowhere")))
    tracemalloc.start()
    try:
        found = ranks(0, listing.each_name())
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert list(found[[0, -1]]) == list(ranks(0, [listing.names[0].as_py(), listing.names[-1].as_py()]))
    assert most < 4 * 2**20
