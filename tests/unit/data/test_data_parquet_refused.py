"""Every message about Parquet files that are not as they must be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayddl.data.config import SourceConfig
from rayddl.data.sources import parquet, parquet_bounds
from rayddl.data.sources import registry as sources
from rayddl.errors import SourceError
from rayddl.storage import Folder
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


def message(source: SourceConfig) -> str:
    """What the user reads when the source is refused, before any image is decoded."""
    with pytest.raises(SourceError) as caught:
        sources.fingerprint(source)
    return str(caught.value)


def test_no_root() -> None:
    """There is no default place for a user's own files."""
    assert message(SourceConfig(name="parquet")) == (
        "source parquet needs source.root: the folder (or URI) that holds Parquet files."
    )


def test_a_missing_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative root is shown as written and as what it came to."""
    monkeypatch.chdir(tmp_path)

    assert message(config("nowhere")) == (
        f"source parquet: there is no folder nowhere ({tmp_path / 'nowhere'}). Looked for Parquet files in "
        "it. A relative root is read from the folder that rayddl is started in. Set source.root."
    )


def test_a_root_that_no_filesystem_opens() -> None:
    """An unknown scheme is an error of the source, not a traceback."""
    assert message(config("gopher://x/y")).startswith(
        "source parquet: source.root=gopher://x/y cannot be opened: "
    )


def test_an_empty_root(tmp_path: Path) -> None:
    """The message says what was looked for and that there is nothing."""
    assert message(config(tmp_path)) == (
        f"source parquet in {tmp_path}: no file for the train split. Looked for *train*.parquet, "
        "data/*train*.parquet. There is no .parquet file in it or in its data folder. Set source.root, or "
        "source.train to a file or glob inside it."
    )


def test_a_missing_test_split(small: Path) -> None:
    """What is there is listed."""
    (small / "a-test.parquet").unlink()

    assert message(config(small)) == (
        f"source parquet in {small}: no file for the test split. Looked for *test*.parquet, *val*.parquet, "
        "data/*test*.parquet, data/*val*.parquet. It holds: a-train.parquet. Set source.root, or source.test "
        "to a file or glob inside it. Without a held-out split, set source.holdout, for example "
        "--set source.holdout=0.2."
    )


def test_a_pattern_that_matches_nothing(small: Path) -> None:
    """The pattern is quoted beside what there is."""
    text = message(config(small, train="b*.parquet"))

    assert "Looked for b*.parquet. It holds: a-test.parquet, a-train.parquet." in text


def test_files_of_several_data_sets(small: Path, encode: Encode, write_table: WriteTable) -> None:
    """Default patterns do not mix them up; the message lists them and what to type."""
    write_table("b-train.parquet", images(encode, 2), [0, 1])

    assert message(config(small)) == (
        f"source parquet in {small}: the train split could be any of several data sets: a-train.parquet, "
        "b-train.parquet. Say which with source.train and source.test, for example --set "
        "source.train=a-train.parquet (a glob takes several files)."
    )


@pytest.mark.parametrize(
    "names",
    [
        ("train-00000-of-00002", "train-00001-of-00002"),
        ("train_9", "train_10", "train_11"),
        ("train-00000-of-00001-0a1b2c3d4e5f6789", "train-00000-of-00001-99aabbccddeeff00"),
        ("0.x-train", "1.x-train"),
    ],
)
def test_shards_of_one_data_set_belong_together(
    encode: Encode, write_table: WriteTable, tmp_path: Path, names: tuple[str, ...]
) -> None:
    """Shard numbers do not look like different data sets."""
    for name in names:
        write_table(f"{name}.parquet", images(encode, 2), [0, 1])
    write_table("test.parquet", images(encode, 2), [0, 1])

    assert len(sources.load(config(tmp_path)).train) == 2 * len(names)


def test_cifar10_and_cifar100_are_not_shards(encode: Encode, write_table: WriteTable, tmp_path: Path) -> None:
    """A number inside a word is part of the name."""
    for name in ("cifar10-train", "cifar100-train"):
        write_table(f"{name}.parquet", images(encode, 2), [0, 1])

    assert "several data sets: cifar10-train.parquet, cifar100-train.parquet" in message(config(tmp_path))


def test_a_file_in_both_splits(small: Path) -> None:
    """Training images must not be held-out images."""
    assert message(config(small, train="a-*.parquet")) == (
        f"source parquet in {small}: a-test.parquet would be in the train and in the test split. Set "
        "source.train and source.test so that no file is in both."
    )


def test_a_wrong_image_column(small: Path) -> None:
    """The columns there are, with their types, and the key to set."""
    assert message(config(small, image_column="img")) == (
        f"{small}/a-train.parquet has no column 'img'; it has: image (binary), label (int64). Set "
        "source.image_column."
    )


def test_a_wrong_label_column(small: Path) -> None:
    """Likewise for labels."""
    text = message(config(small, label_column="fine_label"))

    assert (
        "has no column 'fine_label'; it has: image (binary), label (int64). Set source.label_column." in text
    )


def test_columns_of_a_wrong_type(encode: Encode, write_table: WriteTable, tmp_path: Path) -> None:
    """The type found and the types that will do."""
    write_table("train.parquet", images(encode, 2), [0.0, 1.0])
    write_table("test.parquet", images(encode, 2), [0, 1])
    assert message(config(tmp_path)) == (
        f"{tmp_path}/train.parquet: column 'label' must hold whole numbers or text, it is double. The "
        "columns are: image (binary), label (double). Set source.label_column."
    )

    write_table("train.parquet", [1, 2], [0, 1])
    assert "column 'image' must hold binary or struct<bytes, path>, it is int64." in message(config(tmp_path))


def test_empty_labels(encode: Encode, write_table: WriteTable, tmp_path: Path) -> None:
    """They are counted."""
    write_table("train.parquet", images(encode, 3), [0, None, 1])
    write_table("test.parquet", images(encode, 2), [0, 1])

    assert message(config(tmp_path)) == f"{tmp_path}/train.parquet: column 'label' has 1 empty labels of 3."


def test_labels_beyond_the_class_names(encode: Encode, write_table: WriteTable, tmp_path: Path) -> None:
    """The range found and the range expected."""
    write_table("train.parquet", images(encode, 3), [0, 1, 2], NAMES)
    write_table("test.parquet", images(encode, 2), [0, 1], NAMES)

    assert message(config(tmp_path)) == (
        f"{tmp_path}/train.parquet: labels in column 'label' run from 0 to 2, but there are 2 class names, "
        "so 0 to 1 are expected."
    )


def test_a_held_out_label_that_is_no_class(encode: Encode, write_table: WriteTable, tmp_path: Path) -> None:
    """Nothing could be learned about it."""
    write_table("train.parquet", images(encode, 2), ["a", "b"])
    write_table("test.parquet", images(encode, 2), ["a", "z"])

    assert message(config(tmp_path)) == (
        f"{tmp_path}/test.parquet has labels that are no class of the train split: z. The classes are: a, b."
    )


def test_class_names_that_never_occur(encode: Encode, write_table: WriteTable, tmp_path: Path) -> None:
    """A class without a training image is named before anything is decoded."""
    write_table("train.parquet", images(encode, 2), [0, 2], {"classes": "a\nb\nc\nd"})
    write_table("test.parquet", images(encode, 2), [0, 2], {"classes": "a\nb\nc\nd"})

    assert message(config(tmp_path)) == (
        f"source parquet in {tmp_path}: 2 of 4 classes have no readable training image: b, d. Every class "
        "needs at least one; take the others out of the class names, or add images."
    )


def test_one_class(encode: Encode, write_table: WriteTable, tmp_path: Path) -> None:
    """There is nothing to tell apart."""
    for split in ("train", "test"):
        write_table(f"{split}.parquet", images(encode, 2), [5, 5])

    assert message(config(tmp_path)) == (
        f"source parquet in {tmp_path}: found only the class '5', at least two are needed. Looked for the "
        "labels in column 'label' of train.parquet."
    )


def test_equal_class_names(encode: Encode, write_table: WriteTable, tmp_path: Path) -> None:
    """Names are what classes are matched by."""
    for split in ("train", "test"):
        write_table(f"{split}.parquet", images(encode, 2), [0, 1], {"classes": "a\na"})

    assert "class names must differ, found more than once: a." in message(config(tmp_path))


def test_a_split_without_rows(small: Path, write_table: WriteTable) -> None:
    """An empty file is named."""
    write_table("a-test.parquet", pa.array([], pa.binary()), pa.array([], pa.int64()), NAMES)

    assert message(config(small)) == (
        f"source parquet in {small}: the test split has no rows (a-test.parquet)."
    )


def test_a_damaged_image_column(small: Path) -> None:
    """A file whose footer is whole but whose images are not is named, with the column."""
    file = small / "a-train.parquet"
    data = bytearray(file.read_bytes())
    data[4:200] = b"\xff" * 196
    file.write_bytes(data)

    with pytest.raises(SourceError) as caught:
        sources.load(config(small))

    assert str(caught.value).startswith(f"{file} is damaged in column 'image': ")
    assert str(caught.value).endswith(". Copy it again.")


@pytest.mark.parametrize("data", [b"", b"PAR1", b"this is not Parquet at all, only text"])
def test_a_file_that_is_not_parquet(small: Path, data: bytes) -> None:
    """The file is named."""
    (small / "a-test.parquet").write_bytes(data)

    assert message(config(small)).startswith(f"{small}/a-test.parquet cannot be read as Parquet: ")


def test_a_footer_that_is_longer_than_its_file(tmp_path: Path) -> None:
    """Four bytes can declare 4 GiB, for which a stream would make room before it reads; it is asked for small parts."""
    (tmp_path / "long-train.parquet").write_bytes(b"PAR1" + b"\0" * 40 + b"\xff\xff\xff\xff" + b"PAR1")
    asked: list[int] = []

    class Counted:
        """A stream that notes what it is asked for."""

        def __init__(self) -> None:
            self._file = pa.OSFile(str(tmp_path / "long-train.parquet"))
            self.size, self.seek = self._file.size, self._file.seek

        def read(self, size: int) -> bytes:
            asked.append(size)
            return bytes(self._file.read(min(size, 100)))

    assert parquet._footer(Counted())[0] == 52  # type: ignore[arg-type]
    assert max(asked) <= 1 << 20
    assert "cannot be read as Parquet" in message(config(tmp_path, holdout=0.5))


@pytest.mark.parametrize("repeated", ["image", "label"])
def test_two_columns_of_one_name(encode: Encode, tmp_path: Path, repeated: str) -> None:
    """Which one is meant cannot be known."""
    columns = {"image": pa.array(images(encode, 2)), "label": pa.array([0, 1])}
    names = ["image", "label", repeated]
    table = pa.Table.from_arrays([columns[name] for name in names], names=names)
    pq.write_table(table, tmp_path / "set-train.parquet")

    assert f"has 2 columns named '{repeated}'. Write it again with one." in message(
        config(tmp_path, holdout=0.5)
    )


def test_more_rows_than_bytes(encode: Encode, write_table: WriteTable, tmp_path: Path) -> None:
    """Some kilobytes of nulls and zeros can declare millions of rows; each would be an entry in memory."""
    write_table("a-train.parquet", pa.nulls(1_200_000, pa.binary()), pa.array([0] * 1_200_000))
    write_table("a-test.parquet", images(encode, 2), [0, 1])
    with raises("parquet-too-many-rows"):
        sources.fingerprint(config(tmp_path))


def test_more_rows_than_the_limit(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit and its setting stand in the message."""
    monkeypatch.setenv("RAYDDL_MAX_ROWS", "3")
    assert "6 rows, the limit is 3; if this is right, set RAYDDL_MAX_ROWS" in message(config(small))


