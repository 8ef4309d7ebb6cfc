"""Convolutions that change nothing: they are gone from the graph, and its results are the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from rayddl.nets.pruning import BACKWARD, CONVOLUTION, prune

aten = torch.ops.aten


def traced(function: Callable[..., Any], inputs: Sequence[Tensor]) -> GraphModule:
    """The graph that a compiler's passes see."""
    return make_fx(function, select_decomp_table(), tracing_mode="fake")(*inputs)


def pruned(function: Callable[..., Any], inputs: Sequence[Tensor]) -> GraphModule:
    """The same after the pass."""
    module = traced(function, inputs)
    prune(module.graph)
    module.graph.lint()
    module.recompile()
    return module


def count(module: GraphModule, operator: Any) -> int:
    return sum(node.target == operator for node in module.graph.nodes)


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_the_tangent_of_a_gradient_needs_no_more_than_its_formula(depth: int) -> None:
    """A ConvNet of depth D: D convolutions for the activations, 2 D - 1 for their tangents; backwards each layer
    needs the tangents of both derivatives, two products each, and the derivative itself where a layer is below.
    """
    net, shape = NetConfig(depth=depth, width=4), (3, 16, 16)
    steps = make_steps(flat(net, shape, 5, precision="fp32"), compile_=False)
    theta = initial(net, shape, 5, seed=1).double()
    inputs = [theta, randn(2, *shape), randn(2, 5).softmax(1), torch.sin(torch.arange(len(theta)).double())]
    before, after = traced(steps.tangent, inputs), pruned(steps.tangent, inputs)

    assert count(after, CONVOLUTION) == 3 * depth - 1 < count(before, CONVOLUTION)
    for node in after.graph.nodes:
        if node.target == BACKWARD:
            read = {reader.args[1] for reader in node.users}
            assert [k for k, asked in enumerate(node.args[-1]) if asked] == sorted(read)
    # By the images: two a layer, and one where a layer is below. By the weights: two, and one in the first layer.
    asked = sum(sum(node.args[-1]) for node in after.graph.nodes if node.target == BACKWARD)
    assert asked == 5 * depth - 2
    for had, has in zip(before(*inputs), after(*inputs), strict=True):
        torch.testing.assert_close(has, had, rtol=1e-11, atol=1e-13)


def test_zeros_are_not_convolved() -> None:
    """Zero images or zero weights, however they were reshaped, give zeros of the right shape and type."""

    def function(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        images = torch.zeros(2, 1, 6, 6, dtype=torch.float64).expand(2, 3, 6, 6).clone()
        weight = torch.zeros(3, 3, 4, 3, dtype=torch.float64).permute(2, 3, 0, 1)
        return (
            aten.convolution(images, w, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1) + 1,
            aten.convolution(x, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1),
            aten.convolution(x, w, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1),
        )

    inputs = [randn(2, 3, 6, 6), randn(4, 3, 3, 3)]
    after = pruned(function, inputs)
    assert count(after, CONVOLUTION) == 1
    for had, has in zip(function(*inputs), after(*inputs), strict=True):
        assert (had.shape, had.dtype) == (has.shape, has.dtype)
        assert torch.equal(had, has)


def test_a_bias_is_added_to_zero_too() -> None:
    """Zero images through a convolution with a bias are not zero: it stays."""

    def function(w: Tensor, b: Tensor) -> Tensor:
        images = torch.zeros(2, 3, 6, 6, dtype=torch.float64)
        found: Tensor = aten.convolution(images, w, b, [1, 1], [1, 1], [1, 1], False, [0, 0], 1)
        return found

    inputs = [randn(4, 3, 3, 3), randn(4)]
    after = pruned(function, inputs)
    assert count(after, CONVOLUTION) == 1
    assert torch.equal(after(*inputs), function(*inputs))


@pytest.mark.parametrize("zero", ["gradient", "images", "weight"])
@pytest.mark.parametrize("read", [(0,), (1,), (0, 1), (0, 1, 2)])
def test_what_is_read_of_a_derivative_is_computed(zero: str, read: tuple[int, ...]) -> None:
    """Each of the three results on its own, with any of the three factors zero."""

    def function(g: Tensor, x: Tensor, w: Tensor) -> list[Tensor]:
        g, x, w = (
            torch.zeros_like(t) if name == zero else t
            for name, t in (("gradient", g), ("images", x), ("weight", w))
        )
        found = aten.convolution_backward(
            g, x, w, [4], [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, True, True]
        )
        return [found[k] * 2 for k in read]

    inputs = [randn(2, 4, 6, 6), randn(2, 3, 6, 6), randn(4, 3, 3, 3)]
    after = pruned(function, inputs)
    for had, has in zip(function(*inputs), after(*inputs), strict=True):
        assert torch.equal(had, has)
    masks = [node.args[-1] for node in after.graph.nodes if node.target == BACKWARD]
    nothing = {"gradient": {0, 1}, "images": {1}, "weight": {0}}[zero]
    assert [k for mask in masks for k, asked in enumerate(mask) if asked] == sorted(set(read) - nothing)
