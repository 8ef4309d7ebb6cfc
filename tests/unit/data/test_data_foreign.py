"""Sets of others, brought to a source: every form comes back equal, and what does not fit is refused."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor

from rayddl.data.config import SourceConfig
from rayddl.data.distilled import DistilledSet
from rayddl.data.formats.export import export_set
from rayddl.data.formats.forms import form_of
from rayddl.data.formats.importing import TargetSource, bring
from rayddl.data.pixels import space
from rayddl.errors import ArtifactError
from rayddl.stages.context import Context, Silent
from rayddl.stages.imported import stage as imported
from rayddl.stages.imported.settings import ImportedConfig
from rayddl.storage import Folder
from tests.raising import raises

CLASSES = ("a cat", "dog/wolf", "owl")


@pytest.fixture
def home() -> TargetSource:
    """A source of three classes of grey 6 x 6 images."""
    images = torch.randint(256, (30, 1, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return TargetSource(CLASSES, (1, 6, 6), space.fit("normalise", images))


@pytest.fixture
def made(home: TargetSource, tmp_path: Path) -> DistilledSet:
    """Two images a class as rayddl keeps them, in ``tmp_path/set``."""
    pixels = torch.randint(256, (6, 1, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    found = DistilledSet(pixels, labels, 0.02, CLASSES, home.space, {"method": "MTT"})
    found.save(Folder(str(tmp_path / "set")))
    return found


@pytest.mark.parametrize("form", ["imagefolder", "parquet", "hf"])
def test_pictures_come_back_pixel_for_pixel(
    made: DistilledSet, home: TargetSource, tmp_path: Path, form: str
) -> None:
    """An export as ImageFolder or Parquet, its class names matched whatever their folders are called."""
    to = Folder(str(tmp_path / form))
    export_set(Folder(str(tmp_path / "set")), form, to)
    for name in ("set.json", "set.safetensors"):
        to.delete(name)

    kind = form_of(to)
    found = bring(to, kind, home)
    assert kind == ("imagefolder" if form == "imagefolder" else "parquet")
    assert torch.equal(found.stored, made.stored)
    assert torch.equal(found.labels, made.labels)
    assert found.classes == CLASSES


def test_soft_labels_of_a_table_come_back(home: TargetSource, tmp_path: Path) -> None:
    """The column of distributions is taken in place of the likeliest class."""
    said = torch.tensor([[0.5, 0.25, 0.25], [0.0, 1.0, 0.0], [0.125, 0.125, 0.75]])
    DistilledSet(torch.zeros(3, 1, 6, 6, dtype=torch.uint8), said, 0.1, CLASSES, home.space).save(
        Folder(str(tmp_path / "set"))
    )
    to = Folder(str(tmp_path / "table"))
    export_set(Folder(str(tmp_path / "set")), "parquet", to)

    assert torch.equal(bring(to, form_of(to), home).labels, said)


def pair(folder: Path, images: Tensor, labels: Tensor) -> Folder:
    folder.mkdir()
    torch.save(images, folder / "images_best.pt")
    torch.save(labels, folder / "labels_best.pt")
    return Folder(str(folder))


def test_a_pair_of_other_code_is_in_the_sources_space(home: TargetSource, tmp_path: Path) -> None:
    """Images stay as they are, tensor for tensor; classes and the way back to pixels are the source's."""
    images, labels = torch.randn(3, 1, 6, 6), torch.tensor([0, 1, 2])
    folder = pair(tmp_path / "pair", images, labels)

    found = bring(folder, form_of(folder), home)
    assert torch.equal(found.images, images)
    assert torch.equal(found.labels, labels)
    assert (found.classes, found.space.fingerprint) == (CLASSES, home.space.fingerprint)
    assert found.info == {"method": "imported", "labels_read_as": "classes"}


