"""Derivatives by images of few channels, computed as products of each pixel: the same numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._inductor.decomposition import select_decomp_table
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from rayddl.methods.training.steps import make_steps
from rayddl.nets.build import flat, initial
from rayddl.nets.config import NetConfig
from rayddl.nets.narrow import by_images, spread
from rayddl.nets.pruning import BACKWARD, prune
from tests.unit.nets.test_nets_pruning import count, randn

aten = torch.ops.aten


def derivative(
    gradient: Tensor, images: Tensor, weight: Tensor, padding: list[int], stride: int = 1, **given: Any
) -> Any:
    asked, groups, dilation, sides = (given.get(name, default) for name, default in DEFAULTS.items())
    steps, apart, rest = ([each] * sides for each in (stride, dilation, 0))
    return aten.convolution_backward(
        gradient, images, weight, None, steps, padding, apart, False, rest, groups, asked
    )


DEFAULTS: dict[str, Any] = {"asked": [True, False, False], "groups": 1, "dilation": 1, "sides": 2}


def after_the_pass(function: Any, *inputs: Tensor) -> GraphModule:
    module = make_fx(function, select_decomp_table(), tracing_mode="fake")(*inputs)
    prune(module.graph)
    spread(module.graph)
    module.graph.lint()
    module.recompile()
    return module


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (5, 3)])
def test_products_are_summed_to_the_derivative(channels: int, kernel: tuple[int, int]) -> None:
    """In float64, also with kernels of unequal sides, and at the images' edges."""
    weight, images, gradient = randn(6, channels, *kernel), randn(2, channels, 5, 7), randn(2, 6, 5, 7)
    expected = derivative(gradient, images, weight, [side // 2 for side in kernel])[0]

    torch.testing.assert_close(by_images(gradient, weight), expected, rtol=1e-12, atol=1e-13)


def test_products_in_bf16_are_summed_in_float32() -> None:
    """Half as far again from float64 as the operator itself, at most; summed in bf16, they are twice as far."""
    weight, images, gradient = randn(64, 3, 3, 3), randn(2, 3, 8, 8), randn(2, 64, 8, 8)
    exact = derivative(gradient, images, weight, [1, 1])[0]
    low = [each.bfloat16() for each in (gradient, images, weight)]
    here, there = by_images(low[0], low[2]), derivative(*low, [1, 1])[0]

    assert here.dtype == torch.bfloat16
    errors = [(each.double() - exact).square().mean().sqrt() for each in (here, there)]
    assert errors[0] < 1.5 * errors[1]


X, W, G = randn(2, 3, 6, 6), randn(32, 3, 3, 3), randn(2, 32, 6, 6)


def test_the_operator_is_replaced() -> None:
    module = after_the_pass(lambda g, x, w: derivative(g, x, w, [1, 1])[0] + 1, G, X, W)

    assert count(module, BACKWARD) == 0
    torch.testing.assert_close(module(G, X, W), derivative(G, X, W, [1, 1])[0] + 1, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    ("images", "weight", "gradient", "given"),
    [
        (randn(2, 5, 6, 6), randn(64, 5, 3, 3), randn(2, 64, 6, 6), {"padding": [1, 1]}),
        (X, W, randn(2, 32, 4, 4), {"padding": [0, 0]}),
        (X, W, randn(2, 32, 3, 3), {"padding": [1, 1], "stride": 2}),
        (X, W, randn(2, 32, 4, 4), {"padding": [1, 1], "dilation": 2}),
        (X, randn(26, 3, 3, 3), randn(2, 26, 6, 6), {"padding": [1, 1]}),
        (randn(2, 1, 2, 6), randn(32, 1, 5, 5), randn(2, 32, 2, 6), {"padding": [2, 2]}),
        (randn(2, 3, 6), randn(32, 3, 3), randn(2, 32, 6), {"padding": [1], "sides": 1}),
        (randn(2, 6, 6, 6), W, G, {"padding": [1, 1], "groups": 2}),
        (X, W, G, {"padding": [1, 1], "asked": [True, True, False]}),
    ],
    ids=["channels", "padding", "stride", "dilation", "products", "small", "line", "groups", "weight"],
)
def test_others_stay_as_they_are(images: Tensor, weight: Tensor, gradient: Tensor, given: Any) -> None:
    def function(g: Tensor, x: Tensor, w: Tensor) -> list[Tensor]:
        return [each for each in derivative(g, x, w, **given) if each is not None]

    module = after_the_pass(function, gradient, images, weight)

    assert count(module, BACKWARD) == 1
    torch.testing.assert_close(
        module(gradient, images, weight), function(gradient, images, weight), rtol=0, atol=0
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_the_tangent_of_a_gradient_is_the_same(channels: int) -> None:
    """Its derivatives by the images are two such operators in the first layer."""
    net, shape = NetConfig(depth=2, width=32), (channels, 8, 8)
    steps = make_steps(flat(net, shape, 5, precision="fp32"), compile_=False)
    theta = initial(net, shape, 5, seed=1).double()
    inputs = [theta, randn(2, *shape), randn(2, 5).softmax(1), torch.sin(torch.arange(len(theta)).double())]
    module = after_the_pass(steps.tangent, *inputs)
    left = [
        node.args[2].meta["val"].shape[1]
        for node in module.graph.nodes
        if node.target == BACKWARD and node.args[-1][0]
    ]

    assert channels not in left
    for had, has in zip(steps.tangent(*inputs), module(*inputs), strict=True):
        torch.testing.assert_close(has, had, rtol=1e-11, atol=1e-13)
