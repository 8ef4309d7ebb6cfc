"""Torchvision's networks under rayddl's names."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rayddl.nets import torchvision
from rayddl.nets.build import TORCHVISION, build, flat, initial
from rayddl.nets.config import NORMS, NetConfig
from tests.raising import raises

NAMES = [name.removeprefix(TORCHVISION) for name in NORMS if name.startswith(TORCHVISION)]
SMALL = NetConfig(name="tv_efficientnet_b0")
SHAPE = (3, 32, 32)


def images(count: int = 4) -> torch.Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", NAMES)
def test_every_network_is_built_for_its_classes(name: str) -> None:
    """Each takes colour images and gives as many logits as there are classes."""
    with torch.device("meta"):
        net = torchvision.make(name, (3, 64, 64), 7).eval()
        assert net(torch.zeros(2, 3, 64, 64)).shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "shape", "code"),
    [
        ("resnet18", (1, 64, 64), "not-colour-images"),
        ("swin_v2_t", (3, 28, 64), "images-too-small-for-torchvision"),
        (
            "vit_b_16",
            (3, 72, 72),
            "images-not-whole-patches",
        ),
        ("vit_b_16", (3, 64, 80), "images-not-whole-patches"),
    ],
)
def test_impossible_images_are_refused(name: str, shape: tuple[int, int, int], code: str) -> None:
    """What a network cannot take is said before it is built, with what to do about it."""
    with raises(code):
        torchvision.make(name, shape, 7)


def test_flat_networks_draw_nothing() -> None:
    """A flat network with dropout and stochastic depth gives one answer, in training and when tested."""
    net, theta = flat(SMALL, SHAPE, 3), initial(SMALL, SHAPE, 3, seed=1)
    state = torch.random.get_rng_state()
    first = net(theta, images())

    assert torch.equal(first, net(theta, images()))
    assert torch.equal(state, torch.random.get_rng_state())
    assert net.statistics is not None
    tested = net(torch.cat([theta, net.statistics.start_S]), images())
    module = build(SMALL, SHAPE, 3, seed=1).eval()
    torch.testing.assert_close(tested, module(images()), rtol=1e-5, atol=1e-6)
    assert any(isinstance(m, nn.Dropout) and m.training for m in build(SMALL, SHAPE, 3, seed=1).modules())


def test_bf16_computes_only_convolutions_in_bf16() -> None:
    """The parameters are the same, logits are float32 and near float32's, and float64 is not rounded."""
    exact = build(NetConfig(name="tv_resnet18"), SHAPE, 5, seed=0).eval()
    fast = build(NetConfig(name="tv_resnet18"), SHAPE, 5, seed=0, precision="bf16").eval()

    assert all(torch.equal(a, b) for a, b in zip(exact.parameters(), fast.parameters(), strict=True))
    assert list(exact.state_dict()) == list(fast.state_dict())
    got = fast(images())
    assert got.dtype == torch.float32
    assert not torch.equal(got, exact(images()))
    torch.testing.assert_close(got, exact(images()), rtol=0.05, atol=0.05)
    assert torch.equal(fast.double()(images().double()), exact.double()(images().double()))
