"""Sources as people have them: labels that look like numbers, shards that are missing, odd names, links, 16 bits."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from rayddl.data.config import SourceConfig
from rayddl.data.pixels.decode import FORMATS, read_image
from rayddl.data.sources import registry as sources
from rayddl.data.sources import row_groups
from rayddl.data.sources.split_files import missing
from rayddl.data.sources.summary import source_summary
from tests.raising import raises


def _png(value: int, side: int = 5) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (side, side), (value, 0, 0)).save(sink, "PNG")
    return sink.getvalue()


def _shard(path: Path, labels: Sequence[bytes], first: int = 0, kind: str = "cls") -> None:
    with tarfile.open(path, "w") as tar:
        for number, label in enumerate(labels, first):
            for ending, content in (("png", _png(number)), (kind, label)):
                head = tarfile.TarInfo(f"{number:04d}.{ending}")
                head.size = len(content)
                tar.addfile(head, io.BytesIO(content))


def _table(path: Path, labels: Sequence[object], first: int = 0, names: str | None = None) -> None:
    table = pa.table({"image": [_png(first + i) for i in range(len(labels))], "label": pa.array(labels)})
    pq.write_table(table.replace_schema_metadata({"classes": names} if names else None), path)


def _tars(root: Path) -> SourceConfig:
    return SourceConfig(name="webdataset", root=str(root))


def _tables(root: Path, **more: object) -> SourceConfig:
    return SourceConfig.model_validate({"name": "parquet", "root": str(root), **more})


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes of photos, three for training and one held out each."""
    for split, count in (("train", 3), ("val", 1)):
        for value, name in enumerate(("oak", "yew")):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                (folder / f"{number}.png").write_bytes(_png(value))
    return tmp_path


def _folders(root: Path, **more: object) -> SourceConfig:
    return SourceConfig.model_validate({"name": "imagefolder", "root": str(root), **more})


def test_labels_in_tars_are_text_over_all_shards(tmp_path: Path) -> None:
    """A shard of numbers next to one of words is read as text: leading zeros and signs stay."""
    _shard(tmp_path / "train-0.tar", [b"042", b"+5", b"5"])
    _shard(tmp_path / "train-1.tar", [b"042", b"x"], first=3)
    _shard(tmp_path / "val-0.tar", [b"5"])

    found = sources.load(_tars(tmp_path))

    assert found.train.classes == ("5", "042", "+5", "x")
    assert [found.train.classes[label] for label in found.train.labels] == ["042", "+5", "5", "042", "x"]


def test_names_that_look_like_numbers_with_class_names(tmp_path: Path) -> None:
    """One shard's labels are all whole numbers, the other's are not: both are names of ``classes.txt``."""
    (tmp_path / "classes.txt").write_bytes(b"\xef\xbb\xbf101\n7\nb2\n")
    _shard(tmp_path / "train-0.tar", [b"7", b"101"])
    _shard(tmp_path / "train-1.tar", [b"b2"], first=2)
    _shard(tmp_path / "val-0.tar", [b"101"])

    found = sources.load(_tars(tmp_path))

    assert found.train.classes == ("101", "7", "b2")
    assert found.train.labels.tolist() == [1, 0, 2]


@pytest.mark.parametrize(
    ("kind", "label"), [("cls", b"\xef\xbb\xbfelm"), ("json", b'\xef\xbb\xbf{"label": "elm"}')]
)
def test_a_byte_order_mark_is_no_part_of_a_label(tmp_path: Path, kind: str, label: bytes) -> None:
    """Windows editors write one."""
    _shard(
        tmp_path / "train-0.tar",
        [label, label.removeprefix(b"\xef\xbb\xbf"), label.replace(b"elm", b"fir")],
        kind=kind,
    )
    _shard(tmp_path / "val-0.tar", [b"elm"])

    assert sources.load(_tars(tmp_path)).train.classes == ("elm", "fir")


def test_labels_that_are_not_utf8_stay_two(tmp_path: Path) -> None:
    """Two names of an old code page are not merged, and each shows its bytes."""
    _shard(tmp_path / "train-0.tar", [b"p\xe9re", b"p\xe8re"])
    _shard(tmp_path / "val-0.tar", [b"p\xe9re"])

    assert sources.load(_tars(tmp_path)).train.classes == ("p\\xe8re", "p\\xe9re")


