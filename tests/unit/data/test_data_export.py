"""Exports read by the libraries they are made for, and sets that come back."""

from __future__ import annotations

import errno
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from markdown_it import MarkdownIt
from PIL import Image
from torch import Tensor
from torchvision.datasets import ImageFolder

import rayddl
from rayddl.data.distilled import DistilledSet
from rayddl.data.formats import export as exports
from rayddl.data.formats.card import card, without_places
from rayddl.data.formats.export import export_set
from rayddl.data.pixels.space import fit
from rayddl.storage import Folder
from tests.raising import raises

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
ROWS = [
    {
        "data": "distilled",
        "net": "convnet",
        "images": 20,
        "mean": 0.432,
        "std": 0.002,
        "accuracies": [0.4, 0.5],
    },
    {"data": "random", "net": "convnet", "images": 20, "mean": 0.15, "std": 0.01, "accuracies": [0.1, 0.2]},
]
INFO: dict[str, Any] = {
    "method": "MTT",
    "source": {"name": "cifar10", "root": "/home/me/secret"},
    "definition": {"name": "mine", "source": {"name": "cifar10", "root": "/home/me/secret"}, "stages": {}},
    "metrics": {"accuracy": ROWS},
    "protocol": {"name": "hard"},
}


def make(soft: bool = False, info: dict[str, Any] = INFO) -> DistilledSet:
    """Two images of each class of CIFAR-10, of random pixels."""
    draws = torch.Generator().manual_seed(0)
    real = torch.randint(0, 256, (40, 3, 32, 32), generator=draws, dtype=torch.uint8)
    space = fit("normalise", real)
    labels = torch.arange(10).repeat_interleave(2)
    if soft:
        labels = 0.5 * torch.nn.functional.one_hot(labels, 10).float() + 0.05
    return DistilledSet(space.encode(real[:20]) * 1.2, labels, 0.03, CLASSES, space, info)


def saved(made: DistilledSet, path: Path) -> Folder:
    folder = Folder(str(path / "made"))
    made.save(folder)
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Hugging Face's library, kept from the network and from this machine's cache."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets", reason="Hugging Face's datasets is not installed")
    datasets.disable_progress_bars()
    return lambda *where, **more: datasets.load_dataset(*where, cache_dir=str(tmp_path / "cache"), **more)


def stack(pictures: list[Image.Image]) -> Tensor:
    return torch.stack([torch.from_numpy(np.array(p)).permute(2, 0, 1) for p in pictures])


@pytest.mark.parametrize("soft", [False, True])
def test_hugging_face_opens_the_folder(tmp_path: Path, hub: Any, soft: bool) -> None:
    """``load_dataset`` of the folder gives pictures, labels with their names, and soft labels."""
    made = make(soft)
    export_set(saved(made, tmp_path), "hf", Folder(str(tmp_path / "out")))

    read = hub(str(tmp_path / "out"))["train"]

    assert read.features["label"].names == list(CLASSES)
    assert read["label"][:] == made.hard_labels.tolist()
    assert torch.equal(stack(list(read["image"])), made.pixels())
    assert ("soft_label" in read.features) == soft
    if soft:
        assert np.array_equal(np.array(read["soft_label"][:], np.float32), made.labels.numpy())


