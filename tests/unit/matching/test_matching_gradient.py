"""The meta-gradient against autograd through the whole unroll and against finite differences."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rayddl.data.config import AUGMENTATIONS
from rayddl.data.pixels import augment
from rayddl.methods.matching.gradient import (
    MODES,
    MetaGradient,
    StudentRun,
    exact,
    matching_loss,
    truncated,
    unrolled,
)
from rayddl.methods.training.steps import Steps, make_steps
from rayddl.nets.build import flat, initial
from rayddl.nets.config import NetConfig
from tests.raising import raises

SHAPE, CLASSES, COUNT = (3, 8, 8), 4, 7
PARTS = ("loss", "images", "labels", "lr")


def problem(
    *, batch: int, count: int, augmentations: tuple[str, ...], norm: str = "instance", seed: int = 0
) -> tuple[Steps, StudentRun, Tensor, Tensor]:
    """A small student run in float64."""
    draws = torch.Generator().manual_seed(seed)
    config = NetConfig(depth=2, width=8, norm=norm)
    steps = make_steps(flat(config, SHAPE, CLASSES), compile_=False)
    start = initial(config, SHAPE, CLASSES, seed=1).double()
    target = start + 0.05 * torch.randn(start.shape, generator=draws, dtype=torch.float64)
    picks = [torch.randperm(COUNT, generator=draws)[:batch] for _ in range(count)]
    shape = (batch, *SHAPE)
    run = StudentRun(
        torch.randn(COUNT, *SHAPE, generator=draws, dtype=torch.float64),
        torch.randn(COUNT, CLASSES, generator=draws, dtype=torch.float64).softmax(1),
        torch.tensor(0.3, dtype=torch.float64),
        picks,
        [augment.draw(augmentations, shape, draws) for _ in picks],
    )
    return steps, run, start, target


def as_the_codes_of_mct_and_tesla(
    steps: Steps, run: StudentRun, start: Tensor, target: Tensor
) -> tuple[Tensor, Tensor]:
    """The updates' gradients of images and rate in those codes, term by term, from the sum of all steps' gradients.

    Their factor of two multiplies a tuple, and so repeats it; only its first part is used.
    """
    theta, path = start, []
    for picked, drawn in zip(run.picks, run.draws, strict=True):
        g, _ = steps.eager(theta, augment.apply(run.images[picked], drawn), run.labels[picked])
        path.append((theta, g))
        theta = theta - run.lr * g
    total = torch.stack([g for _, g in path]).sum(0)
    distance = (start - target).square().sum()
    images = torch.zeros_like(run.images)
    for (theta, _), picked, drawn in zip(path, run.picks, run.draws, strict=True):
        leaf, weights = run.images[picked].clone().requires_grad_(), theta.clone().requires_grad_()
        loss = torch.nn.functional.cross_entropy(
            steps.net(weights, augment.apply(leaf, drawn)), run.labels[picked]
        )
        (g,) = torch.autograd.grad(loss, weights, create_graph=True)
        along = (run.lr * (target - start) + run.lr**2 * total) @ g / distance
        repeated = 2 * torch.autograd.grad(along, leaf)
        images[picked] += repeated[0]
    rate = run.lr.clone().requires_grad_()
    end = start - rate * total - target
    return images, torch.autograd.grad(end @ end / distance, rate)[0]


@pytest.mark.parametrize("norm", ["instance", "none"])
def test_the_codes_of_mct_and_tesla_halve_the_images_gradient(norm: str) -> None:
    """`truncated` is twice the images' gradient of those codes, and equals that of the rate."""
    args = problem(batch=3, count=5, augmentations=("flip", "color"), norm=norm)
    ours = truncated(*args)
    images, rate = as_the_codes_of_mct_and_tesla(*args)

    assert difference(ours.images, 2 * images) < 1e-9
    assert difference(ours.lr, rate) < 1e-9