def test_an_own_pair_and_an_own_set_keep_what_they_know(
    made: DistilledSet, home: TargetSource, tmp_path: Path
) -> None:
    """rayddl's exports come back whole: rate, classes, method."""
    to = Folder(str(tmp_path / "pt"))
    export_set(Folder(str(tmp_path / "set")), "pt", to)

    for folder, form in ((to, "pt"), (Folder(str(tmp_path / "set")), "set")):
        assert form_of(folder) == form
        found = bring(folder, form_of(folder), home)
        assert torch.equal(found.images, made.images)
        assert (found.lr_student, found.info["method"]) == (0.02, "MTT")


def test_numbers_stand_for_classes_in_their_order(home: TargetSource, tmp_path: Path) -> None:
    """Folders 0, 1, 2 of other code are the source's classes; RGB pictures of a grey source become grey."""
    for label in range(3):
        (tmp_path / str(label)).mkdir()
        Image.fromarray(np.full((6, 6, 3), 10 * label, np.uint8)).save(tmp_path / str(label) / "x.png")

    found = bring(Folder(str(tmp_path)), "imagefolder", home)
    assert found.stored[:, 0, 0, 0].tolist() == [0, 10, 20]
    assert found.labels.tolist() == [0, 1, 2]


def test_pictures_of_another_size_are_scaled(home: TargetSource, tmp_path: Path) -> None:
    """A square source takes other sizes as sources themselves do."""
    for name in ("a cat", "owl"):
        (tmp_path / name).mkdir()
        Image.fromarray(np.full((12, 18), 7, np.uint8)).save(tmp_path / name / "x.png")

    assert bring(Folder(str(tmp_path)), "imagefolder", home).stored.unique().tolist() == [7]


def test_classes_that_the_source_lacks_are_named(home: TargetSource, tmp_path: Path) -> None:
    """The first unknown ones, and what the source has."""
    (tmp_path / "yak").mkdir()
    Image.fromarray(np.zeros((6, 6), np.uint8)).save(tmp_path / "yak" / "x.png")

    with pytest.raises(ArtifactError) as caught:
        bring(Folder(str(tmp_path)), "imagefolder", home)
    assert str(caught.value) == (
        f"{tmp_path} has classes that the source has not: yak. The source's are a cat, dog/wolf, owl. "
        "Name the source that the set was made from."
    )


@pytest.mark.parametrize(
    ("images", "labels", "code"),
    [
        (
            torch.zeros(1, 1, 5, 5),
            torch.tensor([0]),
            "images-of-another-shape",
        ),
        (
            torch.zeros(1, 1, 6, 6),
            torch.tensor([3]),
            "label-beyond-classes",
        ),
        (torch.zeros(1, 1, 6, 6), torch.full((1, 4), 0.25), "labels-of-other-classes"),
    ],
    ids=["size", "label", "width"],
)
def test_a_pair_that_does_not_fit_is_refused(
    home: TargetSource, tmp_path: Path, images: Tensor, labels: Tensor, code: str
) -> None:
    """Both sides of what does not agree are named."""
    with raises(code):
        bring(pair(tmp_path / "pair", images, labels), "pt", home)


def test_what_cannot_be_read_is_named(home: TargetSource, tmp_path: Path) -> None:
    """An empty folder, a broken picture, a table without the columns."""
    with raises("no-set-here"):
        form_of(Folder(str(tmp_path)))
    (tmp_path / "owl").mkdir()
    (tmp_path / "owl" / "x.png").write_bytes(b"no picture")
    with raises("image-unreadable"):
        bring(Folder(str(tmp_path)), "imagefolder", home)
    write_table(tmp_path / "t" / "x.parquet")
    with raises("set-table-unreadable"):
        bring(Folder(str(tmp_path / "t")), "parquet", home)


