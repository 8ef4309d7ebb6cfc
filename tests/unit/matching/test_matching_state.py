"""The state of a matching run: its updates against torch's optimisers, its symptoms, its bytes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from rayddl.methods.matching.gradient import MetaGradient
from rayddl.methods.matching.settings import Settings
from rayddl.methods.matching.state import State, average, bounds, first_state, load_state, symptom, update


def config(**changes: Any) -> Settings:
    base: dict[str, Any] = {
        "syn_steps": 3,
        "lr_image": 5.0,
        "lr_lr": 1e-4,
        "lr_student": 0.05,
        "max_start_epoch": 2,
        "expert_epochs": 1,
    }
    return Settings(**{**base, **changes})


def meta(images: torch.Tensor, lr: float = 0.0) -> MetaGradient:
    """A meta-gradient of these images' derivative."""
    return MetaGradient(torch.tensor(1.0), images, torch.zeros(2, 3), torch.tensor(lr))


def noise(seed: int) -> torch.Tensor:
    return torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(seed))


PATTERN = torch.tensor([1.0, -1.0]).repeat(2, 1, 4, 2)
"""Two images whose RMS is 1."""


@pytest.mark.parametrize(
    ("change", "loss", "text"),
    [
        ({}, float("nan"), "the matching loss is nan"),
        ({}, float("inf"), "the matching loss is inf"),
        ({"lr": -0.01}, 1.0, "the student's learning rate went to -0.01, outside 0.0005 to 5"),
        ({"lr": 6.0}, 1.0, "the student's learning rate went to 6, outside 0.0005 to 5"),
        (
            {"images": noise(0) * torch.tensor([1.0, float("nan")]).view(2, 1, 1, 1)},
            1.0,
            "pixels are not finite",
        ),
        ({"images": noise(0) * float("nan")}, 1.0, "pixels are not finite"),
        (
            {"images": PATTERN * torch.tensor([1.0, 42.0]).view(2, 1, 1, 1)},
            1.0,
            "pixels grew to 21 times the start's",
        ),
        ({"images": PATTERN * torch.tensor([1.0, 0.0]).view(2, 1, 1, 1)}, 1.0, "an image went flat"),
    ],
)
def test_symptoms_are_named(change: dict[str, Any], loss: float, text: str) -> None:
    """Each way of going astray is noticed, of a single image too, and said in words."""
    change = {k: torch.tensor(v, dtype=torch.float64) if k == "lr" else v for k, v in change.items()}
    state = first_state(noise(0), None, config())

    assert symptom(state, 1.0, config(), 2.0) is None
    assert text in (symptom(replace(state, **change), loss, config(), 2.0) or "")


def test_the_ends_of_the_range_are_in_it() -> None:
    """A learning rate a hundred times up or down from its start, and images twenty times the start's, are let be."""
    state = first_state(PATTERN * 20, None, config())
    assert bounds(config()) == (pytest.approx(0.0005), pytest.approx(5.0))
    for end in bounds(config()):
        assert symptom(replace(state, lr=torch.tensor(end, dtype=torch.float64)), 1.0, config(), 1.0) is None


@pytest.mark.parametrize("rms", [0.5, 2.0])
def test_images_may_grow_to_twenty_times_the_start(rms: float) -> None:
    """Whatever that is, one image is enough to be noticed."""
    state = first_state(PATTERN * rms, None, config())
    for factor, noticed in ((19.9, False), (20.1, True)):
        grown = replace(state, images=PATTERN * rms * torch.tensor([1.0, factor]).view(2, 1, 1, 1))
        assert (symptom(grown, 1.0, config(), rms) is not None) == noticed


def sgd(tensors: list[tuple[torch.Tensor, float]], momentum: float = 0.5) -> torch.optim.SGD:
    """Torch's own, a learning rate for each tensor."""
    groups = [{"params": [tensor], "lr": lr} for tensor, lr in tensors]
    return torch.optim.SGD(groups, momentum=momentum)