def test_more_classes_than_the_limit(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of class names in the metadata, and of different labels."""
    monkeypatch.setenv("RAYDDL_MAX_CLASSES", "1")
    assert "2 class names, the limit is 1" in message(config(small))


def test_more_labels_than_the_limit(
    encode: Encode, write_table: WriteTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A column of numbers that are no classes."""
    write_table("a-train.parquet", images(encode, 4), [1, 20, 300, 4000])
    write_table("a-test.parquet", images(encode, 2), [1, 20])
    monkeypatch.setenv("RAYDDL_MAX_CLASSES", "3")
    assert "4 different labels, the limit is 3" in message(config(tmp_path))


@pytest.mark.parametrize(
    "names",
    [
        '{"info": {"features": {"label": {"names": "abc"}}}}',
        "[" * 100_000,
        '{"info": {"features": {"label": {"names": [1, {}]}}}}',
    ],
)
def test_metadata_of_other_types(encode: Encode, write_table: WriteTable, tmp_path: Path, names: str) -> None:
    """What is no list of names is as good as none: the labels name themselves."""
    write_table("a-train.parquet", images(encode, 4), [0, 1, 0, 1], {"huggingface": names})
    write_table("a-test.parquet", images(encode, 2), [0, 1])
    assert sources.load(config(tmp_path)).train.classes == ("0", "1")


def test_a_large_cell_is_not_decoded_many_times_at_once(
    encode: Encode, write_table: WriteTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dictionary holds equal cells once; the rows read together are as few as their size asks for."""
    cell = encode(1, side=64)
    write_table("a-train.parquet", [cell] * 40, [0, 1] * 20)
    monkeypatch.setattr(parquet_bounds, "PORTION_BYTES", 4 * len(cell))
    with Folder(str(tmp_path)).open("a-train.parquet") as stream:
        portions = list(parquet_bounds.batches(pq.ParquetFile(stream), "image"))
    assert sum(map(len, portions)) == 40
    assert max(portion.nbytes for portion in portions) < 8 * len(cell)


def test_a_cell_above_the_limit_is_reported(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a bad image like others."""
    monkeypatch.setenv("RAYDDL_MAX_CELL_BYTES", "10")
    with pytest.raises(SourceError) as caught:
        sources.load(config(small))
    assert "bytes, the limit is 10" in str(caught.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"bytes": pa.binary(), "path": pa.int64()},
        {"bytes": pa.binary(), "path": pa.binary()},
        {"bytes": pa.struct([("bytes", pa.binary())])},
        {"path": pa.string()},
    ],
)
def test_images_that_are_structs_of_something_else(small: Path, fields: dict[str, pa.DataType]) -> None:
    """Numbers as paths, and bytes inside of bytes."""
    images = pa.nulls(2, pa.struct(list(fields.items())))
    pq.write_table(pa.table({"image": images, "label": [0, 1]}), small / "a-train.parquet")
    with raises("parquet-column-of-another-type"):
        sources.listing(config(small))


def test_paths_of_any_text_and_none_are_taken() -> None:
    """As datasets and data frames have them."""
    for path in (pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string()), pa.null()):
        assert parquet_bounds.holds_images(pa.struct([("bytes", pa.large_binary()), ("path", path)]))
    twice = pa.struct([("bytes", pa.binary()), ("path", pa.string()), ("path", pa.string())])
    assert not parquet_bounds.holds_images(twice)