def test_a_form_that_is_not_there_is_refused(home: TargetSource, tmp_path: Path) -> None:
    """A form that the definition gives, in a folder with none of its files, or with two tables."""
    folder = Folder(str(tmp_path))
    for form in ("imagefolder", "parquet"):
        with raises("no-set-here") as caught:
            bring(folder, form, home)
        assert str(caught.value).endswith("found nothing.")
        (tmp_path / "loose.png").write_bytes(b"")
        with raises("no-set-here") as caught:
            bring(folder, form, home)
        assert str(caught.value).endswith("found loose.png.")
        (tmp_path / "loose.png").unlink()
    write_table(tmp_path / "data" / "x.parquet")
    (tmp_path / "data" / "y.parquet").write_bytes(b"")
    with raises("import-tables-several") as caught:
        bring(folder, "parquet", home)
    assert "data/x.parquet, data/y.parquet" in str(caught.value)


def test_what_pictures_lose_in_a_source_is_noted(tmp_path: Path) -> None:
    """By the stage: how many were resized, from which sizes, and how many lost their colour."""
    for name, shape in (("0", (12, 16, 3)), ("1", (12, 16)), ("2", (8, 8, 3)), ("3", (9, 9))):
        (tmp_path / "theirs" / name).mkdir(parents=True)
        Image.fromarray(np.zeros(shape, np.uint8)).save(tmp_path / "theirs" / name / "x.png")
    config = ImportedConfig.model_validate({"kind": "imported", "path": str(tmp_path / "theirs")})
    shown, out = Silent(), Folder(str(tmp_path / "out"))
    notes: list[str] = []
    shown.note = notes.append  # type: ignore[method-assign]

    imported.run(config, Context("set", SourceConfig(name="digits"), 0, out, {}, {}, shown))

    assert notes == [
        "3 of 4 images were resized to 8 x 8 pixels, from 16 x 12, 9 x 9",
        "2 of 4 images lost their colour, since the source's images are grey",
    ]


def write_table(path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir()
    sink: Any = io.BytesIO()
    pq.write_table(pa.table({"other": [1]}), sink)
    path.write_bytes(sink.getvalue())


@pytest.mark.parametrize(
    ("columns", "code"),
    [
        ({"image": pa.list_(pa.int8())}, "set-table-unreadable"),
        ({"label": pa.list_(pa.string())}, "set-table-unreadable"),
        ({"label": pa.float64()}, "set-table-unreadable"),
        ({"soft_label": pa.string()}, "soft-labels-ragged"),
        ({"soft_label": pa.list_(pa.string())}, "soft-labels-ragged"),
    ],
)
def test_columns_of_other_types_are_refused_unread(
    home: TargetSource,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    columns: dict[str, pa.DataType],
    code: str,
) -> None:
    """A dictionary makes gigabytes of one large cell, so what cannot be used is not decoded."""
    sink = io.BytesIO()
    Image.new("L", (6, 6)).save(sink, "PNG")
    usual = {"image": pa.array([sink.getvalue()] * 2), "label": pa.array(CLASSES[:2])}
    table = {**usual, **{name: pa.nulls(2, kind) for name, kind in columns.items()}}
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    read, seen = pq.ParquetFile.read, []
    monkeypatch.setattr(
        pq.ParquetFile, "read", lambda file, **given: seen.extend(given["columns"]) or read(file, **given)
    )
    with raises(code):
        bring(Folder(str(tmp_path)), "parquet", home)
    assert not {*columns} & {*seen}


@pytest.mark.parametrize("repeated", ["image", "label", "soft_label"])
def test_a_column_that_is_there_twice_is_named(home: TargetSource, tmp_path: Path, repeated: str) -> None:
    """Arrow says of it that it does not exist."""
    sink = io.BytesIO()
    Image.new("L", (6, 6)).save(sink, "PNG")
    usual = {
        "image": pa.array([sink.getvalue()] * 2),
        "label": pa.array(CLASSES[:2]),
        "soft_label": pa.array([[1.0] * len(CLASSES)] * 2),
    }
    names = [*usual, repeated]
    pq.write_table(pa.Table.from_arrays([usual[name] for name in names], names=names), tmp_path / "t.parquet")
    with raises("set-table-unreadable") as caught:
        bring(Folder(str(tmp_path)), "parquet", home)
    assert f"has 2 columns named '{repeated}'" in str(caught.value)
