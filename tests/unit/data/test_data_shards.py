"""Tar shards in the WebDataset layout as a source: listed by headers, read by place, refused with reasons."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path, PurePosixPath
from typing import cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rayddl.data.config import SourceConfig
from rayddl.data.distilled import DistilledSet
from rayddl.data.formats import export
from rayddl.data.pixels.space import Normalise
from rayddl.data.sources import registry as sources
from rayddl.data.sources import tar_samples
from rayddl.data.sources.summary import source_summary
from rayddl.errors import SourceError
from rayddl.storage import Folder
from tests.raising import raises

Members = list[tuple[str, bytes]]


def _png(value: int, side: int = 6) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(np.full((side, side, 3), value, np.uint8)).save(sink, "PNG")
    return sink.getvalue()


def _tar(path: Path, members: Members) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            head = tarfile.TarInfo(name)
            head.size = len(content)
            tar.addfile(head, io.BytesIO(content))


def _samples(first: int, count: int, classes: int = 3) -> Members:
    members: Members = []
    for k in range(first, first + count):
        members += [(f"{k:05d}.png", _png(k)), (f"{k:05d}.cls", str(k % classes).encode())]
    return members


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.text(alphabet="./_ab", min_size=1, max_size=10))
def test_samples_are_keyed_by_the_path_up_to_the_first_dot_of_its_name(name: str) -> None:
    """As pathlib normalises it; hidden files of macOS are none."""
    path = PurePosixPath(f"{name}.png")
    key, _, kind = path.name.partition(".")
    hidden = not key or any(part.startswith("._") for part in path.parts)
    member = tarfile.TarInfo(f"{name}.png")
    found = tar_samples.Samples()
    found.add(cast(tarfile.TarFile, None), member, "here")
    assert list(found.images) == (
        [] if hidden or not f".{kind}".endswith(".png") else [str(path.with_name(key))]
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two train shards and a held-out one, with class names beside them."""
    _tar(tmp_path / "set-train-000000.tar", _samples(0, 10))
    _tar(tmp_path / "set-train-000001.tar", _samples(10, 8))
    _tar(tmp_path / "set-val-000000.tar", _samples(100, 5))
    (tmp_path / "classes.txt").write_text("ant\nbee\ncow\n")
    return tmp_path


def _config(root: Path, **changes: object) -> SourceConfig:
    return SourceConfig.model_validate({"name": "webdataset", "root": str(root), **changes})


def test_both_splits_are_loaded_with_their_class_names(root: Path) -> None:
    """Every image once, with its own label, of both shards."""
    found = sources.load(_config(root))
    assert found.train.classes == ("ant", "bee", "cow")
    assert found.train.images[:, 0, 0, 0].tolist() == list(range(18))
    assert found.train.labels.tolist() == [k % 3 for k in range(18)]
    assert found.test.images[:, 0, 0, 0].tolist() == list(range(100, 105))
    assert found.bad == ()


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_listing_reads_each_image_by_its_place(root: Path, split: str) -> None:
    """Any image alone has the bytes that were put into the shard."""
    listing = sources.listing(_config(root), split)  # type: ignore[arg-type]  # a parameter
    assert listing is not None
    first = 0 if split == "train" else 100
    for position in reversed(range(len(listing))):
        (blob,) = listing.read(np.array([position]))
        assert blob == _png(first + position)
    names = listing.names.to_pylist()
    assert names == sorted(names)
    assert names[0].split("#")[1] == f"{first:05d}"


