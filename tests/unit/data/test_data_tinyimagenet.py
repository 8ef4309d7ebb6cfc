"""Tiny-ImageNet's own layout: labels from its text files, and what is said when they do not fit."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image
from pydantic import ValidationError

from rayddl.data.config import SourceConfig
from rayddl.data.sources import registry as sources
from rayddl.errors import SourceError

Encode = Callable[..., bytes]
A, B = "n01443537", "n02123045"


def config(root: Path, **settings: object) -> SourceConfig:
    """A ``tinyimagenet`` source in ``root``."""
    return SourceConfig.model_validate({"name": "tinyimagenet", "root": str(root), **settings})


def message(root: Path) -> str:
    """What the user reads when the source is refused, before any image is decoded."""
    with pytest.raises(SourceError) as caught:
        sources.fingerprint(config(root))
    return str(caught.value)


@pytest.fixture
def root(tmp_path: Path, encode: Encode) -> Path:
    """Two classes as the archive has them: ids out of order, one grey image, boxes that nobody needs."""
    for wnid in (A, B):
        folder = tmp_path / "train" / wnid / "images"
        folder.mkdir(parents=True)
        (tmp_path / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t0\t63\t63\n")
        for number in range(3):
            mode = "L" if (wnid, number) == (A, 1) else "RGB"
            data = encode(number, side=64, mode=mode, form="JPEG")
            (folder / f"{wnid}_{number}.JPEG").write_bytes(data)
    (tmp_path / "val/images").mkdir(parents=True)
    for number in range(3):
        data = encode(Image.new("RGB", (64, 64), (80 * number, 0, 0)), form="JPEG")
        (tmp_path / f"val/images/val_{number}.JPEG").write_bytes(data)
    (tmp_path / "val/val_annotations.txt").write_text(
        f"val_0.JPEG\t{B}\t0\t32\t44\t62\nval_1.JPEG\t{A}\t0\t0\t9\t9\nval_2.JPEG\t{B}\t1\t1\t8\t8\n"
    )
    (tmp_path / "wnids.txt").write_text(f"{B}\n{A}\n")
    (tmp_path / "words.txt").write_text(f"{A}\tgoldfish\n{B}\ttabby\n")
    (tmp_path / "test/images").mkdir(parents=True)
    return tmp_path


def test_both_splits(root: Path) -> None:
    """Classes are sorted ids; grey images become RGB; labels of val come from its annotations."""
    source = sources.load(config(root))

    assert source.train.classes == source.test.classes == (A, B)
    assert source.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert source.train.shape == (3, 64, 64)
    assert bool((source.train.images[1, 0] == source.train.images[1, 2]).all())
    assert source.test.labels.tolist() == [1, 0, 1]
    assert source.test.images[:, 0].float().mean((1, 2)).round().tolist() == pytest.approx(
        [0, 80, 160], abs=2
    )


def test_the_fingerprint_follows_annotations_not_places(root: Path, tmp_path: Path) -> None:
    """A copy is the same source; another held-out label or image makes another one."""
    first = sources.fingerprint(config(root))
    copy = tmp_path / "copy"
    for part in ("train", "val"):
        shutil.copytree(root / part, copy / part)
    shutil.copy(root / "wnids.txt", copy)
    assert sources.fingerprint(config(copy)) == first

    annotations = copy / "val/val_annotations.txt"
    annotations.write_text(annotations.read_text().replace(f"val_1.JPEG\t{A}", f"val_1.JPEG\t{B}"))
    assert sources.fingerprint(config(copy)) != first


def test_what_is_missing_is_named_with_the_expected_tree(root: Path) -> None:
    """Files and folders alike, in one error."""
    (root / "val/val_annotations.txt").unlink()
    (root / "wnids.txt").unlink()
    shutil.rmtree(root / "train")

    assert message(root) == (
        f"source tinyimagenet in {root}: missing: train, wnids.txt, val/val_annotations.txt. It holds: test, val, "
        "words.txt. Expected:\n"
        f"  {root}/\n"
        "    wnids.txt\n"
        "    train/\n      n01443537/  n01443537_boxes.txt  images/  n01443537_0.JPEG ...\n      ...\n"
        "    val/\n      val_annotations.txt\n      images/  val_0.JPEG ...\n"
        "Set source.root to the folder that was unpacked (tiny-imagenet-200).\n"
        "A copy whose val/ was sorted into class folders is read with source.name=imagefolder."
    )


def test_class_folders_that_do_not_agree_with_the_ids(root: Path) -> None:
    """Both what is missing and what is too many."""
    (root / "train" / A).rename(root / "train" / "n09999999")

    assert message(root) == (
        f"source tinyimagenet: {root}/train does not agree with wnids.txt: no folder for 1 of its classes: {A}; "
        "folders that it does not list: n09999999. Unpack the archive again, or keep the ids of the classes you "
        "want in wnids.txt and their folders."
    )


def test_a_class_without_images(root: Path) -> None:
    """Its folder is named."""
    shutil.rmtree(root / "train" / B / "images")

    assert message(root).startswith(
        f"source tinyimagenet: no image in the class folders {B} of {root}/train."
    )


def test_images_and_annotations_must_agree(root: Path) -> None:
    """An image without a line and a line without an image."""
    (root / "val/images/val_0.JPEG").rename(root / "val/images/val_9.JPEG")

    assert message(root) == (
        f"source tinyimagenet: {root}/val/val_annotations.txt does not agree with {root}/val/images: 1 images "
        "without a line: val_9.JPEG; 1 lines without an image: val_0.JPEG. Unpack the archive again."
    )


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("val_0.JPEG\tn00000001\t0", "the class 'n00000001', which wnids.txt does not list"),
        ("val_0.JPEG n02123045", "'val_0.JPEG n02123045'"),
    ],
)
def test_an_annotation_that_cannot_be_used(root: Path, line: str, found: str) -> None:
    """File, line, what was expected and what stands there."""
    (root / "val/val_annotations.txt").write_text(f"val_1.JPEG\t{A}\t0\n\n{line}\n")

    assert message(root) == (
        f"source tinyimagenet: {root}/val/val_annotations.txt, line 3: expected an image's name, a tab and its "
        f"class's id, found {found}."
    )


def test_no_held_out_images(root: Path) -> None:
    """The folder and the endings that count."""
    for path in (root / "val/images").iterdir():
        path.unlink()

    assert message(root).startswith(
        f"source tinyimagenet: no image in {root}/val/images. Looked for <image> with"
    )


def test_one_class(root: Path) -> None:
    """There is nothing to tell apart."""
    (root / "wnids.txt").write_text(f"{A}\n")

    assert message(root) == (
        f"source tinyimagenet in {root}: found only the class '{A}', at least two are needed. Looked for "
        "wnids.txt, an id a line."
    )


def test_splits_cannot_be_renamed(tmp_path: Path) -> None:
    """The layout is fixed, so the keys would be ignored; they are refused."""
    with pytest.raises(
        ValidationError, match="train and test are fixed for name: tinyimagenet; leave them out"
    ):
        config(tmp_path, train="learn")


def test_real_images_in_the_official_layout(tmp_path: Path, shared_data: Path) -> None:
    """Published files give the pixels that they give from a table, grey ones among them."""
    splits = {s: pq.read_table(shared_data / f"tinyimagenet20-{s}.parquet") for s in ("train", "val")}
    names = splits["train"].schema.metadata[b"classes"].decode().splitlines()
    rows = {split: table.to_pylist() for split, table in splits.items()}
    few = [r for r in rows["train"] if r["label"] in (0, 3)]
    for row in few:
        path = tmp_path / "train" / names[row["label"]] / "images" / row["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(row["image"])
    (tmp_path / "val/images").mkdir(parents=True)
    held = [r for r in rows["val"] if r["label"] in (0, 3)]
    for number, row in enumerate(held):
        (tmp_path / f"val/images/val_{number}.JPEG").write_bytes(row["image"])
    (tmp_path / "val/val_annotations.txt").write_text(
        "".join(f"val_{n}.JPEG\t{names[row['label']]}\t0\t0\t1\t1\n" for n, row in enumerate(held))
    )
    (tmp_path / "wnids.txt").write_text(f"{names[3]}\n{names[0]}\n")

    source = sources.load(config(tmp_path))

    assert source.train.counts() == (500, 500)
    assert source.test.counts() == (50, 50)
    assert source.train.shape == (3, 64, 64)
    assert not source.bad


def test_a_list_that_is_too_long_is_refused_not_cut(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first lines alone would be fewer classes."""
    monkeypatch.setenv("RAYDDL_MAX_DOCUMENT_BYTES", "15")

    said = message(root)

    assert said.startswith(f"{root}/wnids.txt has 16 bytes or more, the limit is 15; ")
    assert "RAYDDL_MAX_DOCUMENT_BYTES" in said