@pytest.mark.parametrize("space", ["linear", "log"])
@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_momentum_and_learning_rate_update_as_sgd(space: str, scale: float) -> None:
    """Three updates equal torch.optim.SGD's, on alpha or on its logarithm; a scale of the rates counts for both."""
    settings = config(lr_image=2.0, lr_lr=0.5, momentum=0.5, lr_space=space)
    state = replace(first_state(noise(9), None, settings), scale=scale)
    leaf = noise(9).requires_grad_()
    alpha = torch.tensor(0.05, dtype=torch.float64)
    alpha = (alpha.log() if space == "log" else alpha).requires_grad_()
    torchs = sgd([(leaf, 2.0 * scale), (alpha, 0.5 * scale)])
    for i in range(3):
        state = update(state, meta(noise(i), 0.01 * (i + 1)), settings)
        torchs.zero_grad()
        now = alpha.exp() if space == "log" else alpha
        ((leaf * noise(i)).sum() + now * float(torch.tensor(0.01 * (i + 1)))).backward()
        torchs.step()

    torch.testing.assert_close(state.images, leaf.detach(), rtol=1e-5, atol=1e-5)
    expected = alpha.detach().exp() if space == "log" else alpha.detach()
    torch.testing.assert_close(state.lr, expected, rtol=1e-9, atol=0)
    assert (state.iteration, state.lr.dtype) == (3, torch.float64)


