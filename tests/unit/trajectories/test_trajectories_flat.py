"""Flat experts: GSAM's gradient, written out parameter by parameter, and the training that takes it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from rayddl.data.pixels import augment
from rayddl.methods.training.steps import make_steps, one_hot, sgd
from rayddl.methods.trajectories.expert import Images
from rayddl.methods.trajectories.settings import ExpertSettings
from rayddl.nets.build import build, flat, initial
from rayddl.nets.config import NetConfig
from rayddl.seeds import generator
from tests.experts import train_expert

SHAPE, CLASSES = (2, 8, 8), 3
UNUSED = {"allow_unused": True, "materialize_grads": True}  # the bias that instance norm removes


def data(count: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(count, *SHAPE, generator=draws, dtype=torch.float64).to(dtype)
    return x, torch.randint(CLASSES, (count,), generator=draws)


def by_hand(module: nn.Module, x: Tensor, y: Tensor, rho: float, alpha: float) -> list[Tensor]:
    """The gradient of each parameter, as FTD's optimiser computes it with its default, ``adaptive``: two passes, then
    the decomposition.
    """
    parameters = list(module.parameters())

    def gradients() -> list[Tensor]:
        return list(torch.autograd.grad(nn.functional.cross_entropy(module(x), y), parameters, **UNUSED))

    def norm(parts: list[Tensor]) -> float:
        return math.sqrt(sum(float((part**2).sum()) for part in parts))

    old, before = gradients(), [p.detach().clone() for p in parameters]
    length = norm([p.abs() * g for p, g in zip(before, old, strict=True)])
    with torch.no_grad():
        for p, was, g in zip(parameters, before, old, strict=True):
            p.add_(rho * was**2 * g / length)
    new = gradients()
    with torch.no_grad():
        for p, was in zip(parameters, before, strict=True):
            p.copy_(was)
    cosine = sum(float((a * b).sum()) for a, b in zip(old, new, strict=True)) / norm(old) / norm(new)
    return [b - alpha * (a - cosine * norm(old) * b / norm(new)) for a, b in zip(old, new, strict=True)]


@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize(("rho", "alpha"), [(0.01, 0.3), (0.2, 1.0)])
def test_the_step_is_gsams(norm: str, rho: float, alpha: float) -> None:
    """In float64; batch norm's running statistics are those of the first pass alone."""
    config = NetConfig.model_validate({"depth": 1, "width": 4, "norm": norm})
    x, y = data(6, torch.float64)
    module = build(config, SHAPE, CLASSES, seed=1).double()
    expected = torch.cat([g.flatten() for g in by_hand(module, x, y, rho, alpha)])
    steps = make_steps(flat(config, SHAPE, CLASSES), compile_=False)
    theta, start = (
        initial(config, SHAPE, CLASSES, seed=1).double(),
        steps.fresh_statistics(torch.device("cpu")),
    )
    start = None if start is None else start.double()
    labels = one_hot(y, CLASSES).double()

    found, value, after = steps.flat_training(theta, start, x, labels, rho, alpha, usual=True)
    plain, loss, once = steps.training(theta, start, x, labels, usual=True)

    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-10)
    assert float((found - plain).norm()) > 1e-4 * float(plain.norm())
    assert float(value) == float(loss)
    assert (after is None and once is None) if norm == "instance" else torch.equal(after, once)


def test_flat_experts_take_that_step_in_every_batch() -> None:
    """With momentum and weight decay, in the order and with the augmentation of plain experts."""
    config = NetConfig(depth=1, width=4)
    settings = ExpertSettings(
        epochs=1, lr=0.1, momentum=0.5, weight_decay=0.01, batch=4, augment="flip", flat_rho=0.05
    )
    steps = make_steps(flat(config, SHAPE, CLASSES), compile_=False)
    start, (x, y) = initial(config, SHAPE, CLASSES, seed=1), data(10)
    trained = train_expert(steps, settings, start, Images(x, y), Images(x, y), CLASSES, 7)

    draws, theta, velocity = generator(7, "epoch", 1), start.clone(), torch.zeros_like(start)
    for picked in torch.randperm(10, generator=draws).split(4):
        shown = augment.apply(x[picked], augment.draw(("flip",), tuple(x[picked].shape), draws))
        g, _, _ = steps.flat_training(theta, None, shown, one_hot(y[picked], CLASSES), 0.05, 0.3, usual=True)
        sgd(theta, g, velocity, lr=0.1, momentum=0.5, weight_decay=0.01)

    torch.testing.assert_close(trained.snapshots[-1], theta)
    plain = train_expert(
        steps, settings.model_copy(update={"flat_rho": 0.0}), start, Images(x, y), Images(x, y), CLASSES, 7
    )
    assert not torch.allclose(plain.snapshots[-1], theta, atol=1e-5)
