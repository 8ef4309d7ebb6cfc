"""A distilled set on disk: whole and exact, or refused; and the views of it that others open."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors import torch as safetensors

from rayddl import sealed
from rayddl.data.distilled import DistilledSet
from rayddl.data.pixels.space import fit
from rayddl.errors import ArtifactError
from rayddl.storage import Folder
from tests.raising import raises

CLASSES = ("cat", "dog", "a/b")
INFO = {"method": "MCT", "metrics": {"accuracy": 0.5}, "protocol": {"epochs": 3}, "provenance": {"seed": 0}}


def make(
    kind: str = "normalise",
    soft: bool = False,
    ipc: int = 2,
    shape: tuple[int, int, int] = (3, 6, 5),
    info: Mapping[str, Any] = INFO,
) -> DistilledSet:
    """A small set in the pixel space ``kind``, with pixels that leave the range of a byte."""
    source = torch.Generator().manual_seed(0)
    real = torch.randint(0, 256, (40, *shape), generator=source).to(torch.uint8)
    space = fit(kind, real)
    images = space.encode(real[: ipc * len(CLASSES)]) * 1.5
    labels = torch.arange(len(CLASSES)).repeat_interleave(ipc)
    if soft:
        labels = torch.softmax(torch.randn(len(images), len(CLASSES), generator=source), 1)
    return DistilledSet(images, labels, 0.1 + 1e-17 + 1 / 3, CLASSES, space, info)


def test_a_set_knows_what_share_of_its_values_its_pixels_lack() -> None:
    """Values beyond black and white, not those that are only rounded; none of images that are bytes."""
    made = make()
    exact = made.space.invert(made.images).double()
    expected = ((exact < -0.5 / 255) | (exact > 1 + 0.5 / 255)).double().mean()
    assert 0.05 < made.clamped() == pytest.approx(float(expected), abs=1e-6)
    within = DistilledSet(made.space.encode(made.pixels()), made.labels, 0.1, CLASSES, made.space, INFO)
    assert within.clamped() == 0.0
    assert DistilledSet(made.pixels(), made.labels, 0.1, CLASSES, made.space, INFO).clamped() == 0.0


def test_a_set_knows_how_many_images_each_class_has() -> None:
    """Learned labels may name another class than the one that an image began as; an uneven set is counted by them."""
    hard, soft = make(), make(soft=True)
    assert hard.counts == soft.counts == (2, 2, 2)
    assert soft.hard_labels.bincount(minlength=3).tolist() != [2, 2, 2]
    some = dataclasses.replace(hard, stored=hard.stored[:3], labels=hard.labels[:3])
    assert some.counts == (2, 1, 0)
    few = dataclasses.replace(soft, stored=soft.stored[:4], labels=soft.labels[:4])
    assert few.counts == tuple(few.hard_labels.bincount(minlength=3).tolist())


@pytest.mark.parametrize("kind", ["normalise", "zca"])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("uri", [False, True])
def test_a_saved_set_loads_bit_for_bit(
    tmp_path: Path, kind: str, soft: bool, channels: int, uri: bool
) -> None:
    """Images, labels, learning rate, classes, pixel space and information all return exactly."""
    saved = make(kind, soft, shape=(channels, 6, 5))
    folder = Folder(tmp_path.as_uri() if uri else str(tmp_path)).child("set")

    saved.save(folder)
    loaded = DistilledSet.load(folder)

    assert torch.equal(loaded.images, saved.images)
    assert torch.equal(loaded.labels, saved.labels)
    assert loaded.labels.dtype == saved.labels.dtype
    assert loaded.lr_student == saved.lr_student
    assert loaded.classes == CLASSES
    assert loaded.info == INFO
    assert loaded.space.fingerprint == saved.space.fingerprint
    assert torch.equal(loaded.space.invert(loaded.images), saved.space.invert(saved.images))
    assert torch.equal(loaded.pixels(), saved.pixels())
    assert loaded.ipc == 2


def test_pixels_are_the_space_inverted_and_clamped() -> None:
    """Model space goes back to bytes; what lies outside black and white is cut off, nothing wraps."""
    distilled = make()

    pixels = distilled.pixels()

    expected = (distilled.space.invert(distilled.images).clamp(0, 1) * 255).round()
    assert pixels.dtype == torch.uint8
    assert torch.equal(pixels.float(), expected)
    assert pixels.min() == 0
    assert pixels.max() == 255


def test_the_folder_holds_what_is_promised(tmp_path: Path) -> None:
    """Every file that the documentation names is there, and no other."""
    make().save(Folder(str(tmp_path)))

    files = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}

    assert files == {
        "grid.png",
        *(f"images/{name}/{n:04d}.png" for name in ("0-cat", "1-dog", "2-a_b") for n in range(2)),
        "images.parquet",
        "set.json",
        "set.safetensors",
    }


def test_the_tensors_open_without_rayddl(tmp_path: Path) -> None:
    """Any reader of safetensors finds the named tensors in their types."""
    make().save(Folder(str(tmp_path)))

    with safe_open(tmp_path / "set.safetensors", framework="np") as file:
        tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}

    assert {name: (tensor.dtype.name, tensor.shape) for name, tensor in tensors.items()} == {
        "images": ("float32", (6, 3, 6, 5)),
        "labels": ("int64", (6,)),
        "lr_student": ("float64", ()),
        "space.mean": ("float64", (3,)),
        "space.std": ("float64", (3,)),
    }


def test_the_description_is_readable(tmp_path: Path) -> None:
    """``set.json`` says what it is, of which version, how it was made, and the hash of the tensors."""
    distilled = make()
    distilled.save(Folder(str(tmp_path)))

    meta = json.loads((tmp_path / "set.json").read_text())

    data = (tmp_path / "set.safetensors").read_bytes()
    assert meta == {
        "format": "rayddl distilled set",
        "version": 1,
        "classes": list(CLASSES),
        "folders": ["0-cat", "1-dog", "2-a_b"],
        "images": {"count": 6, "per_class": [2, 2, 2], "shape": [3, 6, 5]},
        "labels": "hard",
        "lr_student": distilled.lr_student,
        "space": distilled.space.to_json(),
        "info": INFO,
        "files": {"set.safetensors": {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}},
    }


def test_saving_again_replaces_the_set(tmp_path: Path) -> None:
    """A smaller set leaves no picture of the larger one behind, and files of others stay."""
    folder = Folder(str(tmp_path))
    make(ipc=4).save(folder)
    (tmp_path / "images" / "mine.png").write_bytes(b"mine")

    make(ipc=1).save(folder)

    pictures = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("images/**/*.png"))
    assert pictures == [
        "images/0-cat/0000.png",
        "images/1-dog/0000.png",
        "images/2-a_b/0000.png",
        "images/mine.png",
    ]
    assert DistilledSet.load(folder).ipc == 1


def test_equal_sets_have_equal_bytes(tmp_path: Path) -> None:
    """Nothing of the clock or the machine is in the files."""
    for name in ("a", "b"):
        make("zca").save(Folder(str(tmp_path / name)))

    a, b = ({p.relative_to(tmp_path / n): p.read_bytes() for p in (tmp_path / n).rglob("*.*")} for n in "ab")
    assert a == b


def refusal(folder: Path) -> str:
    """What is said when the set is not loaded."""
    with pytest.raises(ArtifactError) as caught:
        DistilledSet.load(Folder(str(folder)))
    return str(caught.value)


@pytest.mark.parametrize("name", ["set.json", "set.safetensors"])
def test_an_incomplete_set_is_refused(tmp_path: Path, name: str) -> None:
    """The missing file is named, and what to do."""
    make().save(Folder(str(tmp_path)))
    (tmp_path / name).unlink()

    assert (
        refusal(tmp_path)
        == {
            "set.json": f"{tmp_path} holds no whole distilled set: set.json is missing, which is written "
            "last. Name the folder that holds it, or make the set again.",
            "set.safetensors": f"the distilled set in {tmp_path} is incomplete: set.safetensors is missing. "
            "Copy the whole folder.",
        }[name]
    )


def test_an_interrupted_save_leaves_no_set(tmp_path: Path) -> None:
    """While a set is being replaced, the folder is not a set; a finished save makes it one again."""

    class Killed(Exception):
        """Stands in for the process's end."""

    class Dying(Folder):
        """A folder whose picture cannot be written any more."""

        def write(self, name: str, data: bytes) -> None:
            if name == "grid.png":
                raise Killed
            super().write(name, data)

    make(ipc=1).save(Folder(str(tmp_path)))
    with pytest.raises(Killed):
        make(ipc=3).save(Dying(str(tmp_path)))

    assert "set.json is missing" in refusal(tmp_path)
    make(ipc=3).save(Folder(str(tmp_path)))
    assert DistilledSet.load(Folder(str(tmp_path))).ipc == 3


