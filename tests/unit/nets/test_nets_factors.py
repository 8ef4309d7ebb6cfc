"""Small tensors that are broadcast to large ones are stored once, and results stay the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._inductor.decomposition import select_decomp_table
from torch.func import functional_call
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from rayddl.methods.training.steps import make_steps
from rayddl.nets.build import flat, initial
from rayddl.nets.config import NetConfig
from rayddl.nets.factors import keep_factors
from rayddl.nets.layers import GroupNorm

aten = torch.ops.aten


def kept(function: Callable[..., Any], *inputs: Tensor) -> tuple[GraphModule, list[tuple[int, ...]]]:
    """The graph after the pass, and the shapes that it stores, in the order of the graph."""
    module = make_fx(function, select_decomp_table(), tracing_mode="fake")(*inputs)
    before = sum(node.target == aten.as_strided.default for node in module.graph.nodes)
    keep_factors(module.graph)
    module.graph.lint()
    module.recompile()
    found = [node for node in module.graph.nodes if node.target == aten.as_strided.default]
    return module, [tuple(node.meta["val"].shape) for node in found[before:]]


def test_scale_and_offset_of_a_norm_are_stored_once_per_channel() -> None:
    norm = GroupNorm(8, 8)
    inputs = torch.randn(4, 6, 6, 8), torch.rand(8), torch.randn(8)

    def pooled(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        out: Tensor = functional_call(norm, {"weight": weight, "bias": bias}, (x,))
        return torch.relu(out).mean((1, 2))

    module, shapes = kept(pooled, *inputs)
    # The first pixel is a view; what depends on it alone is computed where it is read.
    assert shapes == [(4, 1, 1, 8)] * 2
    assert torch.equal(module(*inputs), pooled(*inputs))


def test_what_is_not_much_smaller_or_not_computed_stays_as_it_is() -> None:
    x, row = torch.randn(15, 8), torch.randn(8)
    assert kept(lambda x, row: x * row.exp(), x, row)[1] == []
    assert kept(lambda x, row: x * row, torch.cat([x, x]), row)[1] == []
    assert kept(lambda x, row: x * row.sum().view(1), torch.cat([x, x]), row)[1] == []
    assert kept(lambda x, row: x * row.exp(), torch.cat([x, x]), row)[1] == [(8,)]
    assert kept(lambda x, row: x * row.exp()[None].expand(30, 8), torch.cat([x, x]), row)[1] == [(8,)]


def test_a_steps_derivatives_are_the_same_bits() -> None:
    """Of gradient and tangent, which the matching loop compiles; no tensor of pixels is stored for it."""
    net, shape = NetConfig(depth=2, width=4), (3, 16, 16)
    steps = make_steps(flat(net, shape, 5), compile_=False)
    theta = initial(net, shape, 5, seed=1)
    inputs = [
        theta,
        torch.randn(3, *shape),
        torch.randn(3, 5).softmax(1),
        torch.sin(torch.arange(len(theta)).float()),
    ]
    for function, count in ((steps.gradient, 3), (steps.tangent, 4)):
        module, shapes = kept(function, *inputs[:count])
        assert len(shapes) >= 4
        assert max(torch.Size(shape).numel() for shape in shapes) <= 3 * 8 * 8 * 4 // 16
        for actual, expected in zip(module(*inputs[:count]), function(*inputs[:count]), strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
