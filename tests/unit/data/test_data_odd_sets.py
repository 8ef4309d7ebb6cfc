"""Sets of others whose numbers are not what they seem: labels, rates, pixels, columns, classes by number."""

from __future__ import annotations

import hashlib
import io
import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save
from torch import Tensor
from torchvision.datasets import ImageFolder

from rayddl.data.config import SourceConfig
from rayddl.data.distilled import DistilledSet
from rayddl.data.formats.export import FORMATS, export_set
from rayddl.data.formats.forms import form_of
from rayddl.data.formats.importing import TargetSource, bring
from rayddl.data.formats.pt import load_place
from rayddl.data.formats.pt_places import IMAGES as IMAGES_FILE
from rayddl.data.formats.pt_places import LABELS as LABELS_FILE
from rayddl.data.formats.pt_places import Place
from rayddl.data.pixels import space
from rayddl.data.pixels.space import PixelSpace
from rayddl.data.sources import parquet_labels
from rayddl.data.sources import registry as sources
from rayddl.errors import RayddlError
from rayddl.pipeline.browse.show import inspect
from rayddl.storage import Folder
from tests.raising import raises

DRAWN = torch.Generator().manual_seed(3)
REAL = torch.randint(256, (40, 3, 4, 4), dtype=torch.uint8, generator=DRAWN)
IMAGES = torch.randn(4, 3, 4, 4, generator=DRAWN)
HARD = torch.tensor([0, 1, 2, 1])


def _home(classes: tuple[str, ...]) -> TargetSource:
    return TargetSource(classes, (3, 4, 4), space.fit("normalise", REAL))


def _pair(path: Path, labels: Tensor, images: Tensor = IMAGES, rate: Any = None) -> Place:
    path.mkdir(exist_ok=True)
    torch.save(images, path / "images_best.pt")
    torch.save(labels, path / "labels_best.pt")
    if rate is not None:
        torch.save(torch.tensor(rate), path / "lr_best.pt")
    return Place(Folder(str(path)), IMAGES_FILE, LABELS_FILE)


LOGITS = torch.tensor([[2.0, -1.0, 0.5], [-0.1, 3.0, 0.0], [0.0, 0.2, 4.0], [0.0, 9.0, -9.0]])


@pytest.mark.parametrize(
    ("labels", "expected", "said"),
    [
        (LOGITS, LOGITS.softmax(1), "logits"),
        (LOGITS.half(), LOGITS.half().float().softmax(1), "logits"),
        (LOGITS.log_softmax(1), LOGITS.softmax(1), "logits"),
        (LOGITS.softmax(1), LOGITS.softmax(1), "probabilities"),
        (torch.eye(3)[HARD], torch.eye(3)[HARD], "probabilities"),
        (torch.eye(3, dtype=torch.int64)[HARD], torch.eye(3)[HARD], "probabilities"),
        (HARD, HARD, "classes"),
        (HARD.float(), HARD, "classes"),
        (HARD.int()[:, None], HARD, "classes"),
        (HARD.to(torch.uint16), HARD, "classes"),
        (HARD > 0, (HARD > 0).long(), "classes"),
    ],
)
def test_labels_are_recognised_by_what_they_are(
    tmp_path: Path, labels: Tensor, expected: Tensor, said: str
) -> None:
    """Classes, probabilities or logits, in any type, and it is said which."""
    found = load_place(_pair(tmp_path / "pair", labels))

    torch.testing.assert_close(found.labels, expected)
    assert found.info["labels_read_as"] == said
    brought = bring(Folder(str(tmp_path / "pair")), "pt", _home(("a", "b", "c")))
    torch.testing.assert_close(brought.labels, expected)
    assert brought.info["labels_read_as"] == said


@pytest.mark.parametrize(
    ("labels", "code"),
    [
        (LOGITS.exp(), "pt-labels-unclear"),
        (100 * LOGITS.softmax(1), "pt-labels-unclear"),
        (HARD - 1, "pt-labels-no-classes"),
        (HARD + 0.5, "pt-labels-no-classes"),
        (LOGITS / 0, "pt-labels-not-finite"),
        (torch.zeros(4, 3, 2), "pt-labels-malformed"),
    ],
)
def test_labels_that_are_neither_are_refused(tmp_path: Path, labels: Tensor, code: str) -> None:
    """Nothing is guessed where both readings are possible."""
    with raises(code):
        load_place(_pair(tmp_path / "pair", labels))


