"""Real images as they lie beside the checkout: small parts of each file."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from rayddl.data.config import AUGMENTATIONS, SourceConfig
from rayddl.data.distilled import DistilledSet
from rayddl.data.formats.export import export_set
from rayddl.data.formats.pt import load_place
from rayddl.data.formats.pt_places import IMAGES, LABELS, Place
from rayddl.data.pixels.augment import apply, draw
from rayddl.data.pixels.decode import Encoded, decode
from rayddl.data.pixels.space import fit
from rayddl.data.sources import picking
from rayddl.data.sources import registry as sources
from rayddl.errors import SourceError
from rayddl.storage import Folder


@pytest.fixture(scope="module")
def tiny(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> SourceConfig:
    """The 1,000 held-out images of 20 Tiny-ImageNet classes, halved into train and test."""
    folder = tmp_path_factory.mktemp("tiny")
    table = pq.read_table(shared_data / "tinyimagenet20-val.parquet")
    order = [i for start in (0, 1) for i in range(start, len(table), 2)]
    for split, rows in (("train", order[:500]), ("test", order[500:])):
        pq.write_table(table.take(rows), folder / f"{split}.parquet")
    return SourceConfig(name="parquet", root=str(folder))


def test_tiny_imagenet_becomes_colour_tensors(tiny: SourceConfig) -> None:
    """All 1,000 photographs are readable, the few grey ones become colour, classes have their names."""
    source = sources.load(tiny)

    assert source.bad == ()
    assert len(source.train) + len(source.test) == 1000
    assert source.train.shape == source.test.shape == (3, 64, 64)
    assert len(source.train.classes) == 20
    assert source.train.classes[0] == "n01443537"
    assert sum(source.train.counts()) == 500


def test_real_photographs_survive_whitening_and_augmentation(tiny: SourceConfig) -> None:
    """At 16 x 16 pixels they return from ZCA byte for byte, and every strategy leaves them finite."""
    source = sources.load(tiny.model_copy(update={"size": 16}))
    space = fit("zca", source.train.images)
    encoded = space.encode(source.test.images)

    back = (space.decode(encoded) * 255).round().to(torch.uint8)

    assert torch.equal(back, source.test.images)
    for name in AUGMENTATIONS:
        drawn = draw((name,), (500, 3, 16, 16), torch.Generator().manual_seed(0))
        assert torch.isfinite(apply(encoded, drawn)).all()


def test_cifar10_is_found_with_its_names(shared_data: Path) -> None:
    """The files are told apart from the other data sets there, and the class names are CIFAR-10's."""
    config = SourceConfig(
        name="parquet", root=str(shared_data), train="cifar10-test.parquet", test="cifar10-train.parquet"
    )
    table = pq.ParquetFile(shared_data / "cifar10-test.parquet")
    batch = next(table.iter_batches(50, columns=["image"])).column(0).to_pylist()
    items = [Encoded(str(i), 0, lambda data=data: data) for i, data in enumerate(batch)]  # type: ignore[misc]  # mypy cannot infer a lambda with a default

    assert len(sources.fingerprint(config)) == 64
    assert all(getattr(d.pixels, "shape", None) == (32, 32, 3) for d in decode([items], None))


def test_a_folder_of_several_data_sets_is_not_guessed(shared_data: Path) -> None:
    """With the defaults alone the message lists both train files and what to type."""
    with pytest.raises(SourceError) as caught:
        sources.fingerprint(SourceConfig(name="parquet", root=str(shared_data)))

    assert "cifar10-train.parquet, tinyimagenet20-train.parquet. Say which with source.train" in str(
        caught.value
    )


def test_classes_without_images_are_named(shared_data: Path) -> None:
    """The sample of ImageNet has pictures of 250 of the classes that it names, or says which lack them."""
    config = SourceConfig(
        name="parquet", root=str(shared_data), train="imagenet-*", test="tinyimagenet20-val.parquet"
    )

    with pytest.raises(SourceError) as caught:
        sources.fingerprint(config)
    assert caught.value.code in ("classes-without-images", "labels-not-in-train")


def test_imagenet_photographs_decode_to_one_size(shared_data: Path) -> None:
    """Photographs of any size are brought to a square, by threads, without a bad one among them."""
    batch = next(pq.ParquetFile(shared_data / "imagenet-sample.parquet").iter_batches(24)).column("image")
    items = [Encoded(str(i), 0, lambda data=data: data) for i, data in enumerate(batch.to_pylist())]  # type: ignore[misc]  # mypy cannot infer a lambda with a default

    shapes = {getattr(d.pixels, "shape", d.pixels) for d in decode([items], 64)}

    assert shapes <= {(64, 64, 3), (64, 64)}


def test_exports_of_cifar10_open_in_the_libraries_named(shared_data: Path, tmp_path: Path) -> None:
    """Two photographs of each class: Hugging Face and torchvision show the set's pictures, and the pair of
    torch files comes back tensor for tensor.
    """
    import datasets
    from torchvision.datasets import ImageFolder
    from torchvision.transforms.functional import pil_to_tensor

    table = pq.read_table(shared_data / "cifar10-test.parquet")
    (tmp_path / "source").mkdir()
    for split, first in (("train", 0), ("test", 10)):
        rows = table.take(list(range(first, len(table), 20)))
        pq.write_table(rows, tmp_path / "source" / f"{split}.parquet")
    train = sources.load(SourceConfig(name="parquet", root=str(tmp_path / "source"))).train
    places = picking.per_class(train.labels, train.classes, 2, torch.Generator().manual_seed(0))
    fitted = fit("normalise", train.images)
    made = DistilledSet(
        fitted.encode(train.images[places]), train.labels[places], 0.02, train.classes, fitted
    )
    made.save(Folder(str(tmp_path / "set")))
    for form in ("hf", "imagefolder", "pt"):
        export_set(Folder(str(tmp_path / "set")), form, Folder(str(tmp_path / form)))

    hub = datasets.load_dataset(str(tmp_path / "hf"), cache_dir=str(tmp_path / "cache"))["train"]
    assert hub.features["label"].names == list(made.classes)
    assert torch.equal(torch.stack([pil_to_tensor(row["image"]) for row in hub]), made.pixels())
    assert hub["label"][:] == made.labels.tolist()
    folder = ImageFolder(str(tmp_path / "imagefolder"))
    assert sorted(folder.classes) == sorted(made.classes)
    order = sorted(range(20), key=lambda i: (made.classes[made.labels[i]], i))
    shown = torch.stack([pil_to_tensor(picture) for picture, _ in folder])
    assert torch.equal(shown, made.pixels()[order])
    again = load_place(Place(Folder(str(tmp_path / "pt")), IMAGES, LABELS))
    assert torch.equal(again.images, made.images)
    assert torch.equal(again.labels, made.labels)
    assert (again.lr_student, again.space.fingerprint) == (0.02, fitted.fingerprint)
