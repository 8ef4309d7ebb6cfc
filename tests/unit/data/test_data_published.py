"""The pixel space of the published code: its constants, and what refuses them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torchvision.transforms import Compose, Normalize, ToTensor

from rayddl.data.config import PUBLISHED, SourceConfig
from rayddl.data.formats import importing
from rayddl.data.pixels import space
from rayddl.pipeline import plan as plans
from rayddl.pipeline.definition import load as definition
from rayddl.storage import Folder
from tests.raising import raises


def pixels(channels: int = 3) -> torch.Tensor:
    return torch.randint(256, (6, channels, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        ("cifar10", (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
        ("cifar100", (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
        ("tinyimagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ],
)
def test_images_are_those_of_torchvisions_transforms(
    name: str, mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    """ToTensor and Normalize with the numbers in the published ``get_dataset``; back to the same bytes."""
    config = SourceConfig(name=name, root=".", space="published")
    fitted = space.fit(config.space, pixels(), config.scaling)
    shown = Compose([ToTensor(), Normalize(mean, std)])
    expected = torch.stack([shown(image.permute(1, 2, 0).numpy()) for image in pixels()])

    torch.testing.assert_close(fitted.encode(pixels()), expected)
    assert torch.equal((fitted.decode(fitted.encode(pixels())) * 255).round().to(torch.uint8), pixels())


def test_constants_can_be_given_for_other_sources() -> None:
    """A Parquet copy of CIFAR-10 gets the same space as the source itself."""
    mean, std = PUBLISHED["cifar10"]
    given = SourceConfig(name="parquet", root=".", space="published", mean=mean, std=std)
    known = SourceConfig(name="cifar10", root=".", space="published")

    spaces = [space.fit(c.space, pixels(), c.scaling) for c in (given, known)]
    assert spaces[0].fingerprint == spaces[1].fingerprint
    assert spaces[0].fingerprint != space.fit("normalise", pixels()).fingerprint


@pytest.mark.parametrize(
    "settings",
    [
        {"name": "digits", "space": "published"},
        {"name": "cifar10", "root": ".", "mean": (0.5,) * 3, "std": (0.2,) * 3},
        {"name": "cifar10", "root": ".", "space": "published", "mean": (0.5,) * 3},
        {"name": "cifar10", "root": ".", "space": "published", "mean": (0.5,) * 3, "std": (0.2, 0.2, 0.0)},
    ],
)
def test_settings_without_a_scaling_are_refused(settings: dict[str, Any]) -> None:
    """No constants known, constants without use, half of them, and a deviation of zero."""
    with pytest.raises(ValueError, match=r"published|mean and std|greater than 0"):
        SourceConfig(**settings)


def test_grey_images_of_a_colour_scaling_are_refused() -> None:
    """The message names both numbers of channels."""
    config = SourceConfig(name="cifar10", root=".", space="published")
    with raises("scaling-of-other-channels"):
        space.fit(config.space, pixels(1), config.scaling)


def test_constants_are_part_of_fingerprints(tmp_path: Any) -> None:
    """Other constants make another experts stage; a source without them keeps its fingerprint."""
    stages = {"experts": {"kind": "experts", "epochs": 2}}

    def fingerprint(**source: Any) -> str:
        loaded = definition.load(
            {"name": "x", "source": {"name": "cifar10", "root": str(tmp_path), **source}, "stages": stages}
        )
        return plans.make(loaded, str(tmp_path), lambda _: "images").stages[0].fingerprint

    given = [fingerprint(space="published", mean=(0.5,) * 3, std=(s,) * 3) for s in (0.2, 0.3)]
    assert len({*given, fingerprint(space="published"), fingerprint(), fingerprint(space="zca")}) == 5


def test_a_published_pair_is_imported_in_the_published_space(tmp_path: Any) -> None:
    """The tensors of the published code decode to the pixels that they were made from."""
    config = SourceConfig(name="cifar10", root=".", space="published")
    fitted = space.fit(config.space, pixels(), config.scaling)
    torch.save(fitted.encode(pixels()[:2]), tmp_path / "images_best.pt")
    torch.save(torch.arange(2), tmp_path / "labels_best.pt")
    home = importing.TargetSource(("a", "b"), (3, 8, 8), fitted)

    assert torch.equal(importing.bring(Folder(str(tmp_path)), "pt", home).pixels(), pixels()[:2])