def test_the_fingerprint_knows_contents_and_not_places(
    root: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A copy elsewhere is the same source; another label is another one."""
    other = tmp_path_factory.mktemp("copy")
    for file in root.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    assert sources.fingerprint(_config(root)) == sources.fingerprint(_config(other))
    members = _samples(10, 8)
    members[1] = ("00010.cls", b"2")
    _tar(other / "set-train-000001.tar", members)
    assert sources.fingerprint(_config(root)) != sources.fingerprint(_config(other))


def test_labels_as_text_and_in_json(tmp_path: Path) -> None:
    """Text labels name their classes; ``cls`` goes before ``json``, whatever the order of members."""
    text = [("cat", "cls"), ("dog", "json"), ("cat", "json")]
    members: Members = []
    for k, (label, kind) in enumerate(text):
        content = label.encode() if kind == "cls" else json.dumps({"label": label, "width": 6}).encode()
        members += [(f"deep/er/{k}.{kind}", content), (f"deep/er/{k}.image.PNG", _png(k))]
    members += [("deep/er/0.json", b'{"label": "dog"}')]
    _tar(tmp_path / "train.tar", members)
    _tar(
        tmp_path / "test.tar", [("x.png", _png(9)), ("x.json", b'{"label": "dog"}'), ("x.txt", b"a caption")]
    )
    found = sources.load(_config(tmp_path))
    assert found.train.classes == ("cat", "dog")
    assert found.train.labels.tolist() == [0, 1, 0]
    assert found.test.labels.tolist() == [1]


def test_what_is_no_sample_is_passed_over(tmp_path: Path) -> None:
    """Folders, captions, hidden files of other systems and links are no images."""
    for split in ("train", "test"):
        with tarfile.open(tmp_path / f"{split}.tar", "w") as tar:
            folder = tarfile.TarInfo("all")
            folder.type = tarfile.DIRTYPE
            tar.addfile(folder)
            link = tarfile.TarInfo("all/evil.png")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(link)
            for name, content in [*_samples(0, 4, 2), ("all/._0.png", b"x"), ("all/0.txt", b"words")]:
                head = tarfile.TarInfo(name)
                head.size = len(content)
                tar.addfile(head, io.BytesIO(content))
    found = sources.load(_config(tmp_path))
    assert len(found.train) == 4
    assert found.notes == tuple(
        f"left out of the {split} split: 1 without an image: {split}.tar#all/evil (all/evil.png is a symbolic link)"
        for split in ("train", "test")
    )


def _link(name: str, to: str, kind: bytes = tarfile.LNKTYPE) -> tarfile.TarInfo:
    link = tarfile.TarInfo(name)
    link.type, link.linkname = kind, to
    return link


def _linked(path: Path, members: Members, *links: tarfile.TarInfo) -> None:
    _tar(path, members)
    with tarfile.open(path, "a") as tar:
        for link in links:
            tar.addfile(link)


def test_a_second_name_of_a_file_is_the_file(root: Path) -> None:
    """GNU tar stores it as a hard link to the first, which may have another folder or be a link, too."""
    links = [
        ("x/a.png", "./00010.png"),
        ("x/a.cls", "00011.cls"),
        ("b.png", "x/a.png"),
        ("b.cls", "00010.cls"),
    ]
    _linked(root / "set-train-000001.tar", _samples(10, 8), *(_link(*each) for each in links))
    found = sources.load(_config(root))
    assert found.train.images[-2:, 0, 0, 0].tolist() == [10, 10]
    assert found.train.labels[-2:].tolist() == [1, 2]
    assert len(found.train) == 20
    assert found.notes == ()
    listing = sources.listing(_config(root))
    assert listing is not None
    (blob,) = listing.read(np.array([19]))
    assert blob == _png(10)


def test_labels_without_an_image_are_listed(root: Path) -> None:
    """With the reason, where the image is in the shard and cannot be read."""
    labels = [(f"{key}.cls", b"0") for key in "abcde"]
    odd = [
        _link("a.png", "later.png"),
        _link("b.png", "/etc/x", tarfile.SYMTYPE),
        _link("c.png", "", tarfile.FIFOTYPE),
    ]
    _linked(root / "set-train-000001.tar", [*_samples(10, 8), *labels, ("d.npy", b"x")], *odd)
    found = sources.load(_config(root))
    assert len(found.train) == 18
    assert found.notes == (
        "left out of the train split: 5 without an image: set-train-000001.tar#a (a.png is a link to later.png, which "
        "is not before it), set-train-000001.tar#b (b.png is a symbolic link), set-train-000001.tar#c (c.png is no "
        "file), set-train-000001.tar#d, set-train-000001.tar#e",
    )


def test_why_a_label_is_not_read(root: Path) -> None:
    """One that is a link out of the shard, or too large."""
    shard = root / "set-val-000000.tar"
    _linked(shard, [("a.png", _png(1))], _link("a.cls", "b.cls", tarfile.SYMTYPE))
    assert "1 of 1 images have no label: a (a.cls is a symbolic link)" in _refusal(root)
    _tar(shard, [("a.png", _png(1)), ("a.cls", bytes(2**20 + 1))])
    said = "1 of 1 images have no label: a (a.cls has 1,048,577 bytes, a label has up to 1,048,576)"
    assert said in _refusal(root)


def test_links_to_one_label_have_a_limit(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link is 512 bytes long, and what it leads to may be long."""
    monkeypatch.setenv("RAYDDL_MAX_LABEL_BYTES", "5000")
    _linked(
        root / "set-train-000001.tar",
        [*_samples(10, 8), ("long.cls", b"x" * 1000)],
        *(_link(f"{k}.cls", "long.cls") for k in range(5)),
    )
    with raises("labels-too-large"):
        sources.load(_config(root))


def test_an_unreadable_image_is_counted_not_fatal(root: Path) -> None:
    """It is named by shard and sample."""
    members = _samples(10, 8)
    members[2] = ("00011.png", b"no image")
    _tar(root / "set-train-000001.tar", members)
    found = sources.load(_config(root, max_bad_fraction=0.1))
    assert len(found.train) == 17
    assert len(found.bad) == 1
    assert found.bad[0].startswith("set-train-000001.tar#00011: cannot identify image file")


def test_the_glance_counts_without_decoding(root: Path) -> None:
    """What a plan's estimates are made from."""
    seen = source_summary(_config(root))
    assert (seen.shape, seen.classes, seen.train, seen.test) == ((3, 6, 6), 3, 18, 5)


def test_an_export_of_a_set_can_be_a_source(tmp_path: Path) -> None:
    """What ``rayddl export --format webdataset`` writes opens with its class names and pixels."""
    space = Normalise((3, 4, 4), torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64))
    pixels = torch.arange(4 * 48, dtype=torch.uint8).view(4, 3, 4, 4)
    made = DistilledSet(pixels, torch.tensor([0, 0, 1, 1]), 0.1, ("b", "a"), space)
    made.save(Folder(str(tmp_path / "set")))
    export.export_set(Folder(str(tmp_path / "set")), "webdataset", Folder(str(tmp_path / "out")))
    config = _config(tmp_path / "out", train="train-*.tar", test="val-*.tar")
    (tmp_path / "out" / "val-0.tar").write_bytes((tmp_path / "out" / "train-000000.tar").read_bytes())
    found = sources.load(config)
    assert found.train.classes == ("b", "a")
    assert torch.equal(found.train.images, pixels)
    assert found.train.labels.tolist() == [0, 0, 1, 1]