def test_hugging_face_opens_the_tar_files(tmp_path: Path, hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its WebDataset reader gives every picture with its label, over as many files as there are."""
    monkeypatch.setattr(exports, "SHARD_BYTES", 20_000)
    made = make()
    written = export_set(saved(made, tmp_path), "webdataset", Folder(str(tmp_path / "out")))
    tars = [path for path in written if path.endswith(".tar")]

    read = hub("webdataset", data_files={"train": tars})["train"]

    assert len(tars) > 1
    assert [int(label) for label in read["cls"]] == made.hard_labels.tolist()
    assert torch.equal(stack(list(read["png"])), made.pixels())
    assert (tmp_path / "out" / "classes.txt").read_text().split() == list(CLASSES)


def test_tar_files_hold_soft_labels_and_no_clock(tmp_path: Path) -> None:
    """Soft labels are exact numbers beside the picture, and two exports are the same bytes."""
    made = make(soft=True)
    folder = saved(made, tmp_path)
    for name in ("a", "b"):
        export_set(folder, "webdataset", Folder(str(tmp_path / name)))
    first = (tmp_path / "a" / "train-000000.tar").read_bytes()

    assert first == (tmp_path / "b" / "train-000000.tar").read_bytes()
    with tarfile.open(fileobj=io.BytesIO(first)) as tar:
        names = tar.getnames()
        row = json.load(tar.extractfile("000000003.soft_label.json"))
    assert names[:3] == ["000000000.png", "000000000.cls", "000000000.soft_label.json"]
    assert np.array_equal(np.array(row, np.float32), made.labels[3].numpy())


def test_torchvision_opens_the_image_folder(tmp_path: Path) -> None:
    """ImageFolder of the export has the classes of the set and its pictures."""
    made = make()
    export_set(saved(made, tmp_path), "imagefolder", Folder(str(tmp_path / "out")))
    read = ImageFolder(str(tmp_path / "out"))

    assert read.classes == list(CLASSES)
    assert [label for _, label in read.samples] == made.labels.tolist()
    assert torch.equal(stack([picture for picture, _ in read]), made.pixels())


@pytest.mark.parametrize("form", ["pt", "imagefolder", "hf"])
def test_a_place_that_cannot_be_written_is_said(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file in place of a folder, and a disk that is full after two files."""
    made = saved(make(), tmp_path)
    (tmp_path / "file").write_text("")
    with raises("export-not-writable"):
        export_set(made, form, Folder(str(tmp_path / "file")))
    write, names = Folder.write, []

    def full(self: Folder, name: str, data: bytes) -> None:
        names.append(name)
        if len(names) > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, name, data)

    monkeypatch.setattr(Folder, "write", full)
    with raises("export-not-writable") as caught:
        export_set(made, form, Folder(str(tmp_path / "to")))
    assert "2 of" in str(caught.value)


def test_the_card_says_what_how_whose_and_how_good() -> None:
    """The card has front matter, the definition without places, the licence to be stated, and the figures."""
    text = card(make())
    _, front, body = text.split("---\n", 2)

    assert yaml.safe_load(front)["license"] == "unknown"
    assert yaml.safe_load(front)["configs"][0]["data_files"][0]["path"].startswith("data/train-")
    assert "20 images of 10 classes (2 a class), 32 x 32 pixels, colour, with hard labels" in body
    assert "name: mine" in body
    assert "secret" not in text
    assert "The authors of CIFAR-10 state no licence" in body
    assert "_licence of the source: to be filled in_" in body
    assert "| this set | 20 | convnet | 43.2 ± 0.2 | 2 |" in body
    assert "| random real images | 20 | convnet | 15.0 ± 1.0 | 2 |" in body
    assert INFO["definition"]["source"]["root"] == "/home/me/secret"
    assert without_places({"method": "x"}) == {"method": "x"}
    stages = {"other": {"kind": "imported", "path": "/home/me/x"}, "compare": {"runs": ["/home/me/y"]}}
    both = {
        "definition": {"name": "mine", "stages": stages},
        "evaluated_by": {"source": {"root": "/home/me"}},
    }
    assert "/home/me" not in str(without_places(both))


def test_the_card_names_own_labels_late_looks_and_sets_below_random() -> None:
    """As the tables of a run do."""
    best = {"mean": 0.2, "std": 0.01}
    rows = [{**ROWS[0], "mean": 0.12, "best": best}, {**ROWS[0], "data": "distilled-own"}, ROWS[1]]
    text = card(make(info={**INFO, "metrics": {"accuracy": rows}}))

    assert "| this set, below random | 20 | convnet | 12.0 ± 0.2 (best of late epochs 20.0) | 2 |" in text
    assert "| this set, own labels | 20 | convnet | 43.2 ± 0.2 | 2 |" in text
    with raises("document-malformed"):
        card(make(info={**INFO, "metrics": {"accuracy": [{**ROWS[0], "best": [1]}]}}))


def test_the_card_says_what_accuracies_are_worth_and_what_the_set_cost() -> None:
    """DD-Ranking's scores, top by top, the bytes, and the seconds of all stages together."""
    scores = {"convnet": {"hlr": {"mean": 0.35, "std": 0.01}, "lrs": {"mean": 0.31, "std": 0.002}}}
    more = {"scores": scores, "bytes": 61_440, "spent": {"experts": 1000.0, "distill": 234.4}}
    text = card(make(info={**INFO, "metrics": {"accuracy": ROWS, **more}}))

    assert "- convnet: 35.0 ± 1.0 % short of all real images by hard labels (HLR)" in text
    assert "- convnet: 31.0 ± 0.2 % label-robust score (LRS)" in text
    alone = {**more, "scores": {"convnet": {"hlr": {"mean": 0.35, "std": 0.0}}}}
    text = card(make(info={**INFO, "metrics": {"accuracy": ROWS, **alone}}))
    assert "- convnet: 35.0 % short" in text
    assert "Images and labels take 61,440 bytes." in text
    assert "took 1,234 seconds, every stage behind them included" in text