def test_a_learning_rate_that_is_not_learned_stays() -> None:
    """With ``lr_lr: 0`` alpha keeps its value, and no average of it is kept."""
    state = first_state(noise(0), None, config(lr_lr=0.0))
    after = update(state, meta(noise(1), 3.0), config(lr_lr=0.0))
    assert (float(after.lr), set(after.moments)) == (0.05, {"images"})


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_averaged_images_are_those_of_ftd(decay: float) -> None:
    """``ema`` = ``decay`` · ``ema`` + (1 - ``decay``) · images after each update, from the initial ones; matching does
    not see them. Without the setting there are none.
    """
    settings, plain = config(image_ema=decay), config()
    state = other = first_state(noise(9), None, settings)
    assert torch.equal(state.shown, noise(9))
    seen = [state.images.double()]
    for i in range(4):
        state, other = (update(each, meta(noise(i)), s) for each, s in ((state, settings), (other, plain)))
        seen.append(state.images.double())
    weights = [decay**4, *((1 - decay) * decay ** (4 - i) for i in range(1, 5))]
    expected = sum(weight * images for weight, images in zip(weights, seen, strict=True))

    torch.testing.assert_close(state.shown.double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(state.images, other.images)
    assert other.averaged is None
    assert other.shown is other.images


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_adam_equals_torchs(decay: float) -> None:
    """Three updates equal torch.optim.Adam's on the same gradients, with weight decay and without."""
    settings = config(lr_image=0.1, lr_lr=0.0, image_optimizer="adam", image_decay=decay)
    state = first_state(noise(7), None, settings)
    leaf = noise(7).requires_grad_()
    adam = torch.optim.Adam([leaf], lr=0.1, weight_decay=decay)
    for i in range(3):
        # Small ones, too, against which the denominator's 1e-8 counts.
        state = update(state, meta(noise(i) * 1e-8 ** (i % 2)), settings)
        leaf.grad = noise(i) * 1e-8 ** (i % 2)
        adam.step()

    torch.testing.assert_close(state.images, leaf.detach(), rtol=1e-5, atol=1e-6)


def test_adam_keeps_small_gradients_apart_from_none() -> None:
    """A first step on gradients of 1e-8 is half of the rate: the denominator's 1e-8 is torch's."""
    settings = config(lr_image=1.0, lr_lr=0.0, image_optimizer="adam")
    state = first_state(torch.zeros(2, 1, 4, 4), None, settings)
    after = update(state, meta(torch.full((2, 1, 4, 4), 1e-8)), settings)
    torch.testing.assert_close(after.images, torch.full((2, 1, 4, 4), -0.5), rtol=1e-3, atol=0)


@pytest.mark.parametrize(("own", "momentum"), [(None, 0.5), (0.9, 0.9), (0.0, 0.0)])
def test_learned_labels_follow_autograd(own: float | None, momentum: float) -> None:
    """Two updates of the logits are SGD's with momentum on the gradient pulled back through the softmax; the momentum
    is that of the images unless labels have their own.
    """
    settings = config(labels="learned", lr_label=2.0, momentum=0.5, momentum_label=own)
    logits = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    state = replace(first_state(torch.ones(2, 1, 4, 4), logits, settings), scale=0.1)
    leaf = logits.clone().requires_grad_()
    torchs = sgd([(leaf, 0.2)], momentum)
    for i in range(2):
        g = torch.randn(2, 3, generator=torch.Generator().manual_seed(1 + i))
        one = MetaGradient(torch.tensor(1.0), torch.zeros(2, 1, 4, 4), g, torch.tensor(0.0))
        state = update(state, one, settings)
        torchs.zero_grad()
        (leaf.softmax(1) * g).sum().backward()
        torchs.step()

    assert state.logits is not None
    torch.testing.assert_close(state.logits, leaf.detach())


@pytest.mark.parametrize(("length", "step"), [(4.0, 0.5), (0.25, 0.25), (0.0, 0.0)])
def test_clip_bounds_the_gradient(length: float, step: float) -> None:
    """A gradient longer than ``clip`` is brought to its length; a shorter one, or none, stays as it is."""
    settings = config(clip=0.5, lr_image=1.0, momentum=0.0)
    state = first_state(torch.zeros(2, 1, 4, 4), None, settings)
    gradient = torch.ones(2, 1, 4, 4) * length / 32**0.5
    after = update(state, meta(gradient), settings).images

    torch.testing.assert_close(after, -gradient * (step / length if length else 0.0))


def test_average_of_one_is_that_one() -> None:
    """A meta-batch of one leaves the gradient as it is; of two it is the mean, part by part."""
    g = [
        MetaGradient(torch.tensor(v), torch.full((2, 1), v), torch.full((1,), 2 * v), torch.tensor(3 * v))
        for v in (1.0, 3.0)
    ]

    assert average(g[:1]) is g[0]
    mean = average(g)
    assert (float(mean.loss), mean.images.tolist()) == (2.0, [[2.0], [2.0]])
    assert (mean.labels.tolist(), float(mean.lr)) == ([4.0], 6.0)


@pytest.mark.parametrize("logits", [None, torch.eye(3)[:2]])
def test_bytes_give_back_the_whole_state(logits: torch.Tensor | None) -> None:
    """Every field comes back equal, and what was put beside it under its own names."""
    moments = {"images": noise(1), "lr": torch.tensor(0.1, dtype=torch.float64)}
    rate = torch.tensor(0.07, dtype=torch.float64)
    state = State(17, noise(0), logits, rate, moments, scale=0.01, retries=2, skipped=5)
    read, more = load_state(state.dump(rows=torch.ones(3), logits=torch.zeros(1)), torch.device("cpu"))

    assert (read.iteration, read.scale, read.retries, read.skipped) == (17, 0.01, 2, 5)
    assert torch.equal(read.images, state.images)
    assert torch.equal(read.lr, rate)
    assert (read.logits is None) == (logits is None)
    assert logits is None or torch.equal(read.logits, logits)
    assert set(read.moments) == set(moments)
    assert all(torch.equal(read.moments[k], v) for k, v in moments.items())
    assert {k: v.tolist() for k, v in more.items()} == {"rows": [1, 1, 1], "logits": [0]}


def test_the_first_state_is_before_any_update() -> None:
    """Nothing has been averaged, taken back or passed over, and the images are the state's own."""
    images = noise(0)
    state = first_state(images, None, config())
    images += 1

    assert torch.equal(state.images, noise(0))
    assert (state.iteration, state.moments, state.scale, state.retries, state.skipped) == (0, {}, 1.0, 0, 0)
    assert float(state.lr) == 0.05
