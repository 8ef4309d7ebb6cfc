"""The outer loop: replayable, resumable at any anchor, and stopped before numbers run away."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from rayddl.methods.matching.gradient import MetaGradient
from rayddl.methods.matching.loop import ANCHOR, Loop, Matcher
from rayddl.methods.matching.settings import Settings
from rayddl.methods.matching.state import State, average, first_state, load_state, symptom, update
from rayddl.methods.training.steps import make_steps
from rayddl.methods.trajectories.convex import SnapshotTrajectory, convexify
from rayddl.nets.build import flat, initial
from rayddl.nets.config import NetConfig
from tests.raising import raises

SHAPE, CLASSES = (1, 8, 8), 3
CONFIG = NetConfig(depth=1, width=4)
CPU = torch.device("cpu")


def config(**changes: Any) -> Settings:
    base: dict[str, Any] = {
        "syn_steps": 3,
        "batch_syn": None,
        "lr_image": 5.0,
        "lr_lr": 1e-4,
        "lr_student": 0.05,
        "momentum": 0.5,
        "augment": "flip_color",
        "max_start_epoch": 2,
        "expert_epochs": 1,
    }
    return Settings(**{**base, **changes})


def snapshots(seed: int) -> Tensor:
    start = initial(CONFIG, SHAPE, CLASSES, seed=seed)
    steps = torch.randn(4, len(start), generator=torch.Generator().manual_seed(seed)) * 0.02
    return torch.cat([start[None], start + steps.cumsum(0)])


def matcher(settings: Settings) -> Matcher:
    net = flat(CONFIG, SHAPE, CLASSES)
    experts = [convexify(snapshots(i), net.sizes) for i in range(3)]
    steps = make_steps(net, compile_=False)
    return Matcher(steps, settings, experts, torch.arange(CLASSES).repeat_interleave(2), CLASSES, 11, CPU)


def begin(settings: Settings) -> Loop:
    images = torch.randn(2 * CLASSES, *SHAPE, generator=torch.Generator().manual_seed(0))
    logits = torch.eye(CLASSES).repeat_interleave(2, 0) * 3 if settings.labels == "learned" else None
    return Loop.begin(matcher(settings), first_state(images, logits, settings))


def run(loop: Loop, iterations: int) -> Loop:
    while loop.state.iteration < iterations:
        loop.step()
    return loop


def same(a: State, b: State) -> bool:
    return (
        torch.equal(a.images, b.images)
        and torch.equal(a.lr, b.lr)
        and a.iteration == b.iteration
        and all(torch.equal(a.moments[k], b.moments[k]) for k in a.moments)
    )


VARIANTS: list[dict[str, Any]] = [
    {},
    {"labels": "learned", "lr_label": 1.0},
    {"labels": "expert"},
    {"gradient": "truncated"},
    {"gradient": "unrolled"},
    {"image_optimizer": "adam", "lr_image": 0.01, "image_decay": 0.01},
    {"lr_space": "log", "lr_lr": 1e-3},
    {"start_noise": 0.05},
    {"batch_syn": 2, "syn_steps": 5},
    {"workers": 3},
    {"clip": 1e-3},
]


@pytest.mark.parametrize("changes", VARIANTS, ids=lambda c: "-".join(c) or "published")
def test_resumed_from_bytes_equals_uninterrupted(changes: dict[str, Any]) -> None:
    """A state written at iteration 4 and read again leads to the same bits at iteration 8."""
    whole = run(begin(config(**changes)), 8)
    half = run(begin(config(**changes)), 4)
    state, more = load_state(half.state.dump(rows=torch.tensor(half.rows)), CPU)
    resumed = Loop.begin(half.matcher, state, half.start_rms)
    run(resumed, 8)

    assert more["rows"].shape == (4, 6)
    assert same(resumed.state, whole.state)
    if changes.get("labels") == "learned":
        assert resumed.state.logits is not None
        assert whole.state.logits is not None
        assert torch.equal(resumed.state.logits, whole.state.logits)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_numbers_of_a_resumed_state_stay_on_the_cpu(optimizer: str) -> None:
    """Images and their moments go to the device; the rate, its momentum and Adam's count do not."""
    done = run(begin(config(image_optimizer=optimizer)), 2)
    state, _ = load_state(done.state.dump(), torch.device("meta"))
    devices = {name: moment.device.type for name, moment in state.moments.items()}

    assert state.images.device.type == "meta"
    assert state.lr.device.type == "cpu"
    assert devices == {name: "cpu" if name in ("lr", "images.count") else "meta" for name in devices}
    assert {"lr", "images" if optimizer == "sgd" else "images.first"} <= set(devices)


