"""The small networks against the same networks written with torch's own layers, and how they are named."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torchvision import models

from rayddl.nets.build import BUILDERS, TORCHVISION, build, flat, initial
from rayddl.nets.config import NORMS, NetConfig
from rayddl.nets.cost import forward_flops, worth_compiling
from tests.raising import raises

NORM_LAYERS = {
    "instance": lambda width: nn.GroupNorm(width, width),
    "group": lambda width: nn.GroupNorm(4, width),
    "batch": nn.BatchNorm2d,
    "none": lambda _: nn.Identity(),
}
COUNTS = {
    "convnet": 320_010,
    "alexnet": 1_872_202,
    "vgg11": 9_231_114,
    "resnet18": 11_173_962,
    "lenet": 62_006,
    "mlp": 411_146,
}
"""Parameters of the literature's networks on CIFAR-10."""


def random(shape: tuple[int, ...], count: int = 2, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(count, *shape, dtype=dtype, generator=torch.Generator().manual_seed(0))


def alexnet(channels: int, rest: int, norm: str, padding: int = 2) -> nn.Sequential:
    def block(inputs: int, width: int, kernel: int, pad: int, pool: bool) -> list[nn.Module]:
        pooling = [nn.MaxPool2d(2)] if pool else []
        return [nn.Conv2d(inputs, width, kernel, padding=pad), NORM_LAYERS[norm](width), nn.ReLU(), *pooling]

    return nn.Sequential(
        *block(channels, 128, 5, padding, True),
        *block(128, 192, 5, 2, True),
        *block(192, 256, 3, 1, False),
        *block(256, 192, 3, 1, False),
        *block(192, 192, 3, 1, True),
        nn.Flatten(),
        nn.Linear(192 * rest, 5),
    )


def vgg11(channels: int, rest: int, norm: str, padding: int = 1) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"):
        if isinstance(width, str):
            layers.append(nn.MaxPool2d(2))
            continue
        layers += [nn.Conv2d(channels, width, 3, padding=padding), NORM_LAYERS[norm](width), nn.ReLU()]
        channels, padding = width, 1
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512 * rest, 5))


def lenet(channels: int, padding: int, rest: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, 6, 5, padding=padding), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(16 * rest, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 5),
    )  # fmt: skip


def resnet18(norm: str, small: bool, channels: int = 3) -> nn.Module:
    net = models.resnet18(num_classes=5, norm_layer=NORM_LAYERS[norm])
    if small:
        net.conv1, net.maxpool = nn.Conv2d(channels, 64, 3, padding=1, bias=False), nn.Identity()
    return net


CASES = [
    ({"name": "alexnet"}, (3, 32, 32), lambda: alexnet(3, 16, "none")),
    ({"name": "alexnet"}, (1, 28, 28), lambda: alexnet(1, 16, "none", padding=4)),
    ({"name": "alexnet", "norm": "instance"}, (1, 8, 8), lambda: alexnet(1, 1, "instance")),
    ({"name": "vgg11"}, (3, 32, 32), lambda: vgg11(3, 1, "instance")),
    ({"name": "vgg11", "norm": "batch"}, (1, 28, 28), lambda: vgg11(1, 1, "batch", padding=3)),
    ({"name": "vgg11", "norm": "group"}, (3, 36, 64), lambda: vgg11(3, 2, "group")),
    ({"name": "resnet18"}, (3, 20, 20), lambda: resnet18("instance", small=True)),
    ({"name": "resnet18", "norm": "batch"}, (1, 8, 8), lambda: resnet18("batch", small=True, channels=1)),
    ({"name": "resnet18", "norm": "batch"}, (3, 66, 70), lambda: resnet18("batch", small=False)),
    ({"name": "lenet"}, (3, 32, 32), lambda: lenet(3, 0, 25)),
    ({"name": "lenet"}, (1, 28, 28), lambda: lenet(1, 2, 25)),
    ({"name": "lenet"}, (1, 16, 20), lambda: lenet(1, 0, 2)),
    (
        {"name": "mlp", "depth": 2, "width": 7},
        (1, 8, 8),
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 7), nn.ReLU(), nn.Linear(7, 5)),
    ),
]


@pytest.mark.parametrize(("said", "shape", "reference"), CASES)
def test_equals_the_plain_network(said: dict[str, Any], shape: tuple[int, int, int], reference: Any) -> None:
    """Logits are those of the same network in torch's layers with the same parameters."""
    ours, theirs = build(NetConfig(**said), shape, 5, seed=3).double(), reference().double()
    named = dict(theirs.named_parameters())
    mine = list(ours.named_parameters())
    by_name = said["name"] == "resnet18"
    for (name, parameter), other in zip(mine, list(named.values()), strict=True):
        pair = named[name] if by_name else other
        assert parameter.shape == pair.shape, name
        pair.data.copy_(parameter.data)
    x = random(shape)

    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-9, atol=1e-10)


