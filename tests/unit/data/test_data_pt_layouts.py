"""Sets in torch's files are found in the layouts in which codes of the field save them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rayddl.data.formats import pt_places
from rayddl.data.formats.forms import form_of
from rayddl.data.formats.importing import TargetSource, bring
from rayddl.data.formats.pt import load_place
from rayddl.data.pixels import space
from rayddl.pipeline.sets import load_set
from rayddl.storage import Folder
from tests.raising import raises

DRAWN = torch.Generator().manual_seed(3)
IMAGES = torch.randn(4, 3, 4, 4, generator=DRAWN)
OLDER = torch.randn(4, 3, 4, 4, generator=DRAWN)
LABELS = torch.tensor([0, 1, 2, 1])
REAL = torch.randint(256, (40, 3, 4, 4), dtype=torch.uint8, generator=DRAWN)
HOME = TargetSource(("a", "b", "c"), (3, 4, 4), space.fit("normalise", REAL))
ONE_FILE: dict[str, Any] = {
    "list": [IMAGES, LABELS],
    "tuple": (IMAGES, LABELS),
    "named": {"images": IMAGES, "labels": LABELS, "epochs": 5},
    "data and targets": {"data": IMAGES, "targets": LABELS},
    "parameters": {"image_syn": torch.nn.Parameter(IMAGES), "label_syn": LABELS},
}


@pytest.mark.parametrize("held", ONE_FILE.values(), ids=ONE_FILE)
@pytest.mark.parametrize("name", ["data.pt", "images.pt", "set.pth"])
def test_one_file_holds_images_and_labels(tmp_path: Path, held: Any, name: str) -> None:
    """Named by its path, or alone in a folder."""
    torch.save(held, tmp_path / name)
    folder = Folder(str(tmp_path))

    assert form_of(folder) == "pt"
    for found in (load_set(str(tmp_path / name)), bring(folder, "pt", HOME)):
        assert torch.equal(found.images, IMAGES)
        assert torch.equal(found.labels, LABELS)


def test_of_several_iterations_the_last_is_read(tmp_path: Path) -> None:
    """By number, not by name; files without a partner are passed over, and ``best`` has precedence."""
    for name, images in (("900", OLDER), ("5000", IMAGES), ("9000", OLDER)):
        torch.save(images, tmp_path / f"images_{name}.pt")
        torch.save(images, tmp_path / f"images_zca_{name}.pt")
        if name != "9000":
            torch.save(LABELS, tmp_path / f"labels_{name}.pt")
    folder = Folder(str(tmp_path))

    assert form_of(folder) == "pt"
    assert torch.equal(bring(folder, "pt", HOME).images, IMAGES)
    assert torch.equal(load_set(str(tmp_path / "images_900.pt")).images, OLDER)
    torch.save(OLDER, tmp_path / "images_best.pt")
    torch.save(LABELS, tmp_path / "labels_best.pt")
    assert torch.equal(bring(folder, "pt", HOME).images, OLDER)


def test_a_rate_belongs_to_its_images(tmp_path: Path) -> None:
    """That of the same iteration or dictionary; the best one's is no other's, nor are an export's names."""
    for name, rate in (("best", 0.5), ("900", 0.25), ("100", None)):
        torch.save(IMAGES, tmp_path / f"images_{name}.pt")
        torch.save(LABELS, tmp_path / f"labels_{name}.pt")
        if rate is not None:
            torch.save(torch.tensor(rate), tmp_path / f"lr_{name}.pt")
    (tmp_path / "set.json").write_text("{}")
    for given in (0.125, torch.tensor(0.125)):
        torch.save({"images": IMAGES, "labels": LABELS, "lr": given}, tmp_path / "data.pt")
        assert load_set(str(tmp_path / "data.pt")).lr_student == 0.125
    found = [load_set(str(tmp_path / f"images_{name}.pt")).lr_student for name in ("900", "100")]
    (tmp_path / "set.json").unlink()

    assert [*found, bring(Folder(str(tmp_path)), "pt", HOME).lr_student] == [0.25, 0.01, 0.5]


def test_pixels_are_read_as_pixels(tmp_path: Path) -> None:
    """uint8 images are kept as they are, and encoded in the source's space, whatever it is."""
    torch.save([REAL[:4], LABELS], tmp_path / "data.pt")
    place = pt_places.at(str(tmp_path / "data.pt"))
    assert place is not None
    brought, shown = bring(Folder(str(tmp_path)), "pt", HOME), load_place(place)

    assert torch.equal(brought.stored, REAL[:4])
    assert torch.equal(brought.images, HOME.space.encode(REAL[:4]))
    assert torch.equal(shown.pixels(), REAL[:4])
    torch.testing.assert_close(shown.images.mean((0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-5)


CYCLE: dict[str, Any] = {"labels": LABELS}
CYCLE["data"] = [CYCLE]
REFUSED: dict[str, tuple[Any, str]] = {
    "one tensor": (IMAGES, "pt-no-images-and-labels"),
    "three tensors": ([IMAGES, LABELS, LABELS], "pt-no-images-and-labels"),
    "labels missing": ({"images": IMAGES}, "pt-no-images-and-labels"),
    "weights": ({f"conv{n}.weight": IMAGES for n in range(12)}, "pt-no-images-and-labels"),
    "experts": ([[[IMAGES, LABELS, IMAGES]]], "pt-no-images-and-labels"),
    "no repetition": ({"data": [], "accs_all_exps": {}}, "pt-no-images-and-labels"),
    "itself": (CYCLE, "pt-no-images-and-labels"),
    "swapped": ([LABELS, IMAGES], "pt-images-malformed"),
    "integers": ([IMAGES.long(), LABELS], "pt-images-malformed"),
    "rates": ({"images": IMAGES, "labels": LABELS, "lr": torch.ones(2)}, "pt-rate-malformed"),
    "too few labels": ([IMAGES, LABELS[:3]], "pt-labels-malformed"),
}


@pytest.mark.parametrize(("held", "code"), REFUSED.values(), ids=REFUSED)
def test_other_files_are_refused_by_what_they_hold(tmp_path: Path, held: Any, code: str) -> None:
    """The message says what the file holds, and what was expected."""
    torch.save(held, tmp_path / "data.pt")
    with raises(code) as caught:
        bring(Folder(str(tmp_path)), "pt", HOME)
    assert "expected" in str(caught.value)


@pytest.mark.parametrize("names", [[], ["a.pt", "b.pt"], ["images_1.pt", "labels_2.pt"]])
def test_what_is_no_set_is_not_taken_for_one(tmp_path: Path, names: list[str]) -> None:
    """Neither an empty folder nor one of several files that are no pair."""
    for name in names:
        torch.save([IMAGES, LABELS], tmp_path / name)
    folder = Folder(str(tmp_path))

    assert pt_places.find(folder) is None
    with raises("no-set-here"):
        form_of(folder)
    with raises("no-set-here"):
        bring(folder, "pt", HOME)
    assert pt_places.at(str(tmp_path / "none.pt")) is None


def test_a_file_beside_folders_of_images_is_not_the_set(tmp_path: Path) -> None:
    """It may be a network's weights; a pair of files is a set all the same."""
    from PIL import Image

    (tmp_path / "a").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "a" / "0.png")
    torch.save(IMAGES, tmp_path / "images_10.pt")
    assert form_of(Folder(str(tmp_path))) == "imagefolder"
    torch.save(LABELS, tmp_path / "labels_10.pt")
    assert form_of(Folder(str(tmp_path))) == "pt"