def test_tables_with_labels_of_two_types_are_refused(tmp_path: Path) -> None:
    """Numbers in one file and text in the other could be the same classes or not."""
    _table(tmp_path / "train-0.parquet", [3, 4])
    _table(tmp_path / "train-1.parquet", ["03", "4"])
    _table(tmp_path / "test.parquet", [3])

    with raises("labels-of-mixed-types"):
        sources.load(_tables(tmp_path))


@pytest.mark.parametrize("names", [None, "ant\nbee"])
@pytest.mark.parametrize("streamed", [False, True])
def test_rows_without_a_label_are_left_out_and_counted(
    tmp_path: Path, names: str | None, streamed: bool
) -> None:
    """-1 means unlabelled, in memory and in a listing, with class names and without."""
    _table(tmp_path / "train.parquet", [-1, 1, 0, -1, 1, -1], names=names)
    _table(tmp_path / "test.parquet", [0, 1, -1], names=names)
    config = _tables(tmp_path)

    if streamed:
        listed = sources.listing(config)
        assert listed is not None
        labels, classes, notes = listed.labels.tolist(), listed.classes, listed.notes
    else:
        found = sources.load(config)
        labels, classes, notes = found.train.labels.tolist(), found.train.classes, found.notes
        assert found.train.images[:, 0, 0, 0].tolist() == [1, 2, 4]
    assert labels == [1, 0, 1]
    assert classes == (("ant", "bee") if names else ("0", "1"))
    assert [note.split(" with ")[0] for note in notes] == [
        "left out of the train split: 3", "left out of the test split: 1",
    ]  # fmt: skip
    assert (source_summary(config).train, source_summary(config).test) == (3, 2)


def test_tars_without_a_label_are_left_out(tmp_path: Path) -> None:
    """The same for tar shards."""
    _shard(tmp_path / "train-0.tar", [b"-1", b"2", b"1", b"-1"])
    _shard(tmp_path / "val-0.tar", [b"1"])

    found = sources.load(_tars(tmp_path))

    assert found.train.classes == ("1", "2")
    assert found.train.labels.tolist() == [1, 0]
    assert "the train split: 2 with the label -1" in found.notes[0]


def test_a_split_without_any_label_is_refused(tmp_path: Path) -> None:
    """Hugging Face's test splits are often so."""
    _table(tmp_path / "train.parquet", [0, 1])
    _table(tmp_path / "test.parquet", [-1, -1])

    with raises("split-unlabelled"):
        sources.load(_tables(tmp_path))


@pytest.mark.parametrize(
    ("names", "lacking"),
    [
        (["a-00001-of-00003.tar"], ["a-00000-of-00003.tar", "a-00002-of-00003.tar"]),
        (["a-1-of-2.tar"], ["a-0-of-2.tar"]),
        (["a-2-of-2.tar"], ["a-1-of-2.tar"]),
        (["a-1-of-2.tar", "a-2-of-2.tar"], []),
        (["d/t-000003.tar", "d/t-000005.tar"], ["d/t-000004.tar"]),
        (["t_9.tar", "t_12.tar"], ["t_10.tar", "t_11.tar"]),
        (["a-00000-of-00002-0a1b2c3d4e5f6789.parquet"], ["a-00001-of-00002-*.parquet"]),
        (["cifar-10-train.parquet", "x2.parquet"], []),
    ],
)
def test_numbered_files_that_are_missing(names: list[str], lacking: list[str]) -> None:
    """Those that the total promises, and those in a gap."""
    assert missing(names) == lacking


def test_half_a_download_is_refused_by_name(tmp_path: Path) -> None:
    """A pattern that means the half alone takes it."""
    _table(tmp_path / "train-00001-of-00002.parquet", [0, 1])
    _table(tmp_path / "test.parquet", [0, 1])

    with raises("shards-missing"):
        sources.load(_tables(tmp_path))
    with raises("shards-missing"):
        sources.load(_tables(tmp_path, train="train-*"))
    assert len(sources.load(_tables(tmp_path, train="train-00001-of-00002.parquet")).train) == 2