def difference(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


@pytest.mark.parametrize("norm", ["instance", "batch", "group", "none"])
@pytest.mark.parametrize("augmentations", [(), AUGMENTATIONS], ids=["plain", "dsa"])
@pytest.mark.parametrize(("batch", "count"), [(COUNT, 1), (3, 1), (3, 14), (COUNT, 5)])
def test_exact_equals_autograd_through_the_unroll(
    norm: str, augmentations: tuple[str, ...], batch: int, count: int
) -> None:
    """Images', labels' and learning rate's derivatives agree to 9 digits in float64."""
    args = problem(batch=batch, count=count, augmentations=augmentations, norm=norm)
    actual, expected = exact(*args), unrolled(*args)

    for part in PARTS:
        assert difference(getattr(actual, part), getattr(expected, part)) < 1e-9, part


@pytest.mark.parametrize("layers", [1, 2])
def test_skipped_layers_are_trained_and_not_compared(layers: int) -> None:
    """The loss is the ratio of distances over the parameters of the other layers, by their names (PAD)."""
    steps, run, start, target = problem(batch=3, count=4, augmentations=("flip",))
    skipped = tuple(f"blocks.{k}." for k in range(layers))
    skip = steps.net.before_layer(layers)
    run = replace(run, skip=skip)
    leaf, rate = run.images.clone().requires_grad_(), run.lr.clone().requires_grad_()
    theta = start.clone().requires_grad_()
    for picked, drawn in zip(run.picks, run.draws, strict=True):
        x = augment.apply(leaf[picked], drawn)
        loss = torch.nn.functional.cross_entropy(steps.net(theta, x), run.labels[picked])
        theta = theta - rate * torch.autograd.grad(loss, theta, create_graph=True)[0]
    ends = [steps.net.unflatten(vector) for vector in (theta, start, target)]
    kept = [name for name in ends[0] if not name.startswith(skipped)]
    over, under = (sum((part[n] - ends[2][n]).square().sum() for n in kept) for part in ends[:2])
    (over / under).backward()

    assert 0 < len(kept) < len(ends[0])
    for actual in (exact(steps, run, start, target), unrolled(steps, run, start, target)):
        assert difference(actual.loss, (over / under).detach()) < 1e-9
        assert difference(actual.images, leaf.grad) < 1e-9
        assert difference(actual.lr, rate.grad) < 1e-9
    single = replace(run, picks=run.picks[:1], draws=run.draws[:1])
    assert (
        difference(truncated(steps, single, start, target).images, exact(steps, single, start, target).images)
        == 0
    )


def test_a_layer_begins_with_its_weights() -> None:
    """Its bias and norm belong to it; a network without so many layers is refused."""
    net = flat(NetConfig(depth=2, width=8), SHAPE, CLASSES)
    first, second = 3 * 8 * 9 + 3 * 8, 8 * 8 * 9 + 3 * 8
    assert [net.before_layer(k) for k in range(3)] == [0, first, first + second]
    with raises("too-few-layers-to-skip"):
        net.before_layer(3)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_exact_through_every_augmentation(name: str) -> None:
    """Each augmentation by itself is pulled back exactly."""
    args = problem(batch=3, count=4, augmentations=(name,), seed=2)
    actual, expected = exact(*args), unrolled(*args)

    for part in PARTS:
        assert difference(getattr(actual, part), getattr(expected, part)) < 1e-9, part


@pytest.mark.parametrize("part", ["images", "labels", "lr"])
def test_exact_equals_finite_differences(part: str) -> None:
    """The derivative along a random direction is the difference quotient of the loss."""
    steps, run, start, target = problem(batch=3, count=4, augmentations=("scale", "color"))
    value: Tensor = getattr(run, part)
    way = torch.randn(value.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    step = 1e-6
    ends = [
        unrolled(steps, replace(run, **{part: value + sign * step * way}), start, target).loss
        for sign in (1, -1)
    ]

    quotient = float(ends[0] - ends[1]) / (2 * step)
    along = float((getattr(exact(steps, run, start, target), part) * way).sum())
    assert abs(along - quotient) < 1e-5 * abs(quotient)


def test_truncated_drops_only_what_comes_through_parameters() -> None:
    """TESLA's gradient is autograd's with every step's parameters held fixed, and exact for one step."""
    steps, run, start, target = problem(batch=3, count=6, augmentations=("flip",))
    leaf = run.images.clone().requires_grad_()
    rate = run.lr.clone().requires_grad_()
    theta = end = start
    for picked, drawn in zip(run.picks, run.draws, strict=True):
        held = theta.detach().requires_grad_()
        x = augment.apply(leaf[picked], drawn)
        loss = torch.nn.functional.cross_entropy(steps.net(held, x), run.labels[picked])
        gradient = torch.autograd.grad(loss, held, create_graph=True)[0]
        end = end - rate * gradient
        theta = theta - run.lr * gradient.detach()
    matching_loss(end, start, target).backward()
    actual = truncated(steps, run, start, target)
    assert leaf.grad is not None
    assert rate.grad is not None

    assert difference(actual.images, leaf.grad) < 1e-9
    assert difference(actual.lr, rate.grad) < 1e-9
    single = replace(run, picks=run.picks[:1], draws=run.draws[:1])
    assert (
        difference(truncated(steps, single, start, target).images, exact(steps, single, start, target).images)
        == 0
    )


def test_hand_computed_two_steps() -> None:
    """On a linear softmax model with zero start, two steps match the formulas written out."""
    steps, run, start, target = problem(batch=COUNT, count=2, augmentations=())
    first = torch.autograd.functional.jacobian(
        lambda theta: torch.nn.functional.cross_entropy(
            steps.net(theta, run.images[run.picks[0]]), run.labels[run.picks[0]]
        ),
        start,
    )
    middle = start - run.lr * first
    second = torch.autograd.functional.jacobian(
        lambda theta: torch.nn.functional.cross_entropy(
            steps.net(theta, run.images[run.picks[1]]), run.labels[run.picks[1]]
        ),
        middle,
    )
    end = middle - run.lr * second

    expected = (end - target).square().sum() / (start - target).square().sum()
    torch.testing.assert_close(exact(steps, run, start, target).loss, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("depth", "width"), [(1, 4), (2, 8)])
def test_compiled_equals_uncompiled(depth: int, width: int) -> None:
    """Compiling changes the float32 result only by rounding, also where convolutions are kept for the way back."""
    config = NetConfig(depth=depth, width=width)
    _, run, *_ = problem(batch=3, count=2, augmentations=())
    start = initial(config, SHAPE, CLASSES, seed=1)
    target = start + 0.05
    small = replace(run, images=run.images.float(), labels=run.labels.float(), lr=run.lr.float())
    found: list[MetaGradient] = [
        exact(make_steps(flat(config, SHAPE, CLASSES), compile_=compile_), small, start, target)
        for compile_ in (True, False)
    ]

    for part in PARTS:
        torch.testing.assert_close(getattr(found[0], part), getattr(found[1], part), rtol=1e-4, atol=1e-6)


def test_bf16_gradient_points_the_same_way() -> None:
    """With bf16 products the images' gradient stays within a few degrees of float32's."""
    config = NetConfig(depth=2, width=16)
    _, run, *_ = problem(batch=COUNT, count=5, augmentations=())
    start = initial(config, SHAPE, CLASSES, seed=1)
    target = start + 0.02 * torch.randn(start.shape, generator=torch.Generator().manual_seed(0))
    small = replace(run, images=run.images.float(), labels=run.labels.float(), lr=run.lr.float())
    fine, coarse = (
        exact(
            make_steps(flat(config, SHAPE, CLASSES, precision=p), compile_=False), small, start, target
        ).images
        for p in ("fp32", "bf16")
    )

    assert torch.nn.functional.cosine_similarity(fine.flatten(), coarse.flatten(), dim=0) > 0.99


def test_an_image_drawn_twice_counts_twice() -> None:
    """Indices that repeat within a step add up, as autograd's do."""
    steps, run, start, target = problem(batch=3, count=2, augmentations=())
    doubled = replace(run, picks=[torch.tensor([0, 0, 1]), torch.tensor([2, 2, 2])])

    assert (
        difference(
            exact(steps, doubled, start, target).images, unrolled(steps, doubled, start, target).images
        )
        < 1e-9
    )


def test_modes_are_the_three() -> None:
    """The names that a definition may use are the functions'."""
    assert {"exact": exact, "truncated": truncated, "unrolled": unrolled} == MODES