def test_a_card_without_figures_says_so() -> None:
    """What is not known is said to be not known."""
    text = card(make(info={}))

    assert "Not measured." in text
    assert "the definition was not kept" in text
    assert "Nothing is known of the licence of the source." in text


def test_a_card_states_a_licence_that_is_known() -> None:
    """Nothing is left to be filled in for a source with a licence, and files of one's own are called so."""
    digits, own = (card(make(info={**INFO, "source": {"name": n}})) for n in ("digits", "imagefolder"))

    assert "is offered under CC BY 4.0.\n" in digits
    assert "to be filled in" not in digits
    assert "made from images of their maker's own (`imagefolder`)" in own
    assert "Nothing is known" not in own
    assert "_licence of the source: to be filled in_" in own


def test_stages_are_in_the_order_of_the_definition(tmp_path: Path) -> None:
    """Saved, loaded and exported, the definition reads as it was written."""
    stages = {name: {"kind": "x"} for name in ("teacher", "made", "evaluate")}
    folder = saved(make(info={**INFO, "definition": {"name": "mine", "stages": stages}}), tmp_path)
    export_set(folder, "hf", Folder(str(tmp_path / "to")))

    written = yaml.safe_load((tmp_path / "to" / "definition.yaml").read_text())
    assert list(written["stages"]) == list(stages)
    assert list(DistilledSet.load(Folder(str(tmp_path / "to"))).info["definition"]["stages"]) == list(stages)


def test_the_exact_tensors_come_with_the_folder(tmp_path: Path) -> None:
    """The exported folder is a set for ``load_set``, bit for bit, without where the real images lay."""
    made = make()
    export_set(saved(made, tmp_path), "hf", Folder(str(tmp_path / "out")))

    again = rayddl.load_set(tmp_path / "out")
    assert torch.equal(again.images, made.images)
    assert again.info == without_places(made.info)
    assert again.info["source"] == {"name": "cifar10"}
    assert b"secret" not in b"".join(p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file())


@pytest.mark.parametrize("soft", [False, True])
def test_a_pair_of_torch_files_comes_back_equal(tmp_path: Path, soft: bool) -> None:
    """Exported as ``pt`` and loaded again, a set has the same tensors, rate, classes and pixel space."""
    made = make(soft)
    export_set(saved(made, tmp_path), "pt", Folder(str(tmp_path / "out")))
    again = rayddl.load_set(str(tmp_path / "out"))

    assert torch.equal(again.images, made.images)
    assert torch.equal(again.labels, made.labels)
    assert (again.lr_student, again.classes) == (made.lr_student, made.classes)
    assert again.space.fingerprint == made.space.fingerprint
    assert again.info == made.info


def write_pair(path: Path, images: Any, labels: Any, **more: Any) -> Path:
    path.mkdir()
    for name, value in {"images_best": images, "labels_best": labels, **more}.items():
        torch.save(value, path / f"{name}.pt")
    return path


def test_a_pair_of_other_code_is_read_as_it_is(tmp_path: Path) -> None:
    """Tensors are equal; classes are numbers, pictures show most pixels, and nothing claims a source."""
    images = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 3 + 1
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    where = write_pair(tmp_path / "theirs", images.requires_grad_(), labels, lr_best=torch.tensor(0.05))
    made = rayddl.load_set(where)

    assert torch.equal(made.images, images)
    assert torch.equal(made.labels, labels)
    assert made.classes == ("0", "1", "2")
    assert made.lr_student == pytest.approx(0.05)
    assert "source" not in made.info
    shown = made.pixels().double()
    assert 120 < float(shown.mean()) < 135
    assert float(((shown == 0) | (shown == 255)).double().mean()) < 0.03
    made.save(Folder(str(tmp_path / "saved")))
    assert torch.equal(rayddl.load_set(tmp_path / "saved").images, images)


class Trap:
    """Something that only code can read."""


@pytest.mark.parametrize(
    ("images", "labels", "code"),
    [
        (Trap(), torch.tensor([0]), "pt-not-tensors"),
        (
            [torch.zeros(1)],
            torch.tensor([0]),
            "pt-not-one-tensor",
        ),
        (
            torch.zeros(2, 3),
            torch.tensor([0, 1]),
            "pt-images-malformed",
        ),
        (
            torch.zeros(2, 1, 4, 4),
            torch.tensor([0]),
            "pt-labels-malformed",
        ),
    ],
)
def test_other_files_are_refused(tmp_path: Path, images: Any, labels: Any, code: str) -> None:
    """What is no pair of tensors is named, and no code in it runs."""
    with raises(code):
        rayddl.load_set(write_pair(tmp_path / "pair", images, labels))


