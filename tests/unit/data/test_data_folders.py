"""Image folders: what is listed, what is matched, and what is said when the tree is not as expected."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rayddl.data.config import SourceConfig
from rayddl.data.pixels.decode import read_image
from rayddl.data.sources import registry as sources
from rayddl.errors import SourceError
from rayddl.filenames import FileList
from rayddl.storage import Folder

Encode = Callable[..., bytes]


def config(root: Path | str, **settings: object) -> SourceConfig:
    """An ``imagefolder`` source in ``root``."""
    return SourceConfig.model_validate({"name": "imagefolder", "root": str(root), **settings})


def message(source: SourceConfig) -> str:
    """What the user reads when the source is refused, before any image is decoded."""
    with pytest.raises(SourceError) as caught:
        sources.fingerprint(source)
    return str(caught.value)


@pytest.fixture
def put(tmp_path: Path, encode: Encode) -> Callable[..., Path]:
    """Writes an image (or the given bytes) below the test's folder."""

    def write(name: str, data: bytes | None = None, seed: int = 0) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(seed) if data is None else data)
        return path

    return write


@pytest.fixture
def tree(put: Callable[..., Path], encode: Encode, tmp_path: Path) -> Path:
    """Two classes, four training and three held-out images of several formats."""
    put("train/dog/1.png", seed=1)
    put("train/dog/2.JPG", encode(2, form="JPEG"))
    put("train/cat/1.webp", encode(3, form="WEBP", lossless=True))
    put("train/cat/deeper/2.gif", encode(4, form="GIF"))
    put("val/cat/1.png", seed=5)
    put("val/cat/2.bmp", encode(6, form="BMP"))
    put("val/dog/1.tif", encode(7, form="TIFF"))
    return tmp_path


def test_classes_are_sorted_folder_names(tree: Path) -> None:
    """Images come in the order of their names, of any format, from folders within a class too."""
    source = sources.load(config(tree))

    assert source.train.classes == source.test.classes == ("cat", "dog")
    assert source.train.labels.tolist() == [0, 0, 1, 1]
    assert source.test.labels.tolist() == [0, 0, 1]
    assert source.train.shape == (3, 8, 8)
    expected = read_image((tree / "train/dog/1.png").read_bytes()).transpose(2, 0, 1)
    assert np.array_equal(source.train.images[2].numpy(), expected)
    assert source.fingerprint == sources.fingerprint(config(tree))


def test_what_is_no_image_is_not_listed(tree: Path, put: Callable[..., Path]) -> None:
    """Other files, hidden ones, and files outside the class folders are passed over."""
    before = sources.fingerprint(config(tree))
    for name in ("train/readme.png", "train/cat/notes.txt", "train/cat/.x.png", "train/.cache/dog/1.png"):
        put(name)

    assert sources.fingerprint(config(tree)) == before


def test_the_held_out_split_is_matched_by_name(tree: Path) -> None:
    """A held-out split without the first class keeps the train split's labels."""
    shutil.rmtree(tree / "val/cat")

    assert sources.load(config(tree)).test.labels.tolist() == [1]


@pytest.mark.parametrize(("present", "used"), [(("test",), "test"), (("test", "val"), "val")])
def test_val_comes_before_test(tree: Path, present: tuple[str, ...], used: str) -> None:
    """``val`` is taken where both are there, since ``test`` may come without labels."""
    (tree / "val").rename(tree / "held")
    for name in present:
        shutil.copytree(tree / "held", tree / name)
    (tree / used / "dog" / "1.tif").unlink()
    shutil.rmtree(tree / used / "dog")

    assert sources.load(config(tree)).test.counts() == (2, 0)


def test_splits_of_other_names(tree: Path) -> None:
    """``train`` and ``test`` name the folders."""
    (tree / "train").rename(tree / "learn")
    (tree / "val").rename(tree / "judge")

    assert len(sources.load(config(tree, train="learn", test="judge")).train) == 4


@pytest.mark.parametrize("uri", [False, True])
def test_moving_a_folder_keeps_the_fingerprint(tree: Path, tmp_path: Path, uri: bool) -> None:
    """A copy elsewhere, or the same place as a URI, holds the same source."""
    before = sources.fingerprint(config(tree))
    copy = tmp_path / "copied"
    shutil.copytree(tree / "train", copy / "train")
    shutil.copytree(tree / "val", copy / "val")
    moved = config(copy.as_uri() if uri else copy)

    assert sources.fingerprint(moved) == before
    assert sources.load(moved).train.labels.tolist() == [0, 0, 1, 1]