def test_matching_lowers_the_loss() -> None:
    """Towards a fixed window the loss falls: the updates go downhill."""
    fixed = config(
        augment="none", max_start_epoch=1, continuous=False, lr_image=20.0, syn_steps=8, lr_student=0.5
    )
    loop = begin(fixed)
    only = replace(loop.matcher, trajectories=[SnapshotTrajectory(snapshots(0))])
    loop = run(Loop.begin(only, loop.state), 40)

    assert loop.rows[-1][1] < loop.rows[0][1]


def test_rows_record_every_iteration() -> None:
    """A row per iteration, counted from 1, with the learning rate after the update."""
    loop = run(begin(config()), 5)

    assert [row[0] for row in loop.rows] == [1, 2, 3, 4, 5]
    assert loop.rows[-1][2] == float(loop.state.lr)
    assert all(0 <= row[3] <= 2 for row in loop.rows)


def test_a_rate_far_too_high_ends_as_diverged() -> None:
    """A thousand times lr_image is noticed at once, taken back three times, and named."""
    loop = begin(config(lr_image=5e10))
    with raises("matching-diverged"):
        run(loop, 5)

    assert torch.isfinite(loop.anchor.images).all()
    assert loop.anchor.iteration == 0


def test_a_rate_too_high_is_taken_back_and_goes_on() -> None:
    """One tenth of the rate is enough here: the run ends well and says that it was taken back."""
    calm = run(begin(config()), 3)
    scale = float((calm.state.images - begin(config()).state.images).abs().max())
    wild = run(begin(config(lr_image=5.0 * 100 / scale)), 3)

    assert wild.state.retries in (1, 2)
    assert wild.state.scale == pytest.approx(0.1**wild.state.retries)
    assert [row[0] for row in wild.rows] == [1, 2, 3]


def test_taken_back_to_the_last_anchor() -> None:
    """After the first anchor a run is taken back to it, not to its start."""
    loop = run(begin(config(syn_steps=1)), ANCHOR + 3)
    anchored = loop.anchor
    loop.matcher = replace(loop.matcher, settings=config(syn_steps=1, lr_lr=1e9, retries=1))
    loop.step()

    assert anchored.iteration == ANCHOR
    assert loop.state.iteration == ANCHOR
    assert len(loop.rows) == ANCHOR
    assert torch.equal(loop.state.images, anchored.images)


@pytest.mark.parametrize(
    ("change", "loss", "text"),
    [
        ({}, float("nan"), "the matching loss is nan"),
        ({}, float("inf"), "the matching loss is inf"),
        (
            {"lr": torch.tensor(-0.01, dtype=torch.float64)},
            1.0,
            "learning rate went to -0.01, outside 0.0005 to 5",
        ),
        ({"lr": torch.tensor(6.0, dtype=torch.float64)}, 1.0, "learning rate went to 6"),
        ({"images": torch.full((2, 1, 8, 8), float("nan"))}, 1.0, "pixels are not finite"),
        ({"images": torch.randn(2, 1, 8, 8) * 100}, 1.0, "pixels grew to"),
        ({"images": torch.zeros(2, 1, 8, 8)}, 1.0, "an image went flat"),
    ],
)
def test_symptoms_are_named(change: dict[str, Any], loss: float, text: str) -> None:
    """Each way of going astray is noticed and said in words."""
    state = first_state(torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)), None, config())

    assert symptom(state, 1.0, config(), 1.0) is None
    assert text in (symptom(replace(state, **change), loss, config(), 1.0) or "")