@pytest.mark.parametrize(
    ("images", "rate", "code"),
    [
        (IMAGES, 0.0, "pt-values-wrong"),
        (IMAGES, -1e-3, "pt-values-wrong"),
        (IMAGES, math.inf, "pt-values-wrong"),
        (IMAGES, [0.1, 0.2], "pt-rate-malformed"),
        (torch.where(IMAGES > 2, math.inf, IMAGES), 0.1, "pt-values-wrong"),
        (REAL[:4].float(), 0.1, "pt-images-not-scaled"),
    ],
)
def test_pairs_that_cannot_be_trained_on_are_refused(
    tmp_path: Path, images: Tensor, rate: Any, code: str
) -> None:
    """A rate of 0 or below, several rates, numbers that are not finite, pixels up to 255."""
    images = images.clone()
    if code == "pt-values-wrong" and rate == 0.1:
        images[0, 0, 0, 0] = math.inf
    with raises(code):
        load_place(_pair(tmp_path / "pair", HARD, images, rate))


def _saved(path: Path, classes: tuple[str, ...], soft: bool = False) -> Folder:
    count = len(classes)
    images = torch.arange(2 * count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 4, 4).contiguous()
    labels = torch.arange(count).repeat_interleave(2)
    if soft:
        labels = 0.6 * torch.eye(count)[labels] + 0.4 / count
    DistilledSet(images, labels, 0.01, classes, space.fit("normalise", REAL), {"method": "x"}).save(
        Folder(str(path))
    )
    return Folder(str(path))


def _altered(folder: Folder, key: str, value: float) -> None:
    """The set with ``key`` of its tensors filled, and the hash that fits."""
    tensors = load_file(folder.path("set.safetensors"))
    tensors[key] = torch.full_like(tensors[key], value)
    data = save(tensors)
    meta = folder.read_json("set.json")
    meta["files"]["set.safetensors"] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    folder.write("set.safetensors", data)
    folder.write("set.json", json.dumps(meta).encode())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("labels", math.nan), ("labels", -0.25), ("labels", 3.0), ("lr_student", math.nan), ("lr_student", 0.0),
        ("lr_student", -2.0), ("space.std", math.inf),
    ],
)  # fmt: skip
def test_a_set_with_impossible_numbers_is_refused_everywhere(tmp_path: Path, key: str, value: float) -> None:
    """By load, show and every export."""
    folder = _saved(tmp_path / "set", ("a", "b", "c"), soft=True)
    _altered(folder, key, value)

    codes = ("set-inconsistent", "set-unreadable")
    for refused in (DistilledSet.load, lambda f: inspect(str(f), "runs"), *(
        lambda f, form=form: export_set(f, form, Folder(str(tmp_path / form))) for form in FORMATS
    )):  # fmt: skip
        with pytest.raises(RayddlError) as caught:
            refused(folder)
        assert caught.value.code in codes
    assert not any((tmp_path / form).exists() for form in FORMATS)


def test_a_set_with_impossible_numbers_is_not_saved(tmp_path: Path) -> None:
    """The method that made them ends with an error."""
    fitted = space.fit("normalise", REAL)
    for images, labels, rate in (
        (IMAGES / 0, HARD, 0.1),
        (IMAGES, HARD, -0.1),
        (IMAGES, torch.full((4, 3), 0.5), 0.1),
    ):
        with pytest.raises(ValueError, match=r"finite|above 0|sums of"):
            DistilledSet(images, labels, rate, ("a", "b", "c"), fitted).save(Folder(str(tmp_path)))


@pytest.mark.parametrize("kind", ["normalise", "zca"])
def test_floats_in_0_to_1_are_encoded_as_their_bytes(kind: str) -> None:
    """And the caller's images are unchanged; any other floats are refused."""
    fitted: PixelSpace = space.fit(kind, REAL)
    floats = REAL.float() / 255
    before = floats.clone()

    torch.testing.assert_close(fitted.encode(floats), fitted.encode(REAL))
    torch.testing.assert_close(fitted.encode(floats.double()), fitted.encode(REAL))
    assert torch.equal(floats, before)
    for wrong in (floats * 255, floats - 0.5, floats / 0, REAL.long()):
        with pytest.raises(ValueError, match=r"floats in 0\.\.1"):
            fitted.encode(wrong)


