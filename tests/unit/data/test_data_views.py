"""What others open of a distilled set: PNG files, a table, a picture."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.datasets import ImageFolder

from rayddl.data.config import SourceConfig
from rayddl.data.distilled import DistilledSet
from rayddl.data.pixels.space import fit
from rayddl.data.sources import registry as sources
from rayddl.data.views import class_folders, grid
from rayddl.storage import Folder

CLASSES = ("cat", "dog", "a/b")


def make(soft: bool = False) -> DistilledSet:
    """Two images of each class, with pixels that leave the range of a byte."""
    source = torch.Generator().manual_seed(0)
    real = torch.randint(0, 256, (40, 3, 6, 5), generator=source).to(torch.uint8)
    space = fit("normalise", real)
    labels = torch.arange(3).repeat_interleave(2)
    if soft:
        labels = 0.7 * torch.nn.functional.one_hot(labels, 3).float() + 0.1
    return DistilledSet(space.encode(real[:6]) * 1.5, labels, 0.1, CLASSES, space)


def test_the_png_files_open_as_an_image_folder(tmp_path: Path) -> None:
    """ImageFolder reads them with the label of each, and the pixels are those of the set."""
    distilled = make()
    distilled.save(Folder(str(tmp_path)))

    opened = ImageFolder(str(tmp_path / "images"))

    assert opened.classes == ["0-cat", "1-dog", "2-a_b"]
    for position, (image, label) in enumerate(opened):
        assert label == distilled.labels[position]
        assert np.array_equal(np.asarray(image), distilled.pixels()[position].permute(1, 2, 0).numpy())


@pytest.mark.parametrize("soft", [False, True])
def test_the_table_opens_as_a_source(tmp_path: Path, soft: bool) -> None:
    """The project's own Parquet source reads images, labels and class names back."""
    distilled = make(soft=soft)
    distilled.save(Folder(str(tmp_path)))
    (tmp_path / "again.parquet").write_bytes((tmp_path / "images.parquet").read_bytes())
    config = SourceConfig(name="parquet", root=str(tmp_path), train="images.parquet", test="again.parquet")

    source = sources.load(config)

    assert source.train.classes == CLASSES
    assert torch.equal(source.train.labels, distilled.hard_labels)
    assert torch.equal(source.train.images, distilled.pixels())


def test_the_table_carries_hugging_face_features(tmp_path: Path) -> None:
    """The schema's metadata declares an image and a class label, and soft labels where there are."""
    distilled = make(soft=True)
    distilled.save(Folder(str(tmp_path)))

    table = pq.read_table(tmp_path / "images.parquet")

    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert features["image"] == {"_type": "Image"}
    assert features["label"] == {"names": list(CLASSES), "_type": "ClassLabel"}
    assert set(features) == set(table.column_names)
    soft = np.array(table["soft_label"].to_pylist(), dtype=np.float32)
    assert np.array_equal(soft, distilled.labels.numpy())
    first = table["image"][0].as_py()
    assert (tmp_path / "images" / first["path"]).read_bytes() == first["bytes"]


def test_the_grid_shows_a_row_per_class() -> None:
    """Images stand in their class's row, enlarged without blurring, with white between them."""
    pixels = torch.arange(6, dtype=torch.uint8).view(6, 1, 1, 1).expand(6, 3, 8, 8) * 40
    labels = torch.tensor([1, 0, 0, 1, 0, 2])

    sheet = np.asarray(Image.open(io.BytesIO(grid(pixels, labels, 3))))

    assert sheet.shape == (3 * 66 + 2, 3 * 66 + 2, 3)
    centres = sheet[34::66, 34::66, 0]
    assert centres.tolist() == [[40, 80, 160], [0, 120, 255], [200, 255, 255]]
    assert (sheet[:2] == 255).all()
    assert (sheet[:, 66:68] == 255).all()
    assert (sheet[2:66, 2:66] == 40).all()


@pytest.mark.parametrize(
    ("classes", "per_class", "rows", "columns"),
    [
        (10, 1, 2, 5),
        (10, 10, 10, 10),
        (10, 50, 10, 10),
        (100, 1, 10, 10),
        (100, 10, 25, 40),
        (1000, 1, 25, 40),
    ],
)
def test_the_grid_stays_a_picture(classes: int, per_class: int, rows: int, columns: int) -> None:
    """One image per class, or many classes, wrap instead of making a strip."""
    labels = torch.arange(classes).repeat_interleave(per_class)
    pixels = torch.zeros(len(labels), 1, 64, 64, dtype=torch.uint8)

    sheet = Image.open(io.BytesIO(grid(pixels, labels, classes)))

    assert sheet.size == (columns * 66 + 2, rows * 66 + 2)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(max_size=100), min_size=1, max_size=12))
def test_class_folders_are_safe_and_distinct(names: list[str]) -> None:
    """Whatever a class is called, its folder is one plain part of a path, and no other class's."""
    folders = class_folders(names)

    assert len({f.casefold() for f in folders}) == len(names)
    for folder in folders:
        assert Path(folder).name == folder
        assert folder not in ("", ".", "..")
        assert not set(folder) & set('/\\:*?"<>|\0\n')
        assert not folder.startswith(".")
        assert len(folder.encode()) <= 110


def test_plain_class_names_are_kept() -> None:
    """Only names that need it are changed."""
    names = ["A", "Zürich", "a", "airplane", "n01443537", "two words", "犬"]

    assert class_folders(names) == ("A-0", "Zürich", "a-2", "airplane", "n01443537", "two words", "犬")


@pytest.mark.parametrize("names", [[str(n) for n in range(11)], ["pear", "fig", "kiwi"], ["10", "9"]])
def test_class_folders_sort_in_label_order(names: list[str]) -> None:
    """Libraries that number classes by sorted folder names give every class its own label."""
    folders = class_folders(names)

    assert sorted(folders) == list(folders)
    assert all(folder.endswith(name) for folder, name in zip(folders, names, strict=True))