def test_the_fingerprint_follows_names_and_sizes(tree: Path, put: Callable[..., Path]) -> None:
    """A renamed, added or otherwise long file is another source."""
    seen = {sources.fingerprint(config(tree))}
    (tree / "train/dog/1.png").rename(tree / "train/dog/3.png")
    seen.add(sources.fingerprint(config(tree)))
    put("train/dog/4.png")
    seen.add(sources.fingerprint(config(tree)))
    put("train/dog/4.png", (tree / "train/dog/4.png").read_bytes() + b"x")
    seen.add(sources.fingerprint(config(tree)))

    assert len(seen) == 4


def test_unreadable_files_are_listed_by_path(tree: Path, put: Callable[..., Path], encode: Encode) -> None:
    """A truncated file and an empty one are left out with their paths."""
    broken = put("train/cat/9.png", encode(1)[:50])
    empty = put("val/dog/9.png", b"")

    source = sources.load(config(tree, max_bad_fraction=0.3))

    assert len(source.train) == 4
    assert len(source.bad) == 2
    assert source.bad[0].startswith(f"{broken}: ")
    assert source.bad[1] == f"{empty}: no bytes"


def test_a_missing_root(tmp_path: Path) -> None:
    """The path and what was looked for in it."""
    assert message(config(tmp_path / "x")) == (
        f"source imagefolder: there is no folder {tmp_path / 'x'}. Looked for train/<class>/<image> in it. "
        "Set source.root."
    )


def test_a_missing_split_shows_the_expected_tree(tree: Path) -> None:
    """What is there, and how it should look."""
    shutil.rmtree(tree / "val")

    assert message(config(tree)) == (
        f"source imagefolder in {tree}: there is no folder test. It holds: train. Expected:\n"
        f"  {tree}/\n"
        "    train/\n      cat/  0001.png ...\n      dog/  0001.png ...\n"
        "    val or test/\n      cat/  0001.png ...\n      dog/  0001.png ...\n"
        "Set source.root, source.train or source.test. Without a held-out split, set source.holdout, for example "
        "--set source.holdout=0.2."
    )


def test_an_empty_root(tmp_path: Path) -> None:
    """The train split is looked for first."""
    assert message(config(tmp_path)).startswith(
        f"source imagefolder in {tmp_path}: there is no folder train. It holds: no folder. Expected:\n"
    )


def test_a_split_without_images(tree: Path) -> None:
    """The folder and the endings that count."""
    shutil.rmtree(tree / "val")
    (tree / "val").mkdir()

    text = message(config(tree))

    assert text.startswith(
        f"source imagefolder: no image in {tree}/val. Looked for <class>/<image> with an ending of .png, "
    )


def test_a_class_without_images(tree: Path, put: Callable[..., Path]) -> None:
    """An empty class folder is named rather than dropped."""
    put("train/eel/notes.txt")

    assert message(config(tree)).startswith(
        f"source imagefolder: no image in the class folders eel of {tree}/train. Looked for endings .png, "
    )


def test_a_held_out_class_that_was_never_seen(tree: Path, put: Callable[..., Path]) -> None:
    """Classes are matched by folder name."""
    put("val/eel/1.png")

    assert message(config(tree)) == (
        f"source imagefolder in {tree}: {tree}/val has classes that {tree}/train has not: eel. Classes are "
        "matched by folder name."
    )


def test_one_class(tree: Path) -> None:
    """There is nothing to tell apart."""
    shutil.rmtree(tree / "train/dog")

    assert message(config(tree)) == (
        f"source imagefolder in {tree}: found only the class 'cat', at least two are needed. Looked for "
        "train/<class>/<image>."
    )


def test_a_folder_that_may_not_be_read(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of the file system is the source's error, with its place."""

    def forbidden(self: Folder, within: Folder | None) -> FileList:
        raise PermissionError(f"Permission denied: {self}")

    monkeypatch.setattr(Folder, "listed", forbidden)

    assert message(config(tree)) == (
        f"source imagefolder in {tree} cannot be read: Permission denied: {tree}/train. Check that it is "
        "there and may be read by this user."
    )
