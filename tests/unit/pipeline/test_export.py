"""Sets in the forms that other programs read."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from rayddl.config import OnDisk, marks
from rayddl.data.config import SourceConfig
from rayddl.data.formats.card import without_places
from rayddl.data.formats.export import FORMATS, export_set
from rayddl.errors import UserError
from rayddl.pipeline.exporting import export_to
from rayddl.stages.kinds import KINDS
from rayddl.storage import Folder
from tests.raising import raises


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Folder]:
    """A small distilled set, and the folder it is saved in."""
    torch = pytest.importorskip("torch")
    from rayddl.data.distilled import DistilledSet
    from rayddl.data.pixels import space

    numbers = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (20, 3, 8, 8), generator=numbers, dtype=torch.uint8)
    fitted = space.fit("zca", images)
    made = DistilledSet(
        stored=fitted.encode(images[:4]),
        labels=torch.tensor([0, 0, 1, 1]),
        lr_student=0.02,
        classes=("cat", "dog"),
        space=fitted,
        info={"method": "MCT"},
    )
    folder = Folder(str(tmp_path_factory.mktemp("set")))
    made.save(folder)
    return made, folder


def test_pt(made: tuple[Any, Folder], tmp_path: Path) -> None:
    """The tensors are exact and load without running code; the learning rate is stored with them."""
    import torch

    distilled, folder = made
    written = export_set(folder, "pt", Folder(str(tmp_path)))

    images = torch.load(tmp_path / "images_best.pt", weights_only=True)
    labels = torch.load(tmp_path / "labels_best.pt", weights_only=True)
    assert torch.equal(images, distilled.images)
    assert torch.equal(labels, distilled.labels)
    assert Folder(str(tmp_path)).read_json("set.json")["lr_student"] == 0.02
    rate = torch.load(tmp_path / "lr_best.pt", weights_only=True)
    assert (rate.ndim, float(rate)) == (0, pytest.approx(0.02))
    assert [Path(path).name for path in written] == [
        "images_best.pt",
        "labels_best.pt",
        "lr_best.pt",
        "set.json",
        "space.safetensors",
        "classes.txt",
    ]


@pytest.mark.parametrize(
    ("kind", "source", "noted"),
    [
        ("normalise", {"name": "cifar10", "space": "normalise"}, True),
        ("normalise", {"name": "cifar10", "space": "published"}, False),
        ("zca", {"name": "cifar10", "space": "zca"}, False),
        ("normalise", {"name": "digits", "space": "normalise"}, False),
    ],
)
def test_an_export_in_other_units_than_the_published_codes_is_noted(
    kind: str, source: dict[str, str], noted: bool, tmp_path: Path
) -> None:
    """Only for a set of a source with published constants that was made with other ones."""
    import torch

    from rayddl.data.distilled import DistilledSet
    from rayddl.data.formats.export import foreign_space
    from rayddl.data.pixels import space

    images = torch.randint(256, (8, 3, 4, 4), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    set_ = DistilledSet(
        images[:2], torch.arange(2), 0.01, ("a", "b"), space.fit(kind, images), {"source": source}
    )
    set_.save(Folder(str(tmp_path)))

    assert ("constants" in foreign_space(Folder(str(tmp_path)))) == noted


def test_imagefolder(made: tuple[Any, Folder], tmp_path: Path) -> None:
    """The pictures open as torchvision's ImageFolder, and are those of the set."""
    import torch
    from torchvision.datasets import ImageFolder
    from torchvision.transforms.functional import pil_to_tensor

    distilled, folder = made
    export_set(folder, "imagefolder", Folder(str(tmp_path)))
    read = ImageFolder(str(tmp_path))

    assert [label for _, label in read.samples] == [0, 0, 1, 1]
    pictures = torch.stack([pil_to_tensor(picture) for picture, _ in read])
    assert torch.equal(pictures, distilled.pixels())


def test_parquet(made: tuple[Any, Folder], tmp_path: Path) -> None:
    """The table has an image and a label in each row."""
    from pyarrow import parquet

    _, folder = made
    export_set(folder, "parquet", Folder(f"file://{tmp_path}/deep"))
    table = parquet.read_table(tmp_path / "deep" / "images.parquet")

    assert table.column("label").to_pylist() == [0, 0, 1, 1]
    assert "image" in table.column_names