@pytest.mark.parametrize(
    "classes", [tuple(str(n) for n in range(11)), ("pear", "fig", "date"), ("10", "9", "8")]
)
def test_an_exported_image_folder_keeps_its_labels_in_torchvision(
    tmp_path: Path, classes: tuple[str, ...]
) -> None:
    """Whatever the classes are called; ``classes.txt`` lists them in label order, and the set comes back."""
    folder, to = _saved(tmp_path / "set", classes), Folder(str(tmp_path / "out"))
    export_set(folder, "imagefolder", to)

    read = ImageFolder(str(tmp_path / "out"))
    assert [label for _, label in read] == [image.getpixel((0, 0))[0] // 2 for image, _ in read]
    assert to.read("classes.txt").decode().splitlines() == list(classes)
    back = bring(to, form_of(to), _home(tuple(reversed(classes))))
    assert [classes[len(classes) - 1 - label] for label in back.labels] == [
        classes[int(image[0, 0, 0]) // 2] for image in back.stored
    ]


@pytest.mark.parametrize("form", FORMATS)
def test_every_export_names_its_classes(tmp_path: Path, form: str) -> None:
    """In label order, a line each."""
    to = Folder(str(tmp_path / "out"))
    export_set(_saved(tmp_path / "set", ("pear", "fig", "date")), form, to)

    assert to.read("classes.txt") == b"pear\nfig\ndate\n"


ODD = (
    "",
    " lead",
    "tail\u2028",
    "a\u2028b",
    "a\x85b",
    "two\nlines",
    "a\rb",
    '" lead"',
    '"cat"',
    "\ufeffx",
    "plain",
)


@pytest.mark.parametrize("form", ["imagefolder", "parquet", "hf", "webdataset"])
def test_classes_of_any_name_come_back(tmp_path: Path, form: str) -> None:
    """Empty names, and such with space around them or with ends of lines, as a set and as a source."""
    folder, to = _saved(tmp_path / "set", ODD), Folder(str(tmp_path / "out"))
    export_set(folder, form, to)

    if form in ("parquet", "webdataset"):
        own = "train-000000.tar" if form == "webdataset" else "images.parquet"
        to.write(f"other-{own}", to.read(own))
        given = {"name": form, "root": str(tmp_path / "out"), "train": own, "test": "other-*"}
        train = sources.load(SourceConfig.model_validate(given)).train
        assert train.classes == ODD
        assert train.labels.tolist() == (train.images[:, 0, 0, 0] // 2).tolist()
        to.delete(f"other-{own}")
    if form != "webdataset":
        back = bring(to, "imagefolder" if form == "imagefolder" else "parquet", _home(tuple(reversed(ODD))))
        assert [len(ODD) - 1 - label for label in back.labels] == (back.stored[:, 0, 0, 0] // 2).tolist()


def test_lines_of_other_classes_are_as_they_were_written() -> None:
    """Without space around them, empty lines and a byte-order mark; quotes around all names are part of them."""
    written = '\ufeff"cat"\r\n "dog" \n\n\nbird\u2028of prey\r"half\n'.encode()
    assert parquet_labels.names_of(written) == ['"cat"', '"dog"', "bird\u2028of prey", '"half']


def _png(value: int) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (4, 4), (value, 0, 0)).save(sink, "PNG")
    return sink.getvalue()


def _table(path: Path, labels: list[Any], soft: list[Any] | None, name: str = "x.parquet") -> Folder:
    path.mkdir(exist_ok=True)
    columns: dict[str, Any] = {"image": [_png(i) for i in range(len(labels))], "label": labels}
    if soft is not None:
        columns["soft_label"] = soft
    pq.write_table(pa.table(columns), path / name)
    return Folder(str(path))


NAMED = ("yew", "oak", "elm")


def test_soft_labels_keep_the_order_that_the_labels_show(tmp_path: Path) -> None:
    """As written by an export of the same classes, or in another order that each row's likeliest class shows."""
    own = [[0.7, 0.2, 0.1], [0.2, 0.6, 0.2], [0.1, 0.1, 0.8]]
    same = bring(_table(tmp_path / "same", ["yew", "oak", "elm"], own), "parquet", _home(NAMED))
    turned = bring(_table(tmp_path / "turned", ["elm", "yew", "oak"], own), "parquet", _home(NAMED))

    assert torch.allclose(same.labels, torch.tensor(own))
    first = turned.labels[turned.stored[:, 0, 0, 0] == 0]
    assert torch.allclose(first, torch.tensor([[0.2, 0.1, 0.7]]))


def test_soft_labels_by_number_keep_their_columns(tmp_path: Path) -> None:
    """A class that is nowhere the likeliest has its column all the same."""
    own = [[0.4, 0.3, 0.3], [0.1, 0.2, 0.7], [0.2, 0.2, 0.6]]
    found = bring(_table(tmp_path / "set", [0, 2, 2], own), "parquet", _home(NAMED))

    assert torch.allclose(found.labels, torch.tensor(own))


@pytest.mark.parametrize(
    ("labels", "soft", "code"),
    [
        (
            ["elm", "elm", "oak"],
            [[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.8, 0.1, 0.1]],
            "soft-labels-without-order",
        ),
        (["elm", "oak"], [[0.7, 0.3], [0.6, 0.4]], "soft-labels-without-order"),
        (["elm", "oak"], [[0.7, 0.3], [1.0]], "soft-labels-ragged"),
        (["elm", "oak"], [[0.7, None], [0.5, 0.5]], "soft-labels-ragged"),
        (["elm", "oak"], [0.7, 0.3], "soft-labels-ragged"),
        (["elm", "oak"], ["0.7", "0.3"], "soft-labels-ragged"),
        ([2, 1], [[0.7, 0.2, 0.2], [math.nan, 0.5, 0.5]], "import-values-wrong"),
        ([2, -1], None, "import-unlabelled"),
    ],
)
def test_tables_that_do_not_say_what_they_mean_are_refused(
    tmp_path: Path, labels: list[Any], soft: list[Any] | None, code: str
) -> None:
    """Columns of unknown order, rows of several lengths, numbers that are not finite, rows without a label."""
    with raises(code):
        bring(_table(tmp_path / "set", labels, soft), "parquet", _home(NAMED))


def test_one_of_several_tables_is_no_set(tmp_path: Path) -> None:
    """Its name says that there is another."""
    with raises("import-shards-missing"):
        form_of(_table(tmp_path / "set", [0, 1], None, "train-00000-of-00004.parquet"))


def _tree(path: Path, names: tuple[str, ...]) -> Folder:
    for value, name in enumerate(names):
        (path / name).mkdir(parents=True)
        (path / name / "0.png").write_bytes(_png(value))
    return Folder(str(path))


@pytest.mark.parametrize(
    ("folders", "classes", "labels"),
    [
        (("05", "07"), ("5", "7", "40"), [0, 1]),
        (("7", "5"), ("05", "07", "9"), [1, 0]),
        (("00", "02"), ("ant", "bee", "cow"), [0, 2]),
        (("1", "2"), ("1", "2", "0"), [0, 1]),
    ],
)
def test_folders_named_by_numbers_match_by_value(
    tmp_path: Path, folders: tuple[str, ...], classes: tuple[str, ...], labels: list[int]
) -> None:
    """They are names where the source's classes are numbers, and positions where these are words."""
    found = bring(_tree(tmp_path / "set", folders), "imagefolder", _home(classes))

    assert {
        int(image[0, 0, 0]): int(label) for image, label in zip(found.stored, found.labels, strict=True)
    } == dict(enumerate(labels))


def test_folders_that_are_no_value_of_a_class_are_refused(tmp_path: Path) -> None:
    """They are not taken as positions."""
    with raises("classes-not-of-source"):
        bring(_tree(tmp_path / "set", ("0", "1")), "imagefolder", _home(("1", "2", "3")))


def test_numbers_that_could_be_names_or_positions_are_refused(tmp_path: Path) -> None:
    """A column of integers of a source whose classes are numbers from 1."""
    with raises("labels-ambiguous"):
        bring(_table(tmp_path / "set", [1, 2], None), "parquet", _home(("1", "2", "3")))


def test_grey_is_made_as_from_any_other_image(tmp_path: Path) -> None:
    """By the weights of ITU-R 601: red is 76, not 85."""
    home = TargetSource(("a", "b"), (1, 4, 4), space.fit("normalise", REAL[:, :1]))
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for name, colour in (("a", (255, 0, 0)), ("b", (0, 255, 0))):
        Image.new("RGB", (4, 4), colour).save(tmp_path / name / "0.png")

    assert bring(Folder(str(tmp_path)), "imagefolder", home).stored[:, 0, 0, 0].tolist() == [76, 150]