def test_a_row_group_in_several_chunks_is_read_row_by_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A column above 2 GiB comes in chunks that Arrow cannot join: nothing joins them."""
    _table(tmp_path / "train.parquet", [0, 1] * 5)
    _table(tmp_path / "test.parquet", [0, 1])

    class Chunks:
        """A portion that, like one above 2 GiB, can only be indexed."""

        nbytes = 0

        def __init__(self, column: pa.ChunkedArray) -> None:
            self.column = column

        def __len__(self) -> int:
            return len(self.column)

        def __getitem__(self, row: int) -> pa.Scalar:
            return self.column[row]

    whole = row_groups._portions
    monkeypatch.setattr(row_groups, "_portions", lambda *where: map(Chunks, whole(*where)))
    listed = sources.listing(_tables(tmp_path))

    assert listed is not None
    blobs = listed.read(np.array([1, 4, 9]))
    assert [read_image(blob)[0, 0, 0] for blob in blobs if isinstance(blob, bytes)] == [1, 4, 9]


def test_every_file_of_a_class_is_used_or_named(photos: Path) -> None:
    """Uncommon endings of images count as images, unreadable ones are listed, and other files are said."""
    oak = photos / "train" / "oak"
    jpeg = io.BytesIO()
    Image.new("RGB", (5, 5)).save(jpeg, "JPEG")
    for name in ("a.JFIF", "b.jpe", "c.tmp-9.jpg"):
        (oak / name).write_bytes(jpeg.getvalue())
    (oak / "d.heif").write_bytes(b"\0\0\0\x18ftypheix" + bytes(60))
    (oak / "notes.txt").write_text("mine")
    (oak / "e.png.tmp-0a1b2c3d").write_bytes(b"half")

    found = sources.load(_folders(photos, max_bad_fraction=0.5))

    assert found.train.labels.tolist().count(0) == 6
    assert found.bad == (f"{oak / 'd.heif'}: cannot identify image file as one of {', '.join(FORMATS)}",)
    (note,) = found.notes
    assert note.endswith(": 1 with an ending of no image: oak/notes.txt")


def _ramp(root: Path, top: int) -> None:
    ramp = Image.fromarray(np.linspace(0, top, 256).round().astype(np.uint16).reshape(16, 16))
    for split in ("train", "val"):
        for name in ("a", "b"):
            folder = root / split / name
            folder.mkdir(parents=True, exist_ok=True)
            ramp.save(folder / "0.png")


def test_dark_images_of_16_bits_are_noted_and_their_range_is_a_key(tmp_path: Path) -> None:
    """10-bit values use 4 grey levels without the key, and all with it, in memory and in streams."""
    _ramp(tmp_path, 1023)

    dark, light = sources.load(_folders(tmp_path)), sources.load(_folders(tmp_path, range=1023))

    assert dark.train.images.max() == 4
    assert "source.range=1023" in dark.notes[0]
    assert light.notes == ()
    assert light.train.images[0].flatten().tolist() == list(range(256))
    assert dark.fingerprint != light.fingerprint
    listed = sources.listing(_folders(tmp_path, range=1023))
    assert listed is not None
    (blob,) = listed.read(np.array([1]))
    assert isinstance(blob, bytes)
    assert read_image(blob).flatten().tolist() == list(range(256))


def test_values_above_the_range_make_an_image_unreadable(tmp_path: Path) -> None:
    """They are not clipped to white."""
    _ramp(tmp_path, 1024)

    with raises("too-many-bad-images"):
        sources.load(_folders(tmp_path, range=1023))


def test_full_images_of_16_bits_have_no_note(tmp_path: Path) -> None:
    """15 bits are not taken for a mistake."""
    _ramp(tmp_path, 32767)

    assert sources.load(_folders(tmp_path)).notes == ()


@pytest.mark.parametrize("what", ["file", "class", "split"])
def test_a_link_out_of_the_root_is_refused(
    photos: Path, tmp_path_factory: pytest.TempPathFactory, what: str
) -> None:
    """An image, a class or a whole split; ``follow_links`` takes one's own."""
    aside = tmp_path_factory.mktemp("aside")
    (aside / "ash").mkdir()
    for name in ("ash/0.png", "mine.png"):
        (aside / name).write_bytes(_png(77))
    if what == "file":
        (photos / "train/oak/9.png").symlink_to(aside / "mine.png")
    elif what == "class":
        (photos / "train/ash").symlink_to(aside / "ash")
    else:
        (photos / "train").rename(aside / "train")
        (photos / "train").symlink_to(aside / "train")

    with raises("link-leaves-root"):
        sources.fingerprint(_folders(photos))
    found = sources.load(_folders(photos, follow_links=True))
    assert len(found.train) == (6 if what == "split" else 7)


