"""The observer: its folder, its classes by name, and how it scales and cuts what it is shown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import center_crop, resize

from rayddl.errors import ArtifactError
from rayddl.methods.training.input_spec import InputSpec, moments
from rayddl.methods.training.observer import Observer, frozen, is_observer, size_of
from rayddl.nets.build import build
from rayddl.nets.config import NetConfig
from rayddl.storage import Folder
from tests.raising import raises

NET, SHAPE, CLASSES = NetConfig(depth=1, width=4, norm="batch"), (3, 8, 8), ("cat", "dog", "owl", "yak")


def observer(classes: tuple[str, ...] = CLASSES) -> Observer:
    module = build(NET, SHAPE, len(classes), seed=3)
    module(torch.randn(16, *SHAPE, generator=torch.Generator().manual_seed(0)))  # running statistics
    return Observer(frozen(module), NET, classes, SHAPE, (0.5, 0.4, 0.3), (0.2, 0.2, 0.1), 0.75)


def images(count: int = 6) -> Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(1))


def test_a_folder_gives_back_the_same_observer(tmp_path: Path) -> None:
    """Network, classes, frame and accuracy come back; outputs are equal to the last bit."""
    made, folder = observer(), Folder(str(tmp_path))
    made.save(folder)
    read = Observer.load(folder)

    assert (read.net, read.classes, read.input_spec, read.accuracy) == (NET, CLASSES, made.input_spec, 0.75)
    assert torch.equal(read.module(images()), made.module(images()))
    assert not read.module.training
    assert not any(p.requires_grad for p in read.module.parameters())
    assert is_observer(folder)
    assert size_of(folder) == sum(f.stat().st_size for f in tmp_path.iterdir())


def test_outputs_are_matched_by_name() -> None:
    """Another order of the classes permutes the outputs, and keeps the accuracy."""
    made, order = observer(), ("owl", "yak", "cat", "dog")
    pruned = made.pruned(order)

    assert torch.equal(pruned.module(images()), made.module(images())[:, [2, 3, 0, 1]])
    assert (pruned.classes, pruned.accuracy) == (order, 0.75)
    assert made.pruned(CLASSES) is made


def test_a_pruned_observer_is_pruned_again_and_kept(tmp_path: Path) -> None:
    """Classes left out are gone, the accuracy with them; a second choice and a folder change nothing."""
    made = observer()
    pruned = made.pruned(("yak", "dog", "cat")).pruned(("cat", "yak"))
    pruned.save(Folder(str(tmp_path)))
    read = Observer.load(Folder(str(tmp_path)))

    assert torch.equal(read.module(images()), made.module(images())[:, [0, 3]])
    assert (read.classes, read.accuracy) == (("cat", "yak"), None)


def test_a_class_that_the_observer_does_not_know_is_named() -> None:
    """The message names what is missing, what comes near it, and what to do."""
    with pytest.raises(ArtifactError) as caught:
        observer().pruned(("cat", "dogs", "emu"))
    assert str(caught.value) == (
        "the observer has no output for 2 of 3 classes: 'dogs', 'emu'. It knows 4 classes, such as 'dog'. Classes "
        "are matched by name: take a teacher of this source, or say with the teacher's classes: what its outputs "
        "stand for."
    )


def test_two_outputs_of_one_name_cannot_be_told() -> None:
    """A name that two outputs have is refused where it is asked for, and only there."""
    made = observer(("crane", "dog", "crane", "yak"))
    with raises("observer-outputs-ambiguous"):
        made.pruned(("crane", "dog"))
    assert made.pruned(("yak", "dog")).classes == ("yak", "dog")


def test_an_altered_observer_is_refused(tmp_path: Path) -> None:
    """A changed byte, a missing or foreign file, a newer format: each is named with its place."""
    folder = Folder(str(tmp_path))
    with raises("document-missing"):
        Observer.load(folder)
    observer().save(folder)
    data, meta = folder.read("observer.safetensors"), folder.read_json("observer.json")

    folder.write("observer.safetensors", data[:-1] + bytes([data[-1] ^ 1]))
    with raises("sealed-file-altered"):
        Observer.load(folder)
    folder.delete("observer.safetensors")
    with raises("sealed-file-missing"):
        Observer.load(folder)
    folder.write("observer.safetensors", data)
    folder.write_json("observer.json", {**meta, "version": 99})
    with raises("document-too-new"):
        Observer.load(folder)
    folder.write_json("observer.json", {**meta, "format": "else"})
    with raises("document-of-another-kind"):
        Observer.load(folder)
    folder.write("observer.json", json.dumps(meta).encode()[:-3])
    with raises("document-not-json"):
        Observer.load(folder)
    folder.write_json("observer.json", {**meta, "outputs": {"total": 9, "kept": [0, 1, 2, 3]}})
    with raises("observer-inconsistent"):
        Observer.load(folder)


def test_normalised_pixels_are_those_of_the_formula() -> None:
    """Bytes and floats in 0..1 alike: less the mean, over the deviation."""
    bytes_ = torch.randint(256, (4, 3, 8, 8), dtype=torch.uint8)
    input_spec = observer().input_spec
    expected = (bytes_.double() / 255 - torch.tensor(input_spec.mean).double().view(-1, 1, 1)) / torch.tensor(
        input_spec.std
    ).double().view(-1, 1, 1)
    torch.testing.assert_close(input_spec.normalised(bytes_).double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        input_spec.normalised(bytes_.float() / 255).double(), expected, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    ("input_spec", "sides", "large"),
    [
        # No square: the shorter side to 8/7 of the frame's shorter one, and the longer one covered.
        ((28, 14), (40, 40), (28, 28)),
        ((14, 28), (40, 40), (28, 28)),
        ((14, 14), (40, 20), (32, 16)),
        # Below 7 pixels there is no eighth to cut off.
        ((4, 4), (8, 8), (4, 4)),
        ((6, 6), (9, 12), (6, 8)),
    ],
)
def test_images_cover_frames_of_any_shape(
    input_spec: tuple[int, int], sides: tuple[int, int], large: tuple[int, int]
) -> None:
    """Scaled to ``large``, and the middle cut out."""
    source = torch.randint(256, (300, 3, *sides), dtype=torch.uint8)
    fitted = InputSpec((3, *input_spec), (0.5,) * 3, (0.2,) * 3).fitted(source)
    scaled = resize(source.float(), list(large), InterpolationMode.BILINEAR, antialias=True)

    assert fitted.shape == (300, 3, *input_spec)
    torch.testing.assert_close(fitted.float(), center_crop(scaled, list(input_spec)), rtol=0, atol=0.501)


@pytest.mark.parametrize(("height", "width"), [(40, 50), (64, 32), (20, 20)])
def test_other_sizes_are_shown_as_published(height: int, width: int) -> None:
    """The shorter side to 8/7, the middle cut out: torchvision's Resize and CenterCrop, image by image."""
    source = torch.randint(256, (3, 3, height, width), dtype=torch.uint8)
    fitted = InputSpec((3, 28, 28), (0.5,) * 3, (0.2,) * 3).fitted(source)
    large = [resize(i.float(), 32, InterpolationMode.BILINEAR, antialias=True) for i in source]
    expected = torch.stack([center_crop(i, 28) for i in large])

    assert fitted.dtype == torch.uint8
    # Half a shade of rounding.
    torch.testing.assert_close(fitted.float(), expected, rtol=0, atol=0.501)