def test_an_export_without_its_space_is_refused(tmp_path: Path) -> None:
    """Half an export says what is missing, and how to read the tensors alone."""
    export_set(saved(make(), tmp_path), "pt", Folder(str(tmp_path / "out")))
    (tmp_path / "out" / "space.safetensors").unlink()
    with raises("pt-export-incomplete"):
        rayddl.load_set(tmp_path / "out")

    (tmp_path / "out" / "set.json").unlink()
    assert torch.equal(rayddl.load_set(tmp_path / "out").images, make().images)


def test_a_set_feeds_a_loader_and_shows_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of images and labels; a picture with a caption for notebooks, and one for the viewer."""
    made, opened = make(), []
    monkeypatch.setattr(Image.Image, "show", lambda self: opened.append(self.size))
    loader = torch.utils.data.DataLoader(made.to_torch_dataset(), batch_size=8)
    made.show()

    batches = list(loader)
    assert [len(x) for x, _ in batches] == [8, 8, 4]
    assert torch.equal(torch.cat([x for x, _ in batches]), made.images)
    assert torch.equal(torch.cat([y for _, y in batches]), made.labels)
    assert len(opened) == 1
    html = made._repr_html_()
    assert 'alt="MTT: 20 images of 10 classes, 3 x 32 x 32, hard labels"' in html
    assert "data:image/png;base64,iVBOR" in html


@pytest.mark.parametrize(
    ("labels", "code"),
    [
        (torch.tensor([0, 1, 5_000_000, 1]), "pt-too-many-classes"),
        (torch.tensor([0, 2**62, 0, 1]), "pt-too-many-classes"),
        (torch.tensor([0, 1, -3, 1]), "pt-labels-no-classes"),
        (torch.zeros(4, dtype=torch.complex64), "pt-labels-malformed"),
        (torch.tensor(1), "pt-labels-malformed"),
        (torch.zeros(4, 0), "pt-labels-malformed"),
    ],
)
def test_labels_of_pairs_are_numbers_of_classes(tmp_path: Path, labels: Any, code: str) -> None:
    """A number names a class, so it is neither below 0 nor above any count of classes."""
    with raises(code):
        rayddl.load_set(write_pair(tmp_path / "pair", torch.rand(4, 1, 8, 8), labels))


def test_a_rate_is_one_number(tmp_path: Path) -> None:
    """The third file of a pair."""
    folder = write_pair(tmp_path / "pair", torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 0, 1]))
    torch.save(torch.rand(3), Path(folder) / "lr_best.pt")
    with raises("pt-rate-malformed"):
        rayddl.load_set(folder)


HOSTILE = "x\n# Forged\n\n<script>alert(1)</script> [a](javascript:b) `c` | d \x1b[31m \u202e"


def test_the_card_takes_no_markup_from_outside() -> None:
    """No HTML, heading, link, row or escape of a name gets into the card, nor out of its blocks of code."""
    rows = [{**ROWS[0], "data": HOSTILE, "net": HOSTILE}]
    definition = {"description": "y\n\n```\n\n# Forged\n\n<b>bold</b>\n\n````\n", "name": HOSTILE}
    scores = {HOSTILE: {"hlr": {"mean": 0.1, "std": 0.0}}}
    info = {
        "method": HOSTILE,
        "source": {"name": HOSTILE},
        "definition": definition,
        "protocol": {"name": HOSTILE},
        "metrics": {"accuracy": rows, "scores": scores},
    }
    text = card(make(info=info))
    _, head, body = text.split("---\n", 2)
    tokens = [
        each
        for token in MarkdownIt().enable("table").parse(body)
        for each in (token, *(token.children or ()))
    ]
    kinds = [token.type for token in tokens]

    assert yaml.safe_load(head)["pretty_name"].startswith("x\n# Forged")
    assert [token.tag for token in tokens if token.type == "heading_open"].count("h1") == 1
    assert not {"html_block", "html_inline", "link_open", "image"} & set(kinds)
    assert kinds.count("tr_open") == 2
    assert kinds.count("fence") == 2
    assert not set(text) & {"\x1b", "\u202e"}


def test_empty_parts_of_a_description_are_none() -> None:
    """A set of another version may store null where others store a mapping."""
    nothing = dict.fromkeys(("method", "source", "definition", "protocol", "metrics"))
    assert "Not measured" in card(make(info=nothing))
