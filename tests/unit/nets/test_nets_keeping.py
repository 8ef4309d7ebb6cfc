"""A derivative that is given the convolutions of the function's own step: the same results, of less work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, jvp
from torch.nn import functional as F

from rayddl.methods.training.steps import make_steps
from rayddl.nets.build import flat, initial
from rayddl.nets.config import NetConfig
from rayddl.nets.keeping import Kept, keeping
from rayddl.nets.pruning import BACKWARD, CONVOLUTION
from rayddl.nets.work import KEPT_PRODUCTS
from tests.unit.nets.test_nets_pruning import count, pruned, randn

SHAPE, CLASSES, BATCH = (3, 16, 16), 5, 4
WIDE = NetConfig(depth=3, width=8)
"""Its inner convolutions sum 72 products."""


def together(config: NetConfig) -> tuple[Kept | None, list[Tensor], Tensor, Any]:
    """What a step of a network in float64 keeps, its arguments, a direction, and its functions."""
    net = flat(config, SHAPE, CLASSES, precision="fp32")
    theta = initial(config, SHAPE, CLASSES, seed=1).double()
    inputs = [theta, randn(BATCH, *SHAPE), randn(BATCH, CLASSES).softmax(1)]
    along = torch.sin(torch.arange(len(theta)).double())

    def loss(theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(net(theta, x), y)

    def gradient(*given: Tensor) -> Tensor:
        return grad(loss)(*given)

    def tangent(theta: Tensor, x: Tensor, y: Tensor, v: Tensor) -> Any:
        return jvp(lambda t: grad(loss, argnums=(0, 1, 2))(t, x, y), (theta,), (v,))[1]

    steps = make_steps(net, compile_=False)
    return keeping(gradient, tangent, inputs, [along]), inputs, along, steps


@pytest.mark.parametrize(
    "config",
    [
        WIDE,
        WIDE.model_copy(update={"norm": "batch"}),
        WIDE.model_copy(update={"norm": "group"}),
        WIDE.model_copy(update={"norm": "none", "depth": 2}),
        NetConfig(name="resnet18", norm="instance"),
    ],
    ids=lambda config: f"{config.name}-{config.norm}",
)
def test_results_are_those_of_the_functions_alone(config: NetConfig) -> None:
    """The gradient, and the derivatives of loss, gradient, images and labels, in float64."""
    found, inputs, along, steps = together(config)
    assert found is not None
    gradient, kept = found.first(*inputs)
    by = found.second(kept, *inputs, along)

    assert found.bytes == sum(tensor.nbytes for tensor in kept) > 0
    expected = [steps.gradient(*inputs)[0], *steps.tangent(*inputs, along)[1:]]
    for had, has in zip(expected, (gradient, *by), strict=True):
        torch.testing.assert_close(has, had, rtol=1e-9, atol=1e-11)


def test_inner_convolutions_are_read_and_not_computed_again() -> None:
    """A ConvNet of depth D: D - 1 convolutions fewer forwards, and as many fewer by the images backwards."""
    found, inputs, along, _ = together(WIDE)
    assert found is not None
    _, kept = found.first(*inputs)
    graph = pruned(found.second, (kept, *inputs, along))
    depth = WIDE.depth

    assert len(kept) == 2 * (depth - 1)
    assert count(graph, CONVOLUTION) == 2 * depth
    asked = sum(sum(node.args[-1]) for node in graph.graph.nodes if node.target == BACKWARD)
    assert asked == 4 * depth - 1


@pytest.mark.parametrize("config", [NetConfig(depth=3, width=4), NetConfig(name="mlp", depth=3, width=16)])
def test_networks_without_long_convolutions_keep_nothing(config: NetConfig) -> None:
    """Sums of 36 products are computed again."""
    assert config.width * 9 < KEPT_PRODUCTS or config.name == "mlp"
    assert together(config)[0] is None


X, W = randn(2, 8, 6, 6), randn(8, 8, 3, 3)


def convolved(x: Tensor, w: Tensor) -> Tensor:
    return F.conv2d(x, w, padding=1)


def kept_of(first: Callable[..., Any], second: Callable[..., Any]) -> Kept | None:
    return keeping(first, second, (X, W), ())


def test_what_looks_alike_is_not_taken_for_the_same() -> None:
    """Convolutions of other tensors, other strides, and of numbers that are drawn at random."""
    assert kept_of(convolved, convolved) is not None
    assert kept_of(convolved, lambda x, w: convolved(x + 1, w)) is None
    assert kept_of(convolved, lambda x, w: convolved(x.flip(2), w)) is None
    assert kept_of(convolved, lambda x, w: F.conv2d(x, w, padding=1, stride=2)) is None
    assert kept_of(*[lambda x, w: convolved(F.dropout(x), w)] * 2) is None


def test_what_is_kept_is_as_before_changes_in_place() -> None:
    """As an activation in place would make it."""
    found = kept_of(lambda x, w: convolved(x, w).add_(1).relu_(), lambda x, w: convolved(x, w).mul_(2))
    assert found is not None
    result, kept = found.first(X, W)

    torch.testing.assert_close(kept, [convolved(X, W)])
    torch.testing.assert_close(result, (convolved(X, W) + 1).relu())
    torch.testing.assert_close(found.second(kept, X, W), 2 * convolved(X, W))
    torch.testing.assert_close(kept, [convolved(X, W)])


def test_functions_that_change_their_arguments_keep_nothing() -> None:
    """Each call would change them."""
    assert kept_of(convolved, lambda x, w: convolved(x.add_(1), w) + convolved(x, w)) is None
    assert kept_of(lambda x, w: convolved(x, w) + w.mul_(2).sum(), convolved) is None


@pytest.mark.parametrize("number", [0, 1, 2, 2.0, 3, True])
def test_a_number_is_not_taken_for_a_tensor(number: float) -> None:
    """The same function for both, of images times a number and times a tensor."""

    def function(x: Tensor, w: Tensor, factor: Tensor) -> Tensor:
        return convolved(x * number, w).sum() + 3 * convolved(x * factor, w).sum()

    given = X, W, torch.tensor(0.7, dtype=torch.float64)
    found = keeping(function, function, given, ())
    assert found is not None
    result, kept = found.first(*given)

    torch.testing.assert_close(result, function(*given))
    torch.testing.assert_close(found.second(kept, *given), function(*given))


def test_tensors_of_a_network_are_constants() -> None:
    """Such as a buffer with a mean: what depends on it is computed again, other convolutions are kept."""
    mean = torch.full((2, 8, 1, 1), 0.5, dtype=torch.float64)

    def function(x: Tensor, w: Tensor) -> Tensor:
        return convolved(x - mean, w) + convolved(x, w)

    found = kept_of(function, function)
    assert found is not None
    result, kept = found.first(X, W)

    torch.testing.assert_close(kept, [convolved(X, W)])
    torch.testing.assert_close(found.second(kept, X, W), result)
    torch.testing.assert_close(result, function(X, W))


def test_functions_that_cannot_be_traced_keep_nothing() -> None:
    """A branch on a value, and a size that depends on one, as a network of one's own may have."""

    def branching(x: Tensor, w: Tensor) -> Tensor:
        return convolved(x, w) if x.sum() > 0 else convolved(x, -w)

    def chosen(x: Tensor, w: Tensor) -> Tensor:
        return convolved(x[x[:, 0, 0, 0] > 0], w)

    assert kept_of(branching, branching) is None
    assert kept_of(chosen, chosen) is None