def test_an_altered_set_is_refused(tmp_path: Path) -> None:
    """One flipped bit is found; both hashes are given."""
    make().save(Folder(str(tmp_path)))
    file = tmp_path / "set.safetensors"
    before = hashlib.sha256(file.read_bytes()).hexdigest()
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)

    assert refusal(tmp_path) == (
        f"{file} was altered: its SHA-256 is {hashlib.sha256(data).hexdigest()}, set.json says {before}. "
        "Restore it, or make the set again."
    )


def edit(folder: Path, **changes: object) -> None:
    """Change keys of ``set.json``; ``None`` removes one."""
    meta = json.loads((folder / "set.json").read_text())
    meta = {k: v for k, v in {**meta, **changes}.items() if v is not None}
    (folder / "set.json").write_text(json.dumps(meta))


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    """Both versions are given."""
    make().save(Folder(str(tmp_path)))
    edit(tmp_path, version=2)

    assert refusal(tmp_path) == (
        f"the distilled set in {tmp_path} has format version 2, this rayddl reads up to 1. Use a newer "
        "rayddl."
    )


def test_another_kind_of_document_is_refused(tmp_path: Path) -> None:
    """A ``set.json`` of another program is not taken for a set, nor is a broken one."""
    make().save(Folder(str(tmp_path)))
    edit(tmp_path, format="pizza")
    assert refusal(tmp_path) == (
        f"{tmp_path}/set.json does not describe a distilled set ('rayddl distilled set')."
    )

    (tmp_path / "set.json").write_text("{")
    assert refusal(tmp_path).startswith(f"{tmp_path}/set.json is not JSON: ")