def _refusal(root: Path, **changes: object) -> str:
    with pytest.raises(SourceError) as caught:
        sources.fingerprint(_config(root, **changes))
    return str(caught.value)


def test_missing_shards_are_told(tmp_path: Path) -> None:
    """What was looked for, and what is there."""
    _tar(tmp_path / "images.tar", _samples(0, 4))
    said = _refusal(tmp_path)
    assert "no file for the train split. Looked for *train*.tar, data/*train*.tar" in said
    assert "It holds: images.tar. Set source.root, or source.train" in said


def test_compressed_and_cut_off_shards_are_told(root: Path) -> None:
    """Each with its name and the way out."""
    shard = root / "set-train-000001.tar"
    whole = shard.read_bytes()
    shard.write_bytes(gzip.compress(whole))
    said = _refusal(root)
    assert f"{shard} cannot be read as a plain tar file" in said
    assert "Compressed shards are to be unpacked" in said
    for kept in (512 * 4, 512 * 6 + 100, 512 * 7, 512 * 8):
        shard.write_bytes(whole[:kept])
        said = _refusal(root)
        assert f"{shard} cannot be read as a plain tar file" in said
        assert "a damaged one is to be copied again" in said


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ([("a.png", _png(1))], "1 of 1 images have no label: a. Expected samples of an image (.png"),
        ([("a.png", _png(1)), ("a.cls", b"  ")], "1 of 1 images have no label: a"),
        ([("a.png", _png(1)), ("a.json", b"[0]")], "1 of 1 images have no label: a"),
        ([("a.png", _png(1)), ("a.json", b"{")], "1 of 1 images have no label: a"),
        ([("a.png", _png(1)), ("a.json", b'{"label": true}')], "1 of 1 images have no label: a"),
        (
            [("a.png", _png(1)), ("a.jpg", _png(2)), ("a.cls", b"0")],
            "the sample a has two images, the second is a.jpg",
        ),
        (
            [("a.png", _png(1)), ("a.cls", b"7")],
            "labels in column 'cls' run from 7 to 7, but there are 3 class names",
        ),
        ([], "the test split has no images (set-val-000000.tar)"),
    ],
)
def test_odd_samples_are_refused(root: Path, members: Members, said: str) -> None:
    """Nothing is guessed about a label."""
    _tar(root / "set-val-000000.tar", members)
    assert said in _refusal(root)


