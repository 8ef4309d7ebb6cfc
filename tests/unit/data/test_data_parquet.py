"""Parquet sources: layouts, class names, and every message about what is wrong with them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from rayddl.data.config import SourceConfig
from rayddl.data.pixels.decode import read_image
from rayddl.data.sources import registry as sources
from rayddl.errors import SourceError
from tests.raising import raises

Encode = Callable[..., bytes]
WriteTable = Callable[..., Path]
NAMES = {"classes": "cat\ndog"}


def config(root: Path | str, **settings: object) -> SourceConfig:
    """A ``parquet`` source in ``root``."""
    return SourceConfig.model_validate({"name": "parquet", "root": str(root), **settings})


def images(encode: Encode, count: int, **options: object) -> list[bytes]:
    """So many different encoded images."""
    return [encode(i, **options) for i in range(count)]


def test_bytes_and_labels_come_in_file_order(small: Path, encode: Encode) -> None:
    """Images are those of the column, row by row over the row groups, and labels theirs."""
    source = sources.load(config(small))

    assert source.train.classes == ("cat", "dog")
    assert source.train.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert source.test.labels.tolist() == [1, 1, 0, 0]
    assert source.train.shape == (3, 8, 8)
    for index in range(6):
        expected = read_image(encode(index)).transpose(2, 0, 1)
        assert np.array_equal(source.train.images[index].numpy(), expected)
    assert source.bad == ()
    assert source.fingerprint == sources.fingerprint(config(small))


def test_the_hugging_face_layout(encode: Encode, write_table: WriteTable, tmp_path: Path) -> None:
    """Shards in ``data``, ``struct<bytes, path>``, names in the ClassLabel metadata, a column ``img``."""
    info = {"info": {"features": {"label": {"names": ["no", "yes"], "_type": "ClassLabel"}}}}
    metadata = {"huggingface": json.dumps(info)}
    column = [{"bytes": data, "path": None} for data in images(encode, 4)]
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"):
        write_table(f"data/{name}.parquet", column, [1, 0, 1, 1], metadata, columns=("img", "label"))

    source = sources.load(config(tmp_path, image_column="img"))

    assert source.train.classes == ("no", "yes")
    assert source.train.labels.tolist() == [1, 0, 1, 1] * 2
    assert len(source.test) == 4


def test_a_null_in_bytes_means_the_file_at_path(
    encode: Encode, write_table: WriteTable, tmp_path: Path
) -> None:
    """Files named by ``path`` are read from the root, and only from there."""
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "1.png").write_bytes(encode(1))
    (tmp_path.parent / "secret.png").write_bytes(encode(2))
    column = [
        {"bytes": encode(0), "path": "ignored.png"},
        {"bytes": None, "path": "pictures/1.png"},
        {"bytes": None, "path": "../secret.png"},
        {"bytes": None, "path": None},
    ]
    for split in ("train", "test"):
        write_table(f"{split}.parquet", column, [0, 1, 0, 1])

    source = sources.load(config(tmp_path, max_bad_fraction=0.5))

    assert source.train.labels.tolist() == [0, 1]
    assert np.array_equal(source.train.images[1].numpy(), read_image(encode(1)).transpose(2, 0, 1))
    assert [line.split(": ")[0] for line in source.bad] == [
        f"{split}.parquet row {row}" for split in ("train", "test") for row in (2, 3)
    ]
    assert "does not stay inside its folder" in source.bad[0]
    assert source.bad[1] == "train.parquet row 3: no bytes"


@pytest.mark.parametrize("type_", [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())])
def test_labels_may_be_text(
    encode: Encode, write_table: WriteTable, tmp_path: Path, type_: pa.DataType
) -> None:
    """Text labels are their own class names, sorted; the test split is matched by them."""
    write_table("train.parquet", images(encode, 3), pa.array(["b", "a", "b"], type_))
    write_table("test.parquet", images(encode, 2), pa.array(["b", "b"], type_))

    source = sources.load(config(tmp_path))

    assert source.train.classes == ("a", "b")
    assert source.train.labels.tolist() == [1, 0, 1]
    assert source.test.labels.tolist() == [1, 1]


def test_text_labels_follow_the_files_class_names(
    encode: Encode, write_table: WriteTable, tmp_path: Path
) -> None:
    """Where text labels come with class names, these give the order."""
    for split in ("train", "test"):
        write_table(f"{split}.parquet", images(encode, 2), ["cat", "dog"], {"classes": "dog\ncat"})

    source = sources.load(config(tmp_path))

    assert source.train.classes == ("dog", "cat")
    assert source.train.labels.tolist() == [1, 0]


def test_numbers_without_names_name_themselves(
    encode: Encode, write_table: WriteTable, tmp_path: Path
) -> None:
    """Distinct numbers are the classes, in numerical order, wherever they start."""
    write_table("train.parquet", images(encode, 3), [10, 2, 10])
    write_table("test.parquet", images(encode, 1), [10])

    source = sources.load(config(tmp_path))

    assert source.train.classes == ("2", "10")
    assert source.train.labels.tolist() == [1, 0, 1]
    assert source.test.labels.tolist() == [1]


def test_files_are_matched_by_class_name(encode: Encode, write_table: WriteTable, tmp_path: Path) -> None:
    """A test split that lists its classes in another order gets the train split's labels."""
    write_table("train.parquet", images(encode, 2), [0, 1], {"classes": "cat\ndog"})
    write_table("test.parquet", images(encode, 2), [0, 1], {"classes": "dog\ncat"})

    source = sources.load(config(tmp_path))

    assert source.test.classes == ("cat", "dog")
    assert source.test.labels.tolist() == [1, 0]