def test_resnet_takes_torchvisions_state() -> None:
    """A state dict of torchvision's ResNet-18, running statistics included, fits and gives its logits."""
    theirs = models.resnet18(num_classes=5).double()
    x = random((3, 66, 66))
    ours = build(NetConfig(name="resnet18", norm="batch"), (3, 66, 66), 5, seed=0).double()
    with torch.no_grad():
        theirs(x)
        ours.load_state_dict(theirs.state_dict())
        torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", COUNTS)
def test_sizes_are_the_literatures(name: str) -> None:
    """On CIFAR-10 each network has as many parameters as in published cross-architecture tables."""
    assert len(initial(NetConfig(name=name), (3, 32, 32), 10, seed=0)) == COUNTS[name]


@pytest.mark.parametrize("name", ["alexnet", "lenet", "mlp"])
def test_flat_equals_the_module(name: str) -> None:
    """A flat vector gives the logits of a module with those parameters."""
    config = NetConfig(name=name)
    x = random((1, 16, 16), dtype=torch.float32)
    net, theta = flat(config, (1, 16, 16), 4), initial(config, (1, 16, 16), 4, seed=1)

    assert torch.equal(net(theta, x), build(config, (1, 16, 16), 4, seed=1)(x))


def test_every_name_is_built_and_has_norms() -> None:
    """The names that a definition accepts are those that can be built."""
    assert {name for name in NORMS if not name.startswith(TORCHVISION)} == set(BUILDERS)


@pytest.mark.parametrize(
    ("said", "shape", "code"),
    [
        ("vgg11", (1, 8, 8), "images-too-small-for-vgg"),
        ("alexnet", (3, 7, 9), "images-too-small-for-alexnet"),
        ("lenet", (1, 15, 15), "images-too-small-for-lenet"),
        ("resnet18", (1, 8, 8), "images-too-small-for-resnet"),
        ("resnet18", (3, 65, 65), None),
    ],
)
def test_impossible_sizes_are_refused(said: str, shape: tuple[int, int, int], code: str | None) -> None:
    """A network that images are too small for names the smallest side that will do, and no larger one."""
    config = NetConfig.model_validate(said)
    if code is None:
        assert build(config, shape, 2, seed=0)(random(shape, dtype=torch.float32)).shape == (2, 2)
    else:
        with raises(code):
            build(config, shape, 2, seed=0)


def test_defaults_follow_the_name_and_the_convnets_stay() -> None:
    """A bare name gets the literature's norm; what is stored of a ConvNet is what always was."""
    assert NetConfig().model_dump_json() == '{"name":"convnet","depth":3,"width":128,"norm":"instance"}'
    assert NetConfig(depth=2).model_dump(exclude_defaults=True) == {"depth": 2}
    assert NetConfig(depth=2, norm="batch").label == "convnet-d2-batch"
    for name in NORMS:
        config = NetConfig.model_validate(name)
        assert config.norm == NORMS[name][0]
        assert config.label == name
        assert NetConfig.model_validate(config.model_dump(mode="json")) == config
        assert NetConfig.model_validate(config.model_dump(exclude_defaults=True)) == config
    assert NetConfig(name="vgg11", norm="batch").label == "vgg11-batch"
    assert NetConfig(name="mlp", depth=2, width=64).label == "mlp-d2-w64"


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"name": "lenet", "norm": "batch"}, "lenet cannot have norm 'batch'; it has 'none': leave norm out"),
        (
            {"name": "tv_resnet18", "norm": "instance"},
            "tv_resnet18 cannot have norm 'instance'; it has 'batch'",
        ),
        ({"name": "vgg11", "depth": 5}, "the depth of vgg11 is fixed: leave depth out"),
        ({"name": "resnet18", "width": 64}, r"the width of resnet18 is fixed.*belongs to convnet and mlp"),
        ({"name": "resnet"}, "did you mean 'resnet18'. expected one of: resnet18, "),
    ],
)
def test_settings_that_mean_nothing_are_refused(said: dict[str, Any], told: str) -> None:
    """A setting that the network does not have is an error that says what to do."""
    with pytest.raises(ValidationError, match=told):
        NetConfig.model_validate(said)


def test_only_the_convnet_is_compiled_unasked() -> None:
    """Networks that do not gain by it are left uncompiled, however long the work."""
    shape = (3, 32, 32)

    assert forward_flops(NetConfig(name="lenet"), shape, 10) > 0
    assert not worth_compiling(NetConfig(name="resnet18"), shape, 10, steps=10**6, batch=256)
    assert worth_compiling(NetConfig(), shape, 10, steps=10**6, batch=256)