def test_images_of_the_right_size_are_left_alone_and_grey_ones_repeated() -> None:
    """No copy where nothing is to be done; grey becomes colour; colour is refused by an observer of grey."""
    grey = torch.randint(256, (2, 1, 8, 8), dtype=torch.uint8)
    assert InputSpec((1, 8, 8), (0.5,), (0.2,)).fitted(grey) is grey
    assert torch.equal(InputSpec((3, 8, 8), (0.5,) * 3, (0.2,) * 3).fitted(grey), grey.expand(-1, 3, -1, -1))
    with raises("observer-of-other-channels"):
        InputSpec((1, 8, 8), (0.5,), (0.2,)).fitted(grey.expand(-1, 3, -1, -1))


def test_moments_are_those_of_the_pixels() -> None:
    """Mean and deviation per channel, of pixels in 0..1."""
    source = torch.randint(256, (50, 2, 4, 4), dtype=torch.uint8)
    mean, std = moments(source)
    unit = source.double() / 255
    torch.testing.assert_close(torch.tensor(mean).double(), unit.mean((0, 2, 3)), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        torch.tensor(std).double(), unit.std((0, 2, 3), correction=0), rtol=1e-3, atol=0
    )


@pytest.mark.parametrize(
    "changed",
    [
        {"net": {"name": "convnet", "depth": 1, "width": 10**9, "norm": "batch"}},
        {"net": {"name": "mlp", "depth": 7, "width": 10**6}},
        {"net": {"name": "vgg11"}, "shape": [3, 2**20, 2**20]},
        {"outputs": {"total": 10**12, "kept": [0, 1, 2, 3]}},
        {"shape": [3, 10**18, 10**18]},
    ],
)
def test_a_network_is_compared_with_the_tensors_before_it_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, object]
) -> None:
    """A document of a few bytes describes a network of terabytes."""
    folder = Folder(str(tmp_path))
    observer().save(folder)
    folder.write_json("observer.json", {**folder.read_json("observer.json"), **changed})
    monkeypatch.setattr("rayddl.methods.training.observer._built", lambda *where: pytest.fail("it was built"))
    with raises("observer-inconsistent"):
        Observer.load(folder)


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        ({"mean": [0.1]}, ""),
        ({"std": [0.2, 0.2, 0]}, "std.2"),
        ({"shape": [3, 0, 8]}, "shape.1"),
        ({"outputs": {"total": 4, "kept": [0, 1, 2, 4]}}, ""),
        ({"outputs": {"total": 4, "kept": [0, 1]}}, ""),
        ({"accuracy": "much"}, "accuracy"),
    ],
)
def test_a_document_that_cannot_be_an_observers_is_refused(
    tmp_path: Path, changed: dict[str, object], key: str
) -> None:
    """The key is named where one is wrong by itself."""
    folder = Folder(str(tmp_path))
    observer().save(folder)
    folder.write_json("observer.json", {**folder.read_json("observer.json"), **changed})
    with raises("document-malformed") as caught:
        Observer.load(folder)
    assert not key or f" at {key}: " in str(caught.value)