@pytest.mark.parametrize("key", ["classes", "space", "info"])
def test_a_description_without_its_parts_is_refused(tmp_path: Path, key: str) -> None:
    """The missing part is named."""
    make().save(Folder(str(tmp_path)))
    edit(tmp_path, **{key: None})

    assert refusal(tmp_path) == (
        f"{tmp_path}/set.json is malformed at {key}: it is missing; make the set again"
    )


def test_a_description_that_does_not_fit_the_tensors_is_refused(tmp_path: Path) -> None:
    """Fewer class names than labels would count wrong classes as right."""
    make().save(Folder(str(tmp_path)))
    edit(tmp_path, classes=["cat", "dog"])

    assert "6 images with labels outside 0 ... 1" in refusal(tmp_path)


def test_an_altered_pixel_space_is_refused(tmp_path: Path) -> None:
    """The fingerprint in the description must be that of the numbers."""
    make().save(Folder(str(tmp_path)))
    meta = json.loads((tmp_path / "set.json").read_text())
    edit(tmp_path, space={**meta["space"], "fingerprint": "0" * 64})

    text = refusal(tmp_path)

    assert text.startswith(f"the distilled set in {tmp_path}: the numbers of the pixel space 'normalise'")
    assert text.endswith(f"stored is {'0' * 64}. Make it again.")


def test_parts_that_do_not_fit_are_not_saved(tmp_path: Path) -> None:
    """Nothing is written, and an earlier set stays, when images, labels or information are wrong."""
    good = make()
    good.save(Folder(str(tmp_path)))

    def bad(images: torch.Tensor, labels: torch.Tensor, info: Mapping[str, Any] = INFO) -> DistilledSet:
        return DistilledSet(images, labels, 0.1, CLASSES, good.space, info)

    for broken, said in [
        (bad(good.images[:, :1], good.labels), "expected float32 or uint8 [N, 3, 6, 5]"),
        (bad(good.images.double(), good.labels), "images are torch.float64"),
        (
            bad(good.images, good.labels[:5]),
            "labels are torch.int64 (5,), expected int64 [6] or float32 [6, 3]",
        ),
        (bad(good.images, good.labels + 1), "6 images with labels outside 0 ... 2"),
        (bad(good.images, good.labels, {"x": float("nan")}), "Out of range float values"),
    ]:
        with pytest.raises(ValueError) as caught:  # noqa: PT011 - the text is checked below
            broken.save(Folder(str(tmp_path)))
        assert said in str(caught.value)

    assert torch.equal(DistilledSet.load(Folder(str(tmp_path))).images, good.images)


def test_a_set_of_pixels_is_kept_as_bytes_and_shown_in_model_space(tmp_path: Path) -> None:
    """uint8 images come back bit for bit; networks see them encoded, a person as they are."""
    good = make()
    pixels = good.pixels()
    kept = DistilledSet(pixels, good.labels, 0.1, CLASSES, good.space, INFO)
    kept.save(Folder(str(tmp_path)))
    loaded = DistilledSet.load(Folder(str(tmp_path)))
    assert loaded.stored.dtype == torch.uint8
    assert torch.equal(loaded.pixels(), pixels)
    assert torch.equal(loaded.images, good.space.encode(pixels))


@pytest.mark.parametrize("rate", [torch.tensor(1j), torch.tensor([0.1, 0.2]), torch.tensor([])])
def test_a_learning_rate_that_is_no_number_is_refused(tmp_path: Path, rate: torch.Tensor) -> None:
    """A complex number, several and none: in a set whose hash is right."""
    folder = Folder(str(tmp_path))
    make().save(folder)
    data = safetensors.save({**safetensors.load(folder.read("set.safetensors")), "lr_student": rate})
    folder.write("set.safetensors", data)
    meta = folder.read_json("set.json")
    folder.write_json("set.json", {**meta, "files": {"set.safetensors": sealed.entry(data)}})
    with raises("set-inconsistent"):
        DistilledSet.load(folder)