def test_never_overwrites(made: tuple[Any, Folder], tmp_path: Path) -> None:
    """A file that is there already is left alone, and nothing else is written."""
    _, folder = made
    (tmp_path / "labels_best.pt").write_text("mine")
    with pytest.raises(UserError) as error:
        export_set(folder, "pt", Folder(str(tmp_path)))

    assert str(error.value) == (
        f"{tmp_path}/labels_best.pt exists already, and an export never writes over a file; "
        f"choose another folder with --to, or remove {tmp_path} with all its files if it is an earlier export"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["labels_best.pt"]


@pytest.mark.parametrize("form", FORMATS)
def test_a_folder_of_other_files_is_left_alone(made: tuple[Any, Folder], tmp_path: Path, form: str) -> None:
    """Nothing is written among somebody's photos; hidden files, as those of a clone, are in nobody's way."""
    (tmp_path / "photos" / "bird").mkdir(parents=True)
    (tmp_path / "photos" / "bird" / "1.jpg").write_text("mine")
    with raises("export-folder-not-empty"):
        export_set(made[1], form, Folder(str(tmp_path / "photos")))
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*")] == ["photos/bird/1.jpg"]

    (tmp_path / "clone" / ".git").mkdir(parents=True)
    assert export_set(made[1], form, Folder(str(tmp_path / "clone")))


def test_unknown_format(made: tuple[Any, Folder], tmp_path: Path) -> None:
    """An unknown format answers with the known ones."""
    with raises("unknown-format"):
        export_set(made[1], "zip", Folder(str(tmp_path)))


@pytest.mark.parametrize("form", FORMATS)
def test_nothing_is_read_through_links(made: tuple[Any, Folder], tmp_path: Path, form: str) -> None:
    """Pictures and table are made from the checked tensors; what a sender put in their place is not copied."""
    sent = tmp_path / "sent"
    shutil.copytree(str(made[1]), sent)
    (tmp_path / "private").write_text("PRIVATE")
    shutil.rmtree(sent / "images" / "cat")
    (sent / "images" / "cat").symlink_to(tmp_path)
    for name in ("images.parquet", "images/dog/0000.png", "images/more.png"):
        (sent / name).unlink(missing_ok=True)
        (sent / name).symlink_to(tmp_path / "private")
    written = export_set(Folder(str(sent)), form, Folder(str(tmp_path / "to")))
    expected = export_set(made[1], form, Folder(str(tmp_path / "expected")))

    assert [Path(w).read_bytes() for w in written] == [Path(e).read_bytes() for e in expected]


@pytest.mark.parametrize("form", FORMATS)
def test_an_altered_set_is_not_exported(made: tuple[Any, Folder], tmp_path: Path, form: str) -> None:
    """Whatever the format, the tensors are those that the document describes."""
    shutil.copytree(str(made[1]), tmp_path / "set")
    data = (tmp_path / "set" / "set.safetensors").read_bytes()
    (tmp_path / "set" / "set.safetensors").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with raises("sealed-file-altered"):
        export_set(Folder(str(tmp_path / "set")), form, Folder(str(tmp_path / "to")))
    assert not (tmp_path / "to").exists()


PRIVATE = "/home/me/private"


def test_no_setting_that_is_a_path_leaves_with_a_set() -> None:
    """Every field of every kind that is marked so, and those of a search; names and lists of classes stay."""
    stages = {
        f"{kind}-{field}": {"kind": kind, field: [PRIVATE] if mark.each else PRIVATE}
        for kind, config in KINDS.items()
        for field, info in config.config.model_fields.items()
        for mark in marks(info, OnDisk)
    }
    assert {"teacher-weights", "experts-replay", "compare-runs"} <= set(stages)
    source = {field: PRIVATE for field, info in SourceConfig.model_fields.items() if marks(info, OnDisk)}
    space = {"weights": {"choice": ["DEFAULT", PRIVATE]}, "experts.replay": {"grid": [PRIVATE]}}
    definition: dict[str, Any] = {"source": source, "stages": stages | {"tune": {"space": space}}}
    named = {"weights": "IMAGENET1K_V1", "classes": "source"}
    listed = {"weights": "DEFAULT", "classes": ["cat", "dog"]}
    definition["stages"] |= {"named": named, "listed": listed}

    kept = without_places({"source": source, "definition": definition})

    assert PRIVATE not in str(kept)
    assert kept["definition"]["stages"]["named"] == named
    assert kept["definition"]["stages"]["listed"] == listed
    assert PRIVATE in str(definition)


@pytest.mark.parametrize(
    ("observer", "left"),
    [
        ({"net": "convnet", "folder": PRIVATE}, {"net": "convnet"}),
        ({"net": "convnet", "folder": "observer"}, {"net": "convnet", "folder": "observer"}),
        ([{"folder": "observer-0"}, {"folder": PRIVATE}], [{"folder": "observer-0"}, {}]),
        (PRIVATE, None),
        ("observer", "observer"),
        (None, None),
    ],
)
def test_the_place_of_an_observer_stays_at_home(observer: Any, left: Any) -> None:
    """That of one too large to be part of the set; one that is part of it is named."""
    kept = without_places({"protocol": {"name": "soft", "observer": observer}})
    assert kept["protocol"].get("observer") == left


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ("imagefolder", ["96 of 768 pixel values", "the likeliest class alone", "at the rate 0.02,"]),
        ("parquet", ["96 of 768 pixel values", "at the rate 0.02,"]),
        ("webdataset", ["96 of 768 pixel values", "at the rate 0.02,"]),
        ("pt", []),
    ],
)
def test_what_pictures_lack_of_a_set_is_noted(tmp_path: Path, form: str, said: list[str]) -> None:
    """Values beyond black and white by their number, soft labels and the learning rate; tensors lack nothing."""
    import torch

    from rayddl.data.distilled import DistilledSet
    from rayddl.data.pixels import space

    real = torch.randint(256, (20, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    fitted = space.fit("normalise", real)
    images = fitted.encode(real[:4].clamp(50, 200))
    images[0, :, :4] = 100.0
    labels = torch.tensor([[0.75, 0.25], [0.75, 0.25], [0.25, 0.75], [0.0, 1.0]])
    DistilledSet(images, labels, 0.02, ("cat", "dog"), fitted, {"method": "MCT"}).save(
        Folder(str(tmp_path / "set"))
    )

    notes = export_to(str(tmp_path / "set"), str(tmp_path / "to"), form).notes

    assert len(notes) == len(said)
    assert all(part in note and "--format pt or hf" in note for part, note in zip(said, notes, strict=True))
