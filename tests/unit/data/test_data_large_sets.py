"""Distilled sets of ImageNet's size: written in parts, by threads, and mapped into memory when they are read."""

from __future__ import annotations

import errno
import io
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from rayddl import localfiles, sealed
from rayddl.data import ahead, unnamed, views
from rayddl.data.config import SourceConfig
from rayddl.data.distilled import DistilledSet
from rayddl.data.pixels.space import Normalise
from rayddl.data.sources import registry as sources
from rayddl.report import pictures
from rayddl.report.values import Pictures
from rayddl.storage import Folder
from tests.raising import raises
from tests.resident import Resident

MIB = 2**20
SIDE = 96
CLASSES = tuple(f"c{k:03d}" for k in range(200))


def large(count: int = 4000) -> DistilledSet:
    """Stripes, in a mapped file: 105 MiB of pixels that PNG makes small."""
    images = unnamed.empty((count, 3, SIDE, SIDE), torch.uint8)
    images.copy_(torch.arange(count).remainder(251).to(torch.uint8).view(-1, 1, 1, 1).expand_as(images))
    space = Normalise((3, SIDE, SIDE), torch.full((3,), 0.5).double(), torch.full((3,), 0.25).double())
    labels = torch.arange(len(CLASSES)).repeat_interleave(count // len(CLASSES))
    return DistilledSet(images, labels, 0.01, CLASSES, space)


def test_neither_writing_nor_reading_copies_the_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory of both together is a fraction of the pixels; what is read has the same bits."""
    monkeypatch.setattr(views, "_LARGEST", 500)  # a picture of 4,096 pixels would take most of it
    made, folder = large(), Folder(str(tmp_path / "set"))
    large(200).save(Folder(str(tmp_path / "first")))  # imports, and the threads' own memory

    with Resident() as resident:
        made.save(folder)
        found = DistilledSet.load(folder)
        total = int(found.stored.view(torch.int64).sum())

    assert resident.most < made.stored.nbytes / 2
    assert total == int(made.stored.view(torch.int64).sum())
    assert torch.equal(found.labels, made.labels)


def test_a_page_shows_them_without_a_copy() -> None:
    """Its gallery and its mosaic read the images that they show, a class at a time."""
    made = large()
    small = Pictures(made.pixels()[:400].numpy(), made.hard_labels[:400].numpy(), made.classes)
    pictures.gallery(small, "set/images", 10**6)  # imports
    shown = Pictures(made.pixels().numpy(), made.hard_labels.numpy(), made.classes)

    with Resident() as resident:
        found = pictures.gallery(shown, "set/images", 10**6)
        pictures.mosaic(shown)

    assert len(found.groups) == len(CLASSES)
    assert resident.most < made.stored.nbytes / 2


@pytest.mark.parametrize("soft", [False, True])
def test_a_table_of_several_row_groups_is_that_of_one(
    tmp_path: Path, soft: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arrow cannot read a row group with 2 GiB of images; the rows are the same, with the soft labels of each."""
    pixels = torch.randint(0, 256, (7, 3, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    labels = torch.arange(7) % 3
    probabilities = torch.softmax(torch.randn(7, 3), 1) if soft else None

    def written(name: str) -> Path:
        images = views.pictures(pixels, labels, ("a", "b", "c"))
        views.write_table(tmp_path / name, images, ("a", "b", "c"), probabilities)
        return tmp_path / name

    one = written("one.parquet")
    monkeypatch.setattr(views, "_GROUP_BYTES", 400)
    several = written("several.parquet")

    assert pq.ParquetFile(one).num_row_groups == 1
    assert pq.ParquetFile(several).num_row_groups > 2
    assert pq.read_table(several).equals(pq.read_table(one), check_metadata=True)
    if not soft:
        (tmp_path / "train.parquet").write_bytes(several.read_bytes())
        (tmp_path / "test.parquet").write_bytes(several.read_bytes())
        source = SourceConfig(name="parquet", root=str(tmp_path))
        assert torch.equal(sources.load(source).train.images, pixels)


def test_pictures_are_made_by_several_threads_and_few_ahead() -> None:
    """In order, each written by the thread that made it; no more wait than the window has."""
    count, together = 4 * ahead.WINDOW, threading.Barrier(2)
    pixels, labels = torch.zeros(count, 3, 8, 8, dtype=torch.uint8), torch.zeros(count, dtype=torch.int64)
    written: list[str] = []

    def write(picture: views.Picture) -> None:
        with suppress(threading.BrokenBarrierError):
            together.wait(5)  # passes only if two are written at the same time
        written.append(picture.path)

    made = views.pictures(pixels, labels, ("a",), write=write)
    assert next(made).path == "a/0000.png"
    assert not together.broken
    assert len(written) <= ahead.WINDOW + 1
    assert [picture.path for picture in made] == [f"a/{k:04d}.png" for k in range(1, count)]
    assert sorted(written) == [f"a/{k:04d}.png" for k in range(count)]


def test_a_picture_that_cannot_be_written_ends_the_save(tmp_path: Path) -> None:
    """The error is raised, and there is no set that could be taken for a whole one."""
    made, folder = large(200), Folder(str(tmp_path / "set"))
    (tmp_path / "set" / "images" / "c007" / "0000.png").mkdir(parents=True)

    with pytest.raises(IsADirectoryError):
        made.save(folder)
    assert not folder.has("set.json")
    assert not folder.has("images.parquet")
    assert not [name for _, *names in os.walk(tmp_path) for each in names for name in each if ".tmp" in name]


def test_nothing_is_written_after_a_save_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that write pictures are waited for: the next save may be into the same folder."""
    made, folder = large(400), Folder(str(tmp_path / "set"))
    write, ended = Folder.write, list[str]()

    def slow(self: Folder, name: str, data: bytes) -> None:
        time.sleep(0.05)
        write(self, name, data)
        ended.append(name)

    def full(*_: object) -> NoReturn:
        time.sleep(0.02)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Folder, "write", slow)
    monkeypatch.setattr(views, "write_table", lambda path, images, *_: next(images) and full())
    with pytest.raises(OSError, match="No space left") as caught:
        made.save(folder)
    count = len(ended)
    time.sleep(0.2)
    assert 0 < count < 400
    assert len(ended) == count, caught  # whose traceback keeps all that was going on


@pytest.mark.parametrize("side", [SIDE, SIDE + 3])
def test_a_picture_of_many_large_images_is_reduced(monkeypatch: pytest.MonkeyPatch, side: int) -> None:
    """To a number of pixels that programs open, each one the mean of a block."""
    monkeypatch.setattr(views, "_LARGEST", 600)
    pixels = torch.randint(0, 256, (30, 3, side, side), generator=torch.Generator().manual_seed(1))
    pixels = pixels.to(torch.uint8)

    sheet = np.asarray(Image.open(io.BytesIO(views.grid(pixels, torch.arange(10).repeat(3), 10))))

    high = -(-side // 2)
    assert sheet.shape == (10 * (high + 2) + 2, 3 * (high + 2) + 2, 3)
    block = pixels[0, :, :2, :2].double().mean((1, 2))
    assert np.abs(sheet[2, 2] - block.numpy()).max() <= 0.5


def test_a_large_file_of_tensors_is_mapped_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its hash is compared as that of others; in a folder whose name is not UTF-8 it is read into memory."""
    monkeypatch.setattr(sealed, "MAPPED_BYTES", 1000)
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/\xe9")
    os.mkdir(odd)
    folder, kind = Folder(str(tmp_path)), sealed.Kind("f", 1, "f.json", "thing", "a", "make it again")
    tensors = {"large": torch.arange(5000), "small": torch.arange(3)}

    entry = sealed.write(folder, "t.safetensors", tensors)
    document = {"files": {"t.safetensors": entry}}
    found = kind.file(folder, document, "t.safetensors")

    assert entry == sealed.entry(folder.read("t.safetensors"))
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    with open("/proc/self/maps", encoding="utf-8") as maps:
        assert f"{tmp_path}/t.safetensors" in maps.read()
    shutil.copy(tmp_path / "t.safetensors", odd)
    elsewhere = kind.file(Folder(localfiles.shown(odd)), document, "t.safetensors")
    assert torch.equal(elsewhere["large"], tensors["large"])
    (tmp_path / "t.safetensors").write_bytes(folder.read("t.safetensors")[:-1] + b"x")
    with raises("sealed-file-altered"):
        kind.file(folder, document, "t.safetensors")


def test_tensors_that_may_exceed_memory_are_in_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a name, so that it goes with the process; on a full disk they are in memory."""
    monkeypatch.setattr(unnamed, "LEAST_BYTES", 1000)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def mapped() -> bool:
        found = unnamed.empty((100, 7), torch.float32)
        found.copy_(torch.arange(700).view(100, 7))
        assert torch.equal(found, torch.arange(700).view(100, 7).float())
        assert os.listdir(tmp_path) == []
        with open("/proc/self/maps", encoding="utf-8") as maps:
            return str(tmp_path) in maps.read()

    assert mapped()

    def full(*_: object) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    assert not mapped()
    monkeypatch.undo()
    monkeypatch.setattr(unnamed, "LEAST_BYTES", 1000)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    assert unnamed.empty((1000,), torch.uint8).shape == (1000,)


def test_parts_are_stacked_up_to_their_number() -> None:
    """Classes that have fewer images than asked for leave the end unused."""

    def parts() -> Iterator[torch.Tensor]:
        yield torch.ones(2, 3)
        yield torch.zeros(0, 3)
        yield torch.full((1, 3), 2.0)

    found = unnamed.stacked(parts(), (6, 3), torch.float32)
    assert torch.equal(found, torch.tensor([[1.0] * 3, [1.0] * 3, [2.0] * 3]))
