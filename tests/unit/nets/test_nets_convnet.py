"""The ConvNet against the same network written with torch's own layers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from rayddl.nets.build import build, flat, initial
from rayddl.nets.config import NetConfig
from tests.raising import raises

NORMS = {
    "instance": lambda width: nn.GroupNorm(width, width),
    "group": lambda width: nn.GroupNorm(4, width),
    "batch": nn.BatchNorm2d,
    "none": lambda _: nn.Identity(),
}


def plain(shape: tuple[int, int, int], classes: int, depth: int, width: int, norm: str) -> nn.Module:
    """The literature's network as a plain Sequential."""
    side = 32 if shape[1] == 28 else shape[1]
    layers: list[nn.Module] = []
    for d in range(depth):
        padding = 3 if d == 0 and shape[1] == 28 else 1
        layers += [nn.Conv2d(shape[0] if d == 0 else width, width, 3, padding=padding), NORMS[norm](width)]
        layers += [nn.ReLU(), nn.AvgPool2d(2)]
        side //= 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * side * side, classes))


def twins(shape: tuple[int, int, int], norm: str, depth: int = 3) -> tuple[nn.Module, nn.Module]:
    ours = build(NetConfig(depth=depth, width=8, norm=norm), shape, 5, seed=3).double()
    theirs = plain(shape, 5, depth, 8, norm).double()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert mine.shape == other.shape
        other.data.copy_(mine.data)
    return ours, theirs


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 20, 20), (1, 8, 8)])
def test_equals_the_plain_network(shape: tuple[int, int, int], norm: str) -> None:
    """Parameters have the published order and shapes, and the logits are the same."""
    ours, theirs = twins(shape, norm)
    x = torch.randn(4, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-10, atol=1e-12)


def test_gradient_equals_the_plain_networks() -> None:
    """The gradient is the same too; through a bias that the norm removes it is exactly zero."""
    ours, theirs = twins((3, 16, 16), "instance")
    x = torch.randn(4, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for net in (ours, theirs):
        net(x).square().sum().backward()

    pairs = list(zip(ours.named_parameters(), theirs.parameters(), strict=True))
    for (name, mine), other in pairs:
        got = torch.zeros_like(mine) if mine.grad is None else mine.grad
        torch.testing.assert_close(got, other.grad, rtol=1e-8, atol=1e-9, msg=name)
        if name.endswith("conv.bias"):
            assert mine.grad is None


def test_instance_norm_keeps_its_digits_on_flat_images() -> None:
    """A large constant plus faint noise is normalised as accurately as the noise alone."""
    net = build(NetConfig(depth=1, width=4), (1, 8, 8), 2, seed=0)
    norm = net.blocks[0].norm
    faint = torch.randn(1, 4, 2, 4, 2, 4, generator=torch.Generator().manual_seed(1)) * 0.1

    torch.testing.assert_close(norm(faint + 100.0), norm(faint), rtol=0, atol=2e-3)


def test_bf16_computes_only_products_in_bf16() -> None:
    """bf16 logits are float32 and close to float32's; float64 inputs are never rounded."""
    exact = build(NetConfig(depth=2, width=16), (3, 16, 16), 5, seed=0)
    fast = build(NetConfig(depth=2, width=16), (3, 16, 16), 5, seed=0, precision="bf16")
    x = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))

    assert fast(x).dtype == torch.float32
    assert not torch.equal(fast(x), exact(x))
    torch.testing.assert_close(fast(x), exact(x), rtol=0.05, atol=0.05)
    assert torch.equal(fast.double()(x.double()), exact.double()(x.double()))


def test_same_seed_same_start_and_no_global_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """A seed fixes the parameters, and the caller's random state, also that of GPUs, is left as it was."""
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    reseeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", reseeded.append)
    first = initial(NetConfig(depth=1, width=4), (1, 8, 8), 2, seed=5)
    actual = torch.rand(3)

    assert torch.equal(first, initial(NetConfig(depth=1, width=4), (1, 8, 8), 2, seed=5))
    assert not torch.equal(first, initial(NetConfig(depth=1, width=4), (1, 8, 8), 2, seed=6))
    assert torch.equal(expected, actual)
    assert reseeded == []


@pytest.mark.parametrize("norm", NORMS)
def test_flat_equals_the_module(norm: str) -> None:
    """A flat vector gives the logits that a module with those parameters gives in training."""
    config = NetConfig(depth=2, width=8, norm=norm)
    theta: Tensor = initial(config, (3, 8, 8), 4, seed=1)
    module = build(config, (3, 8, 8), 4, seed=1).train()
    net = flat(config, (3, 8, 8), 4)
    x = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))

    assert torch.equal(net(theta, x), functional_call(module, dict(module.named_parameters()), (x,)))
    assert sum(net.sizes) == len(theta)


def test_depth_beyond_the_side_is_refused() -> None:
    """A net deeper than the images can be halved names the largest depth."""
    with raises("images-too-small-for-depth"):
        build(NetConfig(depth=4), (1, 8, 8), 2, seed=0)
