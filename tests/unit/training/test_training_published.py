"""Teachers and students against the published code's own: test images, initial weights, released files."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn
from torchvision import models
from torchvision.transforms import CenterCrop, Compose, PILToTensor, Resize

from rayddl.data.config import SourceConfig
from rayddl.methods.training.input_spec import InputSpec
from rayddl.methods.training.pretrained import fill, torchvision_weights
from rayddl.methods.training.soft import SoftProtocol
from rayddl.methods.training.teacher import outputs, predictions
from rayddl.nets.build import build
from rayddl.nets.config import NetConfig
from rayddl.stages.evaluate import worker as students
from rayddl.stages.evaluate.settings import EvaluateConfig
from rayddl.stages.revisions import BATCH_NORM, RESNET, ZOOMED
from rayddl.stages.settings import StageConfig
from rayddl.stages.teacher.settings import TeacherConfig
from tests.raising import raises

SMALL = NetConfig(depth=2, width=4, norm="batch")


def pictures(side: int, count: int = 2) -> torch.Tensor:
    draws = torch.Generator().manual_seed(side)
    rough = torch.rand(count, 3, 6, 6, generator=draws)
    return (nn.functional.interpolate(rough, side, mode="bicubic").clamp(0, 1) * 255).to(torch.uint8)


@pytest.mark.parametrize("side", [8, 28, 32, 64, 224])
def test_test_images_are_zoomed_as_published(side: int) -> None:
    """Resize(side // 7 * 8) and CenterCrop(side) of torchvision, up to a grey level; nothing at 8 and 32 pixels."""
    input_spec, images = InputSpec((3, side, side), (0.5,) * 3, (0.5,) * 3), pictures(side)
    published = Compose([Resize(side // 7 * 8, antialias=True), CenterCrop(side), PILToTensor()])
    expected = torch.stack([published(Image.fromarray(image.permute(1, 2, 0).numpy())) for image in images])

    shown = input_spec.zoomed(images)
    assert int((shown.int() - expected.int()).abs().max()) <= 1
    assert torch.equal(shown, images) == (side in (8, 32))


def test_networks_are_tested_on_zoomed_images_where_asked() -> None:
    """The function that tests teachers and students shows them the images of ``zoomed``, or as they are."""

    class Mean(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean((2, 3))

    input_spec, images = InputSpec((3, 64, 64), (0.0,) * 3, (1.0,) * 3), pictures(64)
    (found,) = outputs(Mean(), input_spec, images, torch.device("cpu"), zoom=True)
    (whole,) = outputs(Mean(), input_spec, images, torch.device("cpu"))
    torch.testing.assert_close(found, input_spec.zoomed(images).float().div(255).mean((2, 3)))
    torch.testing.assert_close(whole, images.float().div(255).mean((2, 3)))
    assert not torch.allclose(found, whole)


@pytest.mark.parametrize("zoom", [False, True])
def test_students_are_tested_as_their_protocol_says(zoom: bool) -> None:
    """Of an image with a white frame, which zooming cuts away, a network that sees brightness says "bright" or not."""

    class Bright(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.stack([0.01 - x.mean((1, 2, 3)), x.mean((1, 2, 3)) - 0.01], 1)

    images = torch.full((4, 3, 64, 64), 255, dtype=torch.uint8)
    images[:, :, 2:-2, 2:-2] = 0
    shared = SimpleNamespace(
        input_spec=InputSpec((3, 64, 64), (0.0,) * 3, (1.0,) * 3),
        source=SimpleNamespace(classes=("dark", "bright")),
    )
    protocol = SoftProtocol(batch=2, zoom=zoom)
    tested = students._tested  # a student's test alone takes no training
    score = tested(Bright(), shared, protocol, images, torch.zeros(4).long(), torch.device("cpu"))  # type: ignore[arg-type]
    assert score.accuracy == zoom
    shown = {"zoom": True} if zoom else {}
    found = predictions(Bright(), shared.input_spec, images, torch.device("cpu"), **shown)
    assert found.tolist() == [0 if zoom else 1] * 4


def test_images_are_zoomed_for_published_sources_alone() -> None:
    """And where a definition says so; which revises only those results."""

    def revised(source: str, **given: object) -> list[bool]:
        where = SourceConfig.model_validate({"name": source, "root": ".", "size": 64})
        teacher = TeacherConfig.model_validate({"kind": "teacher", **given})
        students = EvaluateConfig.model_validate({"kind": "evaluate", "set": "s", "observer": "t", **given})
        return [ZOOMED in kind.revisions(where) for kind in (teacher, students)]

    assert [revised(name) for name in ("parquet", "imagefolder")] == [[False, False]] * 2
    assert [revised(name) for name in ("tinyimagenet", "imagenet")] == [[True, True]] * 2
    assert (revised("parquet", zoom=True), revised("imagenet", zoom=False)) == ([True] * 2, [False] * 2)


@pytest.mark.parametrize("side", [32, 224])
def test_a_resnet_with_batch_norm_starts_as_torchvisions(side: int) -> None:
    """The deviations of all convolutions; RDED's replaced first layer for small images keeps torch's default."""
    ours = build(NetConfig(name="resnet18", norm="batch"), (3, side, side), 10, seed=0).state_dict()
    theirs = models.resnet18(num_classes=10)
    if side == 32:
        theirs.conv1 = nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False)
    for name, value in theirs.state_dict().items():
        if value.ndim == 4:
            assert ours[name].shape == value.shape
            assert float(ours[name].std()) == pytest.approx(float(value.std()), rel=0.06), name
    other = build(NetConfig(name="resnet18"), (3, side, side), 10, seed=0).state_dict()[
        "layer1.0.conv1.weight"
    ]
    assert float(other.std()) == pytest.approx((1 / 3 / other[0].numel()) ** 0.5, rel=0.06)


class Released(nn.Module):
    """RDED's ConvNet: the layers grouped by type."""

    def __init__(self) -> None:
        super().__init__()
        convs = nn.ModuleList([nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)])
        self.layers = nn.ModuleDict(
            {"conv": convs, "norm": nn.ModuleList(nn.BatchNorm2d(4) for _ in range(2))}
        )
        self.classifier = nn.Linear(4 * 2 * 2, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for conv, norm in zip(self.layers["conv"], self.layers["norm"], strict=True):  # type: ignore[arg-type]
            x = nn.functional.avg_pool2d(torch.relu(norm(conv(x))), 2)
        return self.classifier(x.flatten(1))  # type: ignore[no-any-return]


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_released_convnets_are_loaded_by_name(ending: str) -> None:
    """Their order of tensors is not ours; the logits are equal all the same, for files without order, too."""
    torch.manual_seed(0)
    released = Released()
    images = torch.rand(6, 3, 8, 8)
    released.train()(images)  # other running statistics than at the start
    module = build(SMALL, (3, 8, 8), 5, seed=9)
    fill(module, released.state_dict(), SMALL, f"cifar10_conv2{ending}")

    torch.testing.assert_close(module.eval()(images), released.eval()(images), rtol=1e-4, atol=1e-5)


def test_weights_are_chosen_by_torchvisions_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first release's file is looked for, not that of the best weights; unknown names list the known."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    net = NetConfig(name="tv_resnet50")
    for name, file in (("IMAGENET1K_V1", "resnet50-0676ba61.pth"), ("DEFAULT", "resnet50-11ad3fa6.pth")):
        with raises("weights-not-in-cache") as caught:
            torchvision_weights(net, download=False, name=name)
        assert file in str(caught.value)
    with raises("weights-name-unknown"):
        torchvision_weights(NetConfig(name="tv_vit_b_16"), download=False, name="IMAGENET1K_V2")
    config = TeacherConfig(kind="teacher", net=net, weights="IMAGENET1K_V1", download=True)
    assert config.classes is None


def test_only_changed_results_have_other_fingerprints() -> None:
    """Zooming concerns sides that it changes, torchvision's start only ResNet-18 with batch norm."""

    def found(config: StageConfig, name: str, **source: Any) -> set[str]:
        return set(config.revisions(SourceConfig(name=name, **source))) - {BATCH_NORM}

    teacher = TeacherConfig(kind="teacher", net=NetConfig(norm="batch"))
    assert not found(teacher, "cifar10", root=".")
    assert not found(teacher, "digits")
    assert found(teacher, "tinyimagenet", root=".") == {ZOOMED}
    assert not found(teacher, "imagenet", root=".", size=32)
    resnet = TeacherConfig(kind="teacher", net=NetConfig(name="resnet18", norm="batch"))
    assert found(resnet, "cifar10", root=".") == {RESNET}
    hard = EvaluateConfig(kind="evaluate", set="s", nets=(NetConfig(name="resnet18"),))
    assert not found(hard, "tinyimagenet", root=".")
    batch = EvaluateConfig(kind="evaluate", set="s", nets=(NetConfig(name="resnet18", norm="batch"),))
    assert found(batch, "cifar10", root=".") == {RESNET}