def test_one_class_is_refused(tmp_path: Path) -> None:
    """There is nothing to tell apart."""
    for split in ("train", "test"):
        _tar(tmp_path / f"{split}.tar", _samples(0, 4, 1))
    assert "found only the class '0', at least two are needed" in _refusal(tmp_path)


def _header(**fields: object) -> bytes:
    head = tarfile.TarInfo("00000.png")
    for name, value in fields.items():
        setattr(head, name, value)
    return head.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    "data",
    [
        _header(size=2**62),
        _header(size=2**40, type=tarfile.XHDTYPE),
        _header(size=2**40, type=tarfile.GNUTYPE_LONGNAME),
        _header(size=10, type=tarfile.XHDTYPE) + b"99999 a=b\n".ljust(512, b"\0"),
        _header(size=20, type=tarfile.XHDTYPE) + b"20 size=-1000000000\n".ljust(512, b"\0"),
        (_header(size=1, type=tarfile.GNUTYPE_LONGNAME) + b"a".ljust(512, b"\0")) * 3000,
        _header(size=512, type=tarfile.GNUTYPE_SPARSE) + bytes(512),
    ],
)
def test_headers_that_say_nonsense_are_refused(root: Path, data: bytes) -> None:
    """Sizes beyond the file, damaged extensions, endless chains and sparse members: one error, at once."""
    (root / "set-train-000001.tar").write_bytes(data + bytes(1024))
    with pytest.raises(SourceError) as caught:
        sources.fingerprint(_config(root))
    assert caught.value.code in ("shard-unreadable", "image-too-large", "images-without-label")


def test_an_image_above_the_limit_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its size is known from the header."""
    monkeypatch.setenv("RAYDDL_MAX_CELL_BYTES", "10")
    _tar(root / "set-train-000001.tar", [("7.png", bytes(11)), ("7.cls", b"1")])
    with raises("image-too-large"):
        sources.fingerprint(_config(root))


def test_class_names_that_are_not_utf_8_are_shown(root: Path) -> None:
    """Their odd bytes are written as numbers, as those of labels are."""
    (root / "classes.txt").write_bytes(b"ant\nb\xe9e\ncow\n")
    assert sources.load(_config(root)).train.classes == ("ant", "b\\xe9e", "cow")