@pytest.mark.parametrize("uri", [False, True])
def test_moving_a_folder_keeps_the_fingerprint(small: Path, tmp_path: Path, uri: bool) -> None:
    """A copy elsewhere, or the same place as a URI, holds the same source."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in small.glob("*.parquet"):
        shutil.copy(file, copy)
    moved = config(copy.as_uri() if uri else copy)

    assert sources.fingerprint(moved) == sources.fingerprint(config(small))
    assert sources.load(moved).train.labels.tolist() == [0, 1, 0, 1, 0, 1]


def test_naming_the_files_keeps_the_fingerprint(small: Path) -> None:
    """How files were found does not matter, which were found does."""
    named = config(small, train="a-train.parquet", test="a-te*.parquet")

    assert sources.fingerprint(named) == sources.fingerprint(config(small))


@pytest.mark.parametrize("change", ["label", "image", "names", "size", "swap"])
def test_the_fingerprint_follows_the_contents(
    small: Path, encode: Encode, write_table: WriteTable, change: str
) -> None:
    """Another label, image, class name, size or split is another source."""
    before = sources.fingerprint(config(small))
    labels, names, data = [0, 1, 0, 1, 0, 1], NAMES, images(encode, 6)
    settings: dict[str, object] = {"size": 16} if change == "size" else {}
    if change == "label":
        labels[0] = 1
    elif change == "image":
        data[0] = encode(77, side=9)
    elif change == "names":
        names = {"classes": "cat\ncow"}
        write_table("a-test.parquet", images(encode, 4), [1, 1, 0, 0], names)
    elif change == "swap":
        settings = {"train": "a-test.parquet", "test": "a-train.parquet"}
    write_table("a-train.parquet", data, labels, names, row_group=4)

    assert sources.fingerprint(config(small, **settings)) != before


def test_unreadable_images_are_left_out_and_listed(
    encode: Encode, write_table: WriteTable, tmp_path: Path
) -> None:
    """Up to the allowed share they cost their rows only; labels stay with their images."""
    data = images(encode, 10)
    data[3] = data[3][:40]
    write_table("train.parquet", data, [0, 1] * 5)
    write_table("test.parquet", images(encode, 2), [0, 1])

    source = sources.load(config(tmp_path, max_bad_fraction=0.1))

    assert source.train.labels.tolist() == [0, 1, 0, 0, 1, 0, 1, 0, 1]
    assert len(source.bad) == 1
    assert source.bad[0].startswith("train.parquet row 3: ")


def test_too_many_unreadable_images_are_refused(
    encode: Encode, write_table: WriteTable, tmp_path: Path
) -> None:
    """The message counts them, lists the first, and says what to do."""
    data = [b"broken"] * 7 + images(encode, 3)
    write_table("train.parquet", data, [0, 1] * 5)
    write_table("test.parquet", images(encode, 2), [0, 1])

    with pytest.raises(SourceError) as caught:
        sources.load(config(tmp_path))

    lines = str(caught.value).splitlines()
    assert lines[0] == (
        f"source parquet in {tmp_path}: 7 of 12 images cannot be read (58.3%; source.max_bad_fraction "
        "allows 1.0%):"
    )
    assert lines[1].startswith("  train.parquet row 0: cannot identify image file")
    assert lines[6:] == ["  and 2 more", "Repair or remove them, or raise source.max_bad_fraction."]


def test_a_class_whose_images_are_all_unreadable_is_refused(
    encode: Encode, write_table: WriteTable, tmp_path: Path
) -> None:
    """Within the allowed share too: there would be nothing to distil."""
    write_table("train.parquet", [b"broken", *images(encode, 5)], [1, 0, 0, 0, 0, 0], NAMES)
    write_table("test.parquet", images(encode, 2), [0, 1], NAMES)

    with raises("classes-without-images"):
        sources.load(config(tmp_path, max_bad_fraction=0.5))


def test_one_grey_image_does_not_make_a_grey_source(
    encode: Encode, write_table: WriteTable, tmp_path: Path
) -> None:
    """A few grey images among colour ones become colour; a source that is grey throughout stays grey."""
    grey = images(encode, 4, mode="L")
    write_table("train.parquet", grey, [0, 1, 0, 1])
    write_table("test.parquet", grey, [0, 1, 0, 1])
    assert sources.load(config(tmp_path)).train.shape == (1, 8, 8)

    write_table("test.parquet", [*grey[:3], encode(9)], [0, 1, 0, 1])
    mixed = sources.load(config(tmp_path))

    assert mixed.train.shape == mixed.test.shape == (3, 8, 8)
    assert np.array_equal(mixed.train.images[0].numpy(), np.stack([read_image(grey[0])] * 3))


def test_mixed_sizes_need_a_size(encode: Encode, write_table: WriteTable, tmp_path: Path) -> None:
    """The message gives the sizes with an example each; with ``size`` set all are brought to it."""
    write_table("train.parquet", [*images(encode, 3), encode(4, side=1)], [0, 1, 0, 1])
    write_table("test.parquet", images(encode, 2), [0, 1])

    with pytest.raises(SourceError) as caught:
        sources.load(config(tmp_path))

    assert str(caught.value) == (
        f"source parquet in {tmp_path}: images must be of one size, found (width x height) 8 x 8 (5, e.g. "
        "train.parquet row 0), 1 x 1 (1, e.g. train.parquet row 3). Set source.size to the side in pixels "
        "that all are brought to."
    )
    assert sources.load(config(tmp_path, size=6)).train.shape == (3, 6, 6)
