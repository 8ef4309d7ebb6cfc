"""Networks on patches amid zeros: the same answers for less arithmetic."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models

from rayddl.methods.patches import sparse_padding
from rayddl.methods.patches.score import Scorer, padded
from rayddl.methods.patches.sparse_padding import Windowed, windowed


def _alive(net: nn.Module) -> nn.Module:
    """The network in float64 with batch norms that are not the identity."""
    draw = torch.Generator().manual_seed(3)
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for values, low in (
                (norm.running_mean, -1.0),
                (norm.running_var, 0.5),
                (norm.weight, 0.5),
                (norm.bias, -1.0),
            ):
                assert values is not None
                values.data.uniform_(low, 2.0, generator=draw)
    return net.double().eval()


def _patches(side: int, count: int = 2, channels: int = 3) -> Tensor:
    return torch.randn(
        count, channels, side, side, generator=torch.Generator().manual_seed(4), dtype=torch.float64
    )


def _error(net: nn.Module, side: int, size: int, channels: int = 3) -> float:
    """The largest difference to the network on padded images, relative to the largest answer."""
    patches = _patches(side, channels=channels)
    with torch.no_grad():
        expected = net(padded(patches, size))
    found = Windowed(net, size, torch.float64)(patches)
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("name", ["resnet18", "vgg11_bn", "mobilenet_v2", "densenet121", "convnext_tiny"])
def test_torchvisions_networks_answer_the_same(name: str) -> None:
    """Residual sums, pooling, concatenation, depthwise convolution, permuted axes."""
    torch.manual_seed(0)
    net = _alive(getattr(models, name)(weights=None, num_classes=7))
    assert _error(net, 32, 96) < 1e-12


class Residual(nn.Module):
    """Two branches with windows of different sizes, in every way of adding and rectifying."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.wide = nn.Conv2d(4, 4, 5, padding=2)
        self.narrow = nn.Conv2d(4, 4, 1)
        self.last = nn.Conv2d(4, 5, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        y = self.wide(x) + self.narrow(x)
        y += x
        y = torch.add(y.relu(), x)
        return self.last(y + 1.0).mean((2, 3))


def test_branches_meet() -> None:
    """A sum of windows of different sizes; a sum with a number is done whole."""
    torch.manual_seed(1)
    assert _error(Residual().double(), 6, 40) < 1e-12


@given(
    kernel=st.integers(1, 5),
    stride=st.integers(1, 3),
    padding=st.integers(0, 4),
    dilation=st.integers(1, 2),
    pool=st.sampled_from([None, (2, 2, 0), (3, 2, 1), (3, 1, 1)]),
    side=st.integers(1, 9),
    size=st.integers(12, 26),
)
@settings(max_examples=60, deadline=None)
def test_every_geometry(
    kernel: int,
    stride: int,
    padding: int,
    dilation: int,
    pool: tuple[int, int, int] | None,
    side: int,
    size: int,
) -> None:
    """Kernels, strides, paddings wider than the kernel, dilations, pools, odd sizes and places."""
    assume(dilation * (kernel - 1) + 1 <= size)
    torch.manual_seed(2)
    layers: list[nn.Module] = [
        nn.Conv2d(2, 3, kernel, stride, padding, dilation), nn.BatchNorm2d(3), nn.ReLU(inplace=True)
    ]  # fmt: skip
    layers += [nn.MaxPool2d(*pool)] if pool else []
    layers += [nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 2, 3, 1, 1), nn.AdaptiveAvgPool2d(1)]
    net = _alive(nn.Sequential(*layers))
    assume(min(net[: 4 if pool else 3](torch.zeros(1, 2, size, size, dtype=torch.float64)).shape[2:]) >= 1)
    patches = _patches(side, channels=2)
    expected = net(padded(patches, size))
    found = Windowed(net, size, torch.float64)(patches)
    assert torch.allclose(found, expected, rtol=1e-10, atol=1e-12)


def test_the_zeros_are_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first convolutions of a ResNet see windows of the sizes that counting by hand gives."""
    sides: list[int] = []

    def counted(module: nn.Conv2d, x: Tensor) -> Tensor:
        sides.append(x.shape[2])
        return F.conv2d(x, module.weight, module.bias, module.stride, 0, module.dilation, module.groups)

    monkeypatch.setattr(sparse_padding, "_convolved", counted)
    net = _alive(models.resnet18(weights=None))
    Windowed(net, 224, torch.float64)(_patches(112))
    # 59 outputs at stride 2 see 59*2-1+6 pixels; 31 pooled ones and 2 more rows a layer; then at stride 2.
    assert sides[:5] == [2 * 59 - 2 + 7, 35, 37, 39, 41]
    assert sides[5] == 2 * 21 - 2 + 3


@pytest.mark.parametrize("layer", [nn.Conv2d(1, 1, 3, 2, 1), nn.Conv2d(1, 1, 4, 3, 0), nn.MaxPool2d(3, 2, 1)])
def test_a_windows_outputs_are_those_that_change(layer: nn.Module) -> None:
    """Brute force: every output that a pixel of the window reaches, and none besides."""
    reach = sparse_padding._reach(layer)
    assert reach is not None
    for low in range(4, 12):
        images = torch.zeros(1, 1, 20, 20, requires_grad=True)
        # A maximum passes its gradient to one pixel only: rising numbers within the window make each of them win.
        filled = images + F.pad(torch.full((1, 1, 5, 5), 1.0), (low, 15 - low, low, 15 - low))
        with torch.no_grad():
            changed = (layer(filled) - layer(images)).abs()[0, 0].sum(0).nonzero().flatten()
            side = layer(images).shape[2]
        assert reach.outputs((low, low + 5), side) == (int(changed[0]), int(changed[-1]) + 1)


class Undecided(nn.Module):
    """Its code asks what the images are like."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3))


def test_a_network_that_cannot_be_traced_is_used_as_it_is() -> None:
    """Scores are those of padded images, computed whole."""
    assert windowed(Undecided(), 12, torch.float32) is None

    class Net(Undecided):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

    patches = torch.randint(0, 256, (3, 3, 6, 6), dtype=torch.uint8)
    labels = torch.tensor([0, 1, 2])
    zero, one = torch.zeros(3), torch.ones(3)
    found = Scorer(Net(), zero, one, size=12, pad=True, batch=3)(patches, labels)
    logits = Net()(padded(patches.float() / 255, 12))
    assert torch.allclose(found, -F.cross_entropy(logits, labels, reduction="none"))


def test_scores_keep_to_the_published_way() -> None:
    """Through the scorer, in float32, and in bfloat16 as near as that type is."""
    torch.manual_seed(0)
    net = _alive(models.resnet18(weights=None, num_classes=10)).float()
    patches = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8)
    labels, mean, std = torch.arange(6), torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.3])
    with torch.no_grad():
        x = (patches.float() / 255 - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)
        expected = -F.cross_entropy(net(padded(x, 64)), labels, reduction="none")
    single = Scorer(net, mean, std, size=64, pad=True, batch=6)(patches, labels)
    half = Scorer(net, mean, std, size=64, pad=True, batch=6, dtype=torch.bfloat16)(patches, labels)
    assert torch.allclose(single, expected, rtol=1e-4, atol=1e-5)
    assert torch.allclose(half, expected, rtol=0.1, atol=0.1)