def test_a_link_inside_the_root_is_followed(photos: Path) -> None:
    """Two splits may share files."""
    (photos / "train/oak/8.png").symlink_to(photos / "val/oak/0.png")

    assert len(sources.load(_folders(photos)).train) == 7


@pytest.mark.parametrize("follow", [False, True])
def test_links_in_a_circle_are_refused(photos: Path, follow: bool) -> None:
    """A link to a folder above has no end."""
    (photos / "train/oak/again").symlink_to(photos / "train")

    with raises("link-in-circle"):
        sources.fingerprint(_folders(photos, follow_links=follow))


def test_paths_in_a_table_do_not_leave_by_a_link(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Nor does the table itself: the row is unreadable, the table is refused."""
    aside = tmp_path_factory.mktemp("aside")
    (aside / "secret.png").write_bytes(_png(200))
    (tmp_path / "link.png").symlink_to(aside / "secret.png")
    cells = pa.StructArray.from_arrays(
        [pa.array([None, _png(1), _png(2)], pa.binary()), pa.array(["link.png", "", ""])], ["bytes", "path"]
    )
    pq.write_table(pa.table({"image": cells, "label": [0, 0, 1]}), tmp_path / "train.parquet")
    _table(tmp_path / "test.parquet", [0, 1])

    found = sources.load(_tables(tmp_path, max_bad_fraction=0.5))
    assert len(found.train) == 2
    assert "a link leads out of" in found.bad[0]
    listed = sources.listing(_tables(tmp_path))
    assert listed is not None
    assert [type(blob) for blob in listed.read(np.arange(3))] == [ValueError, bytes, bytes]
    own = sources.load(_tables(tmp_path, follow_links=True))
    assert own.train.images[0, 0, 0, 0] == 200

    (tmp_path / "train.parquet").rename(aside / "train.parquet")
    (tmp_path / "train.parquet").symlink_to(aside / "train.parquet")
    with raises("link-leaves-root"):
        sources.load(_tables(tmp_path))


@pytest.mark.parametrize("streamed", [False, True])
def test_names_that_are_not_utf8_are_carried_through(photos: Path, streamed: bool) -> None:
    """A file and a class of an old archive show their bytes, and are read."""
    raw = os.fsencode(photos)
    for split in (b"train", b"val"):
        os.rename(raw + b"/" + split + b"/yew", raw + b"/" + split + b"/if\xe8")
    os.rename(raw + b"/train/oak/1.png", raw + b"/train/oak/ch\xeane.png")

    if streamed:
        listed = sources.listing(_folders(photos))
        assert listed is not None
        assert "oak/ch\\xeane.png" in listed.names.to_pylist()
        assert all(isinstance(blob, bytes) for blob in listed.read(np.arange(6)))
        assert listed.classes == ("if\\xe8", "oak")
    else:
        found = sources.load(_folders(photos))
        assert found.train.classes == ("if\\xe8", "oak")
        assert found.train.images[:, 0, 0, 0].tolist() == [1, 1, 1, 0, 0, 0]


def test_a_list_of_class_names_does_not_leave_by_a_link(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """No line of another file becomes a class."""
    aside = tmp_path_factory.mktemp("aside")
    (aside / "private").write_text("one\ntwo\n")
    (tmp_path / "classes.txt").symlink_to(aside / "private")
    for name in ("train", "val"):
        _shard(tmp_path / f"{name}-0.tar", [b"0", b"1"])

    with raises("link-leaves-root"):
        sources.fingerprint(_tars(tmp_path))


@pytest.mark.parametrize(("names", "labels"), [("4\n7\n20\n", [2, 0, 1]), ("2\n0\n1\n", [1, 2, 0])])
def test_whole_numbers_with_class_names_that_are_numbers(
    tmp_path: Path, names: str, labels: list[int]
) -> None:
    """They are names if they cannot be numbers of lines, and else numbers of lines."""
    (tmp_path / "classes.txt").write_text(names)
    written = [b"20", b"4", b"7"] if "20" in names else [b"1", b"2", b"0"]
    for split in ("train", "val"):
        _shard(tmp_path / f"{split}-0.tar", written)

    assert sources.load(_tars(tmp_path)).train.labels.tolist() == labels
