"""Batch norm of channels-last tensors: torch's own, with its derivatives and running statistics."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from rayddl.nets.build import build
from rayddl.nets.config import NetConfig
from rayddl.nets.layers import BatchNorm
from rayddl.stages.revisions import BATCH_NORM
from rayddl.stages.teacher.settings import TeacherConfig


def pair(channels: int, dtype: torch.dtype = torch.float64) -> tuple[BatchNorm, nn.BatchNorm2d]:
    draws = torch.Generator().manual_seed(1)
    ours, torchs = BatchNorm(channels, dtype=dtype), nn.BatchNorm2d(channels, dtype=dtype)
    for module in (ours, torchs):
        draws.manual_seed(1)
        for tensor in (*module.parameters(), module.running_mean, module.running_var):
            assert tensor is not None
            tensor.data.copy_(torch.rand(channels, generator=draws) + 0.5)
    return ours, torchs


def nchw(x: Tensor) -> Tensor:
    return x.reshape(x.shape[0], -1, x.shape[-1]).permute(0, 2, 1)[..., None]


def formula(module: nn.BatchNorm2d, x: Tensor) -> Tensor:
    rows = x.reshape(-1, x.shape[-1])
    normed = (rows - rows.mean(0)) / (rows.var(0, correction=0) + module.eps).sqrt()
    return (normed * module.weight + module.bias).reshape(x.shape)


@pytest.mark.parametrize("shape", [(6, 4, 4, 3), (3, 2, 2, 2, 2, 5), (2, 1, 1, 4), (1, 3, 1, 2)])
def test_training_equals_torchs_and_derivatives_those_of_the_formula(shape: tuple[int, ...]) -> None:
    """Outputs and running statistics after two batches, and first and second derivatives."""
    ours, torchs = pair(shape[-1])
    draws = torch.Generator().manual_seed(2)
    for _ in range(2):
        x = (5 + 3 * torch.randn(shape, generator=draws, dtype=torch.float64)).requires_grad_()
        weights = torch.randn(shape, generator=draws, dtype=torch.float64)
        torch.testing.assert_close(nchw(ours(x)), torchs(nchw(x)), rtol=1e-9, atol=1e-9)
        for actual, expected in zip(ours.buffers(), torchs.buffers(), strict=True):
            torch.testing.assert_close(actual, expected)
    found = []
    for out, module in ((ours(x), ours), (formula(torchs, x), torchs)):
        value = (out.sin() * weights).sum()
        first = torch.autograd.grad(value, (x, module.weight, module.bias), create_graph=True)
        second = torch.autograd.grad((first[0] * weights.cos()).sum(), (x, module.weight))
        found.append([*first, *second])
    for actual, expected in zip(*found, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def test_testing_equals_torchs_bit_for_bit() -> None:
    ours, torchs = (module.eval() for module in pair(3, torch.float32))
    x = torch.randn(4, 5, 5, 3)
    assert torch.equal(ours(x), torchs(x.reshape(-1, 3)[..., None, None]).reshape(x.shape))


def test_a_large_mean_costs_no_digits() -> None:
    """Of values that are far from zero, relative to their spread, as torch's two passes have them."""
    ours, torchs = pair(2, torch.float32)
    x = 1000 + torch.randn(8, 6, 6, 2, generator=torch.Generator().manual_seed(3))
    expected = torchs.double()(nchw(x.double())).squeeze(-1).permute(0, 2, 1).reshape(x.shape)
    torch.testing.assert_close(ours(x).double(), expected, rtol=1e-3, atol=1e-3)


def test_constant_channels_stay_finite() -> None:
    ours, _ = pair(2)
    out = ours(torch.full((3, 2, 2, 2), 0.1, dtype=torch.float64))
    torch.testing.assert_close(out, ours.bias.expand_as(out))


def test_one_value_has_no_variance() -> None:
    with pytest.raises(ValueError, match="more than one value"):
        pair(2)[0](torch.zeros(1, 1, 1, 2, dtype=torch.float64))


@pytest.mark.parametrize("name", ["convnet", "alexnet", "vgg11"])
def test_a_bias_before_batch_norm_has_gradient_zero_in_training(name: str) -> None:
    """And in testing, where the running mean is a constant, its own; weights have the gradient without a bias."""
    net = build(NetConfig.model_validate({"name": name, "norm": "batch"}), (3, 32, 32), 4, seed=0).double()
    convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    x, y = torch.randn(6, 3, 32, 32, dtype=torch.float64), torch.arange(6) % 4
    nn.functional.cross_entropy(net(x), y).backward()
    for module in convolutions:
        assert module.bias is not None
        assert module.bias.grad is not None
        assert not module.bias.grad.any()
        assert module.weight.grad is not None
        assert module.weight.grad.any()
    net.zero_grad()
    nn.functional.cross_entropy(net.eval()(x), y).backward()
    assert all(m.bias is not None and m.bias.grad is not None and m.bias.grad.any() for m in convolutions)


def test_networks_with_rayddls_batch_norm_have_a_revision() -> None:
    from rayddl.data.config import SourceConfig

    source = SourceConfig(name="digits")

    def revised(**net: str) -> bool:
        return BATCH_NORM in TeacherConfig(kind="teacher", net=NetConfig.model_validate(net)).revisions(
            source
        )

    assert revised(name="convnet", norm="batch")
    assert revised(name="resnet18", norm="batch")
    assert not revised(name="convnet", norm="instance")
    assert not revised(name="tv_resnet18")