def test_standing_experts_end_the_run_with_advice() -> None:
    """Experts that do not move are skipped, and an error when there are no others."""
    loop = begin(config(continuous=False))
    standing = SnapshotTrajectory(snapshots(0)[:1].expand(4, -1))
    all_still = Loop.begin(replace(loop.matcher, trajectories=[standing]), loop.state)
    with raises("experts-do-not-move"):
        all_still.step()
    some = Loop.begin(
        replace(loop.matcher, trajectories=[standing, SnapshotTrajectory(snapshots(1))]), loop.state
    )
    run(some, 4)

    assert some.state.skipped > 0
    assert {row[4] for row in some.rows} == {1}


def test_momentum_and_learning_rate_update_as_sgd() -> None:
    """Two updates equal torch.optim.SGD's on the same gradients."""
    settings = config(lr_image=2.0, lr_lr=0.5)
    images, rate = torch.ones(2, 1, 4, 4), torch.tensor(0.05, dtype=torch.float64)
    gradients = [torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    state = first_state(images, None, settings)
    leaf, alpha = images.clone().requires_grad_(), rate.clone().requires_grad_()
    sgd = torch.optim.SGD([{"params": [leaf], "lr": 2.0}, {"params": [alpha], "lr": 0.5}], momentum=0.5)
    for i, g in enumerate(gradients):
        one = MetaGradient(torch.tensor(1.0), g, torch.zeros(2, 3), torch.tensor(0.01 * (i + 1)))
        state = update(state, one, settings)
        leaf.grad, alpha.grad = g, torch.tensor(0.01 * (i + 1), dtype=torch.float64)
        sgd.step()

    torch.testing.assert_close(state.images, leaf.detach(), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(state.lr, alpha.detach(), rtol=1e-6, atol=0)


def test_adam_equals_torchs() -> None:
    """Three updates equal torch.optim.Adam's on the same gradients."""
    settings = config(lr_image=0.1, lr_lr=0.0, image_optimizer="adam")
    state = first_state(torch.ones(2, 1, 4, 4), None, settings)
    leaf = torch.ones(2, 1, 4, 4, requires_grad=True)
    adam = torch.optim.Adam([leaf], lr=0.1)
    for i in range(3):
        g = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(i))
        state = update(
            state, MetaGradient(torch.tensor(1.0), g, torch.zeros(2, 3), torch.tensor(0.0)), settings
        )
        leaf.grad = g
        adam.step()

    torch.testing.assert_close(state.images, leaf.detach(), rtol=1e-5, atol=1e-6)


def test_learned_labels_follow_autograd() -> None:
    """The logits' update is the probabilities' gradient pulled back through the softmax."""
    settings = config(labels="learned", lr_label=2.0, momentum=0.0)
    logits = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    g = torch.randn(2, 3, generator=torch.Generator().manual_seed(1))
    state = first_state(torch.ones(2, 1, 4, 4), logits, settings)
    after = update(
        state, MetaGradient(torch.tensor(1.0), torch.zeros(2, 1, 4, 4), g, torch.tensor(0.0)), settings
    )
    leaf = logits.clone().requires_grad_()
    (leaf.softmax(1) * g).sum().backward()
    assert after.logits is not None
    assert leaf.grad is not None

    torch.testing.assert_close(after.logits, logits - 2.0 * leaf.grad)


def test_clip_bounds_the_gradient() -> None:
    """With clip, an update's step is no longer than rate times clip."""
    settings = config(clip=0.5, lr_image=1.0, momentum=0.0)
    state = first_state(torch.zeros(2, 1, 4, 4), None, settings)
    g = MetaGradient(torch.tensor(1.0), torch.ones(2, 1, 4, 4), torch.zeros(2, 3), torch.tensor(0.0))

    assert float(update(state, g, settings).images.norm()) == pytest.approx(0.5)


def test_average_of_one_is_that_one() -> None:
    """A meta-batch of one leaves the gradient as it is; of two it is the mean."""
    g = [
        MetaGradient(torch.tensor(v), torch.full((1,), v), torch.full((1,), v), torch.tensor(v))
        for v in (1.0, 3.0)
    ]

    assert average(g[:1]) is g[0]
    assert float(average(g).loss) == 2.0
    assert float(average(g).images) == 2.0
